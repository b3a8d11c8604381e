"""Studies: which runs make up one table.

In: recipes, or a base recipe with grids of settings, or a study file (YAML). Out: a :class:`Study`: rows, each a recipe
with settings of its own under a name that is unique in its group. Rows of one group answer the same questions and have
one base; a study of several groups (model sizes, tasks) becomes one table.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from selfdistill.errors import RecipeError, nearest
from selfdistill.training.recipe import load_recipe
from selfdistill.training.recipe_file import parse_yaml, read_yaml
from selfdistill.validation import SECTION, explain

BASE = "base"
"""Name of the untrained model's row."""


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration, to be trained with several seeds."""

    name: str
    recipe: str
    """Path of the recipe file."""
    settings: tuple[str, ...]
    """The row's own ``key=value``."""
    published: Mapping[str, float]
    """What the paper reports, by column."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are evaluated on the same questions, from the same model."""

    name: str
    """Empty in a study that has one group only."""
    rows: tuple[Row, ...]
    published: Mapping[str, float]
    """What the paper reports for the untrained model."""

    def path(self, row: str) -> str:
        """Return how a row is called on the command line and in messages."""
        return f"{self.name}/{row}" if self.name else row


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that goes into one table."""

    groups: tuple[Group, ...]
    common: tuple[str, ...] = ()
    """``key=value`` of every row."""
    caption: str = ""
    published: str = ""
    """Where the published numbers come from."""
    seeds: int = 1
    against: str | None = None
    """The row that the others are compared with, besides the base."""


class RowFile(BaseModel):
    """A row of a study file."""

    model_config = SECTION

    recipe: str | None = None
    """Recipe file, relative to the study; null: the study's."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings by dotted name."""
    published: dict[str, float] = Field(default_factory=dict)
    """What the paper reports, by column."""


class GroupFile(BaseModel):
    """Rows that share their questions and their untrained model."""

    model_config = SECTION

    rows: dict[str, Any] = Field(min_length=1)
    """Name -> row; the name becomes the recipe's ``name``."""
    base: dict[str, float] = Field(default_factory=dict)
    """What the paper reports for the untrained model, by column."""


class StudyFile(BaseModel):
    """A study file: ``rows``, or ``groups`` of them."""

    model_config = SECTION

    caption: str = ""
    """Stands above the table."""
    published: str = ""
    """Where the published numbers come from, and what they lack; stands below the table."""
    seeds: int = Field(default=1, ge=1)
    """Seeds 0 .. n - 1, unless the command line says otherwise."""
    against: str | None = None
    """Name of the row that the others are compared with, besides the base."""
    recipe: str | None = None
    """Recipe of the rows that name none, relative to the study."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of every row, by dotted name."""
    rows: dict[str, Any] = Field(default_factory=dict)
    """Name -> row, in a study without groups."""
    base: dict[str, float] = Field(default_factory=dict)
    """What the paper reports for the untrained model, in a study without groups."""
    groups: dict[str, Any] = Field(default_factory=dict)
    """Name -> group: its ``rows``, and ``base``."""


