"""A recipe: everything that a run depends on, from YAML and dotted overrides to one validated, frozen object."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator, model_validator

from selfdistill.errors import RecipeError, nearest
from selfdistill.evaluation.run import EvaluationConfig
from selfdistill.methods import Method, as_data, build, with_settings
from selfdistill.methods.settings import nested
from selfdistill.models.loading import ModelConfig
from selfdistill.questions.config import DataConfig
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.training.config import OutputConfig, TrainConfig
from selfdistill.validation import explain


class Recipe(BaseModel):
    """One run, completely described. Unknown keys are errors that name the nearest key."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str = "run"
    """Names the run folder."""
    notes: str = ""
    """What differs from the published settings, and why; for readers."""
    method: Any
    """A method's name, or ``{name: ..., part: {setting: value}}``."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    rollouts: RolloutsConfig = Field(default_factory=RolloutsConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    output: OutputConfig = Field(default_factory=OutputConfig)

    @field_validator("method", mode="before")
    @classmethod
    def _build_method(cls, value: Any) -> Method:
        if isinstance(value, Method):
            return value
        if isinstance(value, str):
            return build(value)
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            settings = {key: setting for key, setting in value.items() if key not in ("name", "paper")}
            return with_settings(build(value["name"]), settings)
        raise RecipeError(f"method is {value!r}; write a method's name, or a mapping with at least `name:`")

    @field_serializer("method")
    def _method_data(self, value: Method) -> dict[str, Any]:
        return as_data(value)

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        if self.train.updates_per_batch > self.train.questions_per_step:
            raise ValueError(
                f"train.updates_per_batch is {self.train.updates_per_batch}, more than train.questions_per_step ({self.train.questions_per_step}); "
                "each update needs at least one question"
            )
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output.folder or f"runs/{self.name}")

    def to_yaml(self) -> str:
        """Return the resolved recipe; loading it gives an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply ``section.key=value`` overrides (values are YAML).

    Raises:
        RecipeError: for a missing or malformed file, or an unknown, malformed or contradictory setting.
    """
    data = _extended(Path(path))
    data.setdefault("name", Path(path).stem)
    for override in overrides:
        data = _overridden(data, override)
    return parse_recipe(data, str(path))


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validate plain data as a recipe."""
    if "method" not in data:
        raise RecipeError(f"{where}: there is no `method:`; write for example `method: paint`")
    try:
        return Recipe.model_validate(dict(data))
    except ValidationError as error:
        raise RecipeError(f"{where}: {explain(error, Recipe)}") from None
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file, with errors that name the file and the line."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        there = [str(file) for file in folder.glob("**/*.yaml")] if path.parent.is_dir() else []
        raise RecipeError(f"recipe {str(path)!r} does not exist{nearest(str(path), there[:50])}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {str(path)!r} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"recipe {str(path)!r}{line} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {str(path)!r} must hold a mapping with at least `method:`, not {type(data).__name__}")
    return data


def _extended(path: Path, inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe on top of the one that its ``extends:`` names, relative to it."""
    data = read_yaml(path)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str) or path.resolve() in inside:
        raise RecipeError(f"{path}: extends is {base!r}; it must name another recipe file, without going round in a circle")
    return _deep_merge(_extended(path.parent / base, (*inside, path.resolve())), data)


def _overridden(data: Mapping[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"override {override!r} has no value; write section.key=value, for example train.steps=50")
    head = path.split(".")[0]
    if head not in Recipe.model_fields:
        raise RecipeError(f"override {override!r}: a recipe has no section {head!r}{nearest(head, Recipe.model_fields)}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str):
        value = _number(value)
    base = dict(data)
    if head == "method" and isinstance(base.get("method"), str):
        base["method"] = {"name": base["method"]}
    return _deep_merge(base, nested(path, value))


def _number(text: str) -> str | float:
    """Read ``1e-5`` as a number: YAML 1.1 wants a dot in it, people do not."""
    return float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) else text


def _deep_merge(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(data)
    for key, change in changes.items():
        present = merged.get(key)
        if isinstance(present, str) and isinstance(change, Mapping) and key != "method":
            present = {"kind": present}  # `context: full_solution` followed by `method.context.thinking=true`
        merged[key] = _deep_merge(present, change) if isinstance(present, Mapping) and isinstance(change, Mapping) else change
    return merged


def same_run(first: Recipe, second: Recipe) -> list[str]:
    """Return the dotted names of the settings in which two recipes differ, apart from the output section and the notes."""
    one, two = _flat(first.model_dump(mode="json")), _flat(second.model_dump(mode="json"))
    keys = {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}
    return sorted(key for key in keys if not key.startswith(("output.", "notes")))


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat
