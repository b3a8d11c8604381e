"""From pydantic's report to one sentence: which setting, which value, what is wrong, and the nearest valid name.

In: a ``ValidationError`` and the model or pydantic dataclass that was being built. Out: the sentence, with the setting
named as a user writes it (``context.template.heading``), without the union tags that pydantic puts into its locations.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from selfdistill.errors import nearest

PART = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""Of a method's parts: unknown settings are errors, and the docstring under a setting describes it."""
SECTION = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
"""Of a recipe's sections."""
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
NOT_A_PART = ("dataclass_type", "model_type", "model_attributes_type", "dict_type")


def explain(error: ValidationError, root: Any) -> str:
    """Return one sentence about ``error``, raised while building ``root`` (a model or a pydantic dataclass).

    Of several problems a misspelt name comes first: what then seems to be missing is often what was misspelt.
    """
    problem = min(error.errors(include_url=False), key=_urgency)
    path, owner, here = _walk(root, [str(part) for part in problem["loc"]])
    name, value, context = ".".join(path), problem["input"], problem.get("ctx", {})
    match problem["type"]:
        case kind if kind in UNKNOWN:
            return f"unknown setting {name!r}{nearest(path[-1], setting_types(owner))}"
        case kind if kind in MISSING:
            return f"{name} is missing"
        case "union_tag_invalid":
            return f"{name}: unknown kind {context['tag']!r}{nearest(str(context['tag']), _kinds(here))}"
        case "union_tag_not_found":
            return f"{name} names no kind; write one of {', '.join(_kinds(here))}"
        case kind if kind in NOT_A_PART:
            return f"{name} is {_shown(value)}: {_remedy(here)}"
        case "literal_error":
            return f"{name} is {_shown(value)}: {_sentence(problem)}{_nearest_literal(value, str(context['expected']))}"
        case "value_error":
            return _own_words(path, problem["msg"].removeprefix("Value error, "))
    given = "a mapping" if isinstance(value, Mapping) else _shown(value)
    return f"{name} is {given}: {_sentence(problem)}"


def setting_types(owner: Any) -> dict[str, Any]:
    """Return the settings that a model or dataclass declares, with their annotations; empty for anything else."""
    if isinstance(owner, type) and issubclass(owner, BaseModel):
        return {name: field.annotation for name, field in owner.model_fields.items()}
    if isinstance(owner, type) and dataclasses.is_dataclass(owner):
        hints = typing.get_type_hints(owner)
        return {field.name: hints[field.name] for field in dataclasses.fields(owner)}
    return {}


def admitted(annotation: Any) -> list[Any]:
    """Return the types that an annotation admits, None aside: the members of a union, or the one type that it is."""
    if typing.get_origin(annotation) is typing.Annotated:
        return admitted(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in admitted(part)]
    return [annotation] if isinstance(annotation, type) and annotation is not type(None) else []


def kind_of(part: Any) -> str | None:
    """Return the ``kind`` that a model or dataclass declares as its default, or None."""
    default: Any = None
    if isinstance(part, type) and issubclass(part, BaseModel):
        default = part.model_fields["kind"].default if "kind" in part.model_fields else None
    elif dataclasses.is_dataclass(part):
        default = next((field.default for field in dataclasses.fields(part) if field.name == "kind"), None)
    return default if isinstance(default, str) else None


def _urgency(problem: ErrorDetails) -> int:
    if problem["type"] in UNKNOWN:
        return 0
    return 2 if problem["type"] in MISSING else 1


def _walk(root: Any, location: Sequence[str]) -> tuple[list[str], Any, Any]:
    """Follow a location through the types, dropping the union tags that pydantic puts in.

    Returns the names, the type that owns the last one, and that one's own annotation.
    """
    path: list[str] = []
    here, owner = root, root
    for name in location:
        options = admitted(here)
        tagged = [option for option in options if kind_of(option) == name]
        if tagged:
            here = tagged[0]
        elif not (path and name in {option.__name__ for option in options}):
            owner = options[0] if len(options) == 1 else here
            path.append(name)
            here = setting_types(owner).get(name)
    return path, owner, here


def _kinds(annotation: Any) -> list[str]:
    return [kind for kind in map(kind_of, admitted(annotation)) if kind is not None]


def _remedy(annotation: Any) -> str:
    """Say what belongs in place of a value that is no part."""
    kinds, options = _kinds(annotation), admitted(annotation)
    if len(kinds) > 1:
        return f"write a kind ({', '.join(kinds)}) or a mapping of settings"
    return f"write a mapping of settings ({', '.join(setting_types(options[0]) if options else ())})"


def _nearest_literal(value: Any, expected: str) -> str:
    valid = [word.strip().strip("'") for word in expected.replace(" or ", ",").split(",")]
    if value is False and "off" in valid:
        return " (YAML reads a bare off as false; put it in quotes)"
    return nearest(value, valid) if isinstance(value, str) else ""


def _own_words(path: Sequence[str], message: str) -> str:
    """Place a message of our own, which may already name its setting, behind the path to it."""
    before = path[:-1] if path and message.startswith((f"{path[-1]}=", f"{path[-1]} is ")) else path
    return f"{'.'.join(before)}: {message}" if before else message


def _sentence(problem: ErrorDetails) -> str:
    return problem["msg"][0].lower() + problem["msg"][1:]


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)