Section = TypeVar("Section", bound=BaseModel)


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        RecipeError: the file is missing or malformed; names the row and the setting.
    """
    data = read_yaml(path)
    file = _parsed(StudyFile, data, str(path))
    if bool(file.rows) == bool(file.groups):
        raise RecipeError(f"{path} must have `rows:`, or `groups:` with rows of their own, and not both; correct it")
    if file.groups and file.base:
        raise RecipeError(f"{path}: base stands beside groups; write it into each group")
    own = {"rows": file.rows, "base": file.base}
    groups = {_group_name(name, path): group for name, group in file.groups.items()} or {"": own}
    return Study(
        tuple(_group(name, group, file, path) for name, group in groups.items()),
        common=_settings(file.set),
        caption=file.caption,
        published=file.published,
        seeds=file.seeds,
        against=file.against,
    )


def is_study(path: str) -> bool:
    """Say whether a YAML file is a study rather than a recipe, by its keys."""
    return Path(path).is_file() and bool({"rows", "groups"} & read_yaml(Path(path)).keys())


def of_recipes(paths: Sequence[str], overrides: Sequence[str]) -> Study:
    """Return the study whose rows are recipes, under their own names.

    Raises:
        RecipeError: a recipe is wrong, or two have one name.
    """
    names: dict[str, str] = {}
    for path in paths:
        name = load_recipe(path, overrides).name
        if name in names:
            raise RecipeError(f"{names[name]} and {path} are both named {name!r}; give one another `name:`")
        names[name] = path
    return Study((Group("", tuple(Row(name, path, (), {}) for name, path in names.items()), {}),))


def of_grid(recipe: str, grids: Sequence[str], *, pairwise: bool = False) -> Study:
    """Return the study of one recipe under all combinations of some settings' values.

    Args:
        recipe: path of the recipe.
        grids: ``key=value,value,...`` each; values are YAML.
        pairwise: take the first values together, then the second ones, instead of every combination.

    Raises:
        RecipeError: a grid is malformed, a key comes twice, or grids that are to be paired differ in length.
    """
    axes = [_axis(text) for text in grids]
    keys = [key for key, _ in axes]
    if repeated := next((key for key in keys if keys.count(key) > 1), None):
        raise RecipeError(f"{repeated} is varied twice; give all its values at once: {repeated}=first,second")
    lengths = {key: len(values) for key, values in axes}
    if pairwise and len(set(lengths.values())) > 1:
        given = ", ".join(f"{key} ({length})" for key, length in lengths.items())
        raise RecipeError(f"--zip needs as many values for every setting: {given}; add values, or leave out --zip")
    values = [values for _, values in axes]
    combinations = zip(*values, strict=True) if pairwise else itertools.product(*values)
    short = _short_names(keys)
    rows = [
        Row(
            "_".join(f"{short[key]}-{_as_name(value)}" for key, value in zip(keys, chosen, strict=True)),
            recipe,
            _settings(dict(zip(keys, chosen, strict=True))),
            {},
        )
        for chosen in combinations
    ]
    twice = [row.name for row in rows if [other.name for other in rows].count(row.name) > 1]
    if twice:
        raise RecipeError(f"two rows would be named {twice[0]!r}: a value comes twice, or differs in punctuation only")
    return Study((Group("", tuple(rows), {}),))


def _axis(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    form = "write key=value,value, for example method.context.hidden_wrong=0.25,0.3"
    if not key or not equals or not values.strip():
        raise RecipeError(f"--over {text!r} gives no values; {form}")
    try:
        listed = parse_yaml(f"[{values}]")
    except yaml.YAMLError:
        raise RecipeError(f"--over {text!r}: the values are not YAML; {form}") from None
    return key, listed


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return each key's last part, or as many of its last parts as tell it from the other keys."""
    parts = {key: key.split(".") for key in keys}

    def shortest(key: str) -> str:
        for count in range(1, len(parts[key])):
            if sum(other[-count:] == parts[key][-count:] for other in parts.values()) == 1:
                return ".".join(parts[key][-count:])
        return key

    return {key: shortest(key) for key in keys}


def _as_name(value: Any) -> str:
    """Return a value as part of a folder's name."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "empty"


def _group_name(name: str, path: Path) -> str:
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise RecipeError(f"{path}: the group {name!r} names a folder; use letters, digits, dots and dashes only")
    return name


def _group(name: str, data: Any, file: StudyFile, path: Path) -> Group:
    where = f"{path}: group {name}" if name else str(path)
    group = _parsed(GroupFile, data, where)
    rows = tuple(_row(row, own, file, path, where) for row, own in group.rows.items())
    return Group(name, rows, group.base)


def _row(name: str, data: Any, file: StudyFile, path: Path, where: str) -> Row:
    row = _parsed(RowFile, {} if data is None else data, f"{where}: row {name}")
    if name == BASE:
        raise RecipeError(f"{where}: a row is named {BASE!r}, as is the untrained model's; give it another name")
    recipe = row.recipe or file.recipe
    if recipe is None:
        raise RecipeError(f"{where}: row {name} has no recipe; add `recipe: FILE` to it or to the study")
    own = (*_settings(row.set), f"name={json.dumps(name)}")
    return Row(name, _relative(path.parent / recipe), own, row.published)


def _relative(path: Path) -> str:
    """Return a readable path: without ``..``, from where we are."""
    return os.path.relpath(path) if not path.is_absolute() else os.path.normpath(path)


def _settings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return settings as overrides; JSON is YAML that needs no quoting rules."""
    return tuple(f"{key}={json.dumps(value)}" for key, value in settings.items())


def _parsed(section: type[Section], data: Any, where: str) -> Section:
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where} is {data!r}; write a mapping of settings ({', '.join(section.model_fields)})")
    for key in _keys(data):
        if not isinstance(key, str):
            raise RecipeError(f"{where}: {key!r} is no name; put it in quotes")
    try:
        return section.model_validate(dict(data))
    except ValidationError as error:
        raise RecipeError(f"{where}: {explain(error, section)}") from None


def _keys(data: Mapping[Any, Any]) -> Iterator[Any]:
    for key, value in data.items():
        yield key
        if isinstance(value, Mapping):
            yield from _keys(value)


def check_against(study: Study, against: str) -> None:
    """Refuse a reference row that a group lacks.

    Raises:
        RecipeError: naming the nearest row.
    """
    for group in study.groups:
        names = [row.name for row in group.rows]
        if against not in names:
            where = f" in group {group.name}" if group.name else ""
            raise RecipeError(f"there is no row {against!r}{where} to compare with{nearest(against, names)}")


def contradictions(study: Study, overrides: Sequence[str]) -> Iterator[str]:
    """Yield the overrides that would undo what rows differ in."""
    own = {setting.partition("=")[0] for group in study.groups for row in group.rows for setting in row.settings}
    for override in overrides:
        key = override.partition("=")[0]
        if any(key == other or other.startswith(f"{key}.") or key.startswith(f"{other}.") for other in own):
            yield override
