"""Recipe files and overrides: from YAML text to plain nested data, and back. What the data means is the recipe's part.

YAML here is YAML 1.1 with two differences: ``1e-5`` is a number (1.1 wants a dot in it, people do not), and a key that
comes twice in a mapping is an error (the first one would silently have no effect).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from selfdistill.errors import RecipeError, nearest

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_FLOAT = "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} comes twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that :class:`_Loader` would take for numbers."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """Return the value that ``text`` stands for.

    Raises:
        yaml.YAMLError: ``text`` is not YAML.
    """
    return yaml.load(text, Loader=_Loader)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Return text that :func:`parse_yaml` reads as equal data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        RecipeError: the file is missing, unreadable or malformed; names the file and the line.
    """
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {str(path)!r}{_similar(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecipeError(f"the recipe {str(path)!r} cannot be read ({reason}); give a YAML file") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{line} is not a valid recipe: {problem or 'malformed YAML'}; correct it") from None
    if not isinstance(data, dict):
        what = "it is empty" if data is None else f"this is a {type(data).__name__}"
        raise RecipeError(f"{path} must hold a mapping with at least `method:`, for example `method: paint`; {what}")
    return data


def read_extended(path: Path, inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe on top of the one that its ``extends:`` names, relative to it.

    Raises:
        RecipeError: as :func:`read_yaml`, and for recipes that extend each other in a circle.
    """
    data = read_yaml(path)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise RecipeError(f"{path}: extends is {base!r}; write the path of another recipe file, relative to this one")
    here = (*inside, path.resolve())
    if (path.parent / base).resolve() in here:
        raise RecipeError(f"{path}: extends {base!r} goes round in a circle; remove one of the extends")
    return merged(read_extended(path.parent / base, here), data)


def split_override(override: str) -> tuple[str, Any]:
    """Return the dotted key and the value of ``section.key=value``; what is not YAML is text.

    Raises:
        RecipeError: key or value are missing.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r} is no setting; write section.key=value, for example train.steps=50")
    try:
        return key, parse_yaml(text)
    except yaml.YAMLError:
        return key, text


def merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` with ``changes`` on top, mapping by mapping.

    A part given by its name alone can be refined (``context: full_solution``, then ``context.thinking=true``). Another
    method or another kind of part starts from its own defaults: nothing of the one that it replaces is kept.
    """
    result = dict(data)
    for key, change in changes.items():
        present, naming = result.get(key), "name" if key == "method" else "kind"
        if isinstance(change, Mapping) and isinstance(present, str):
            present = {naming: present}
        if isinstance(change, Mapping) and isinstance(present, Mapping):
            replaced = {naming} <= change.keys() & present.keys() and change[naming] != present[naming]
            result[key] = dict(change) if replaced else merged(present, change)
        else:
            result[key] = change
    return result


def _similar(path: Path) -> str:
    """Name the recipe that may have been meant, from the folder, or from those beside it when it does not exist."""
    folder = path.parent
    found = folder.glob("*.yaml") if folder.is_dir() else folder.parent.glob("*/*.yaml")
    names = [str(file) for file in found][:20]
    return nearest(str(path), names) if names else "; check the path"
