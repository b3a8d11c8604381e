"""From pydantic's report to one sentence: which setting, which value, what is wrong, and the nearest valid name for a typo."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from selfdistill.errors import nearest

UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


def explain(error: ValidationError, root: Any) -> str:
    """Return one sentence about the first problem in ``error``, raised while building ``root`` (a model or a pydantic dataclass)."""
    problem = error.errors(include_url=False)[0]
    path, owner = _walk(root, [str(part) for part in problem["loc"]])
    name, value = ".".join(path), problem.get("input")
    if problem["type"] in UNKNOWN:
        return f"unknown setting {name!r}{nearest(path[-1], setting_types(owner))}"
    if problem["type"] == "union_tag_invalid":
        context = problem.get("ctx", {})
        kinds = [kind.strip().strip("'") for kind in str(context.get("expected_tags", "")).split(",")]
        return f"{name}: unknown kind {context.get('tag')!r}{nearest(str(context.get('tag')), kinds)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error" and isinstance(value, str):
        valid = [part.strip().strip("'") for part in str(problem.get("ctx", {}).get("expected", "")).replace(" or ", ",").split(",")]
        return f"{name} is {value!r}: {message[0].lower()}{message[1:]}{nearest(value, valid)}"
    if not name:
        return message
    if isinstance(value, Mapping | None) or not isinstance(value, str | int | float | bool | list):
        return f"{name}: {message}"
    return f"{name} is {value!r}: {message[0].lower()}{message[1:]}"


def setting_types(owner: Any) -> dict[str, Any]:
    """Return the settings that a model or dataclass declares, with their annotations; empty for anything else."""
    if isinstance(owner, type) and issubclass(owner, BaseModel):
        return {name: field.annotation for name, field in owner.model_fields.items()}
    if dataclasses.is_dataclass(owner):
        assert isinstance(owner, type)
        hints = typing.get_type_hints(owner)
        return {field.name: hints[field.name] for field in dataclasses.fields(owner)}
    return {}


def _walk(root: Any, location: list[str]) -> tuple[list[str], Any]:
    """Follow a location through the types: drop the union tags that pydantic puts in, and find the type that owns the last name."""
    path: list[str] = []
    here, owner = root, root
    for name in location:
        tagged = [option for option in _options(here) if _kind(option) == name]
        if tagged:
            here = tagged[0]
            continue
        if path and name in {getattr(option, "__name__", None) for option in _options(here)}:
            continue
        owner = _options(here)[0] if len(_options(here)) == 1 else here
        path.append(name)
        here = setting_types(owner).get(name)
    return path, owner


def _options(annotation: Any) -> list[Any]:
    """Return the models and dataclasses that an annotation admits."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in _options(part)]
    return [annotation] if setting_types(annotation) or isinstance(annotation, type) and annotation is not type(None) else []


def _kind(option: Any) -> Any:
    if not dataclasses.is_dataclass(option):
        return None
    return next((field.default for field in dataclasses.fields(option) if field.name == "kind"), None)
