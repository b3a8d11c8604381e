"""A method as commented YAML: every part with what it is, every setting with its value, unit and source.

In: a method. Out: text that can be pasted into a recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import yaml

from selfdistill.methods.method import Method

COLUMN = 44
"""Comments start here, where the setting leaves room."""


def describe(method: Method) -> str:
    """Return the method as YAML with comments."""
    lines = [f"name: {method.name}", f"# {method.paper}"]
    for field in dataclasses.fields(method):
        part = getattr(method, field.name)
        if dataclasses.is_dataclass(part):
            lines += ["", *_part(field.name, part, depth=0)]
    return "\n".join(lines) + "\n"


def _part(name: str, part: Any, depth: int) -> Iterator[str]:
    indent = "  " * depth
    summary = (type(part).__doc__ or "").strip().splitlines()[0]
    yield f"{indent}{name}:  # {summary.replace('``', '')}"
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            yield from _part(field.name, value, depth + 1)
        else:
            yield _setting(field.name, value, descriptions(type(part)).get(field.name), depth + 1)


def _setting(name: str, value: Any, description: str | None, depth: int) -> str:
    text = f"{'  ' * depth}{name}: {yaml.safe_dump(value, default_flow_style=True, width=10_000).splitlines()[0]}"
    return f"{text.ljust(COLUMN)}  # {' '.join(description.replace('``', '').split())}" if description else text


def descriptions(part: type) -> dict[str, str]:
    """Return what the docstrings under a part's fields say, by field name."""
    fields: dict[str, Any] = getattr(part, "__pydantic_fields__", {})
    return {name: field.description for name, field in fields.items() if field.description}
