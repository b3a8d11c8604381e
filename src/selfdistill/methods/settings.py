"""Overriding a method's settings: from nested or dotted names to a new, validated Method.

``{"context.hidden_wrong": 0.25}``, ``{"context": {"hidden_wrong": 0.25}}`` and, where only one part has a setting of that name, plain
``{"hidden_wrong": 0.25}`` mean the same. Giving a part another ``kind`` (or writing the kind in place of the part) starts from that kind's own defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from selfdistill.errors import RecipeError, nearest
from selfdistill.methods.method import ADAPTER, Method
from selfdistill.validation import explain

OBJECTIVES = ("distillation", "policy", "imitation")


def with_settings(method: Method, settings: Mapping[str, Any]) -> Method:
    """Return ``method`` with ``settings`` applied.

    Raises:
        RecipeError: for an unknown, ambiguous, malformed or contradictory setting; names the nearest valid one.
    """
    if not settings:
        return method
    data = ADAPTER.dump_python(method)
    for name, value in settings.items():
        data = _merge(data, nested(_full_path(data, name), value), method.name)
    return validated(data, f"method {method.name!r}")


def validated(data: Mapping[str, Any], where: str) -> Method:
    """Build a Method from plain data, turning pydantic's report into one sentence."""
    try:
        return ADAPTER.validate_python(dict(data))
    except ValidationError as error:
        raise RecipeError(f"{where}: {explain(error, Method)}") from None


def nested(path: str, value: Any) -> dict[str, Any]:
    """Turn ``a.b.c`` and a value into ``{"a": {"b": {"c": value}}}``."""
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def _full_path(data: Mapping[str, Any], name: str) -> str:
    head = name.split(".")[0]
    if head in data:
        return name
    if "." in name:
        raise RecipeError(f"method {data['name']!r} has no part {head!r}{nearest(head, data)}")
    owners = [path for path in _leaves(data) if path.rsplit(".", 1)[-1] == name]
    if len(owners) == 1:
        return owners[0]
    if owners:
        raise RecipeError(f"setting {name!r} of method {data['name']!r} is ambiguous; write one of {', '.join(owners)}")
    leaves = {path.rsplit(".", 1)[-1] for path in _leaves(data)}
    raise RecipeError(f"method {data['name']!r} has no setting {name!r}{nearest(name, leaves | set(data))}")


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _merge(data: Mapping[str, Any], changes: Mapping[str, Any], method_name: str) -> dict[str, Any]:
    merged = dict(data)
    for name, change in changes.items():
        present = merged.get(name)
        if isinstance(present, Mapping) and isinstance(change, str):
            change = {"kind": change}  # `context: full_solution` is short for `context: {kind: full_solution}`
        if present is None and name in OBJECTIVES and name in merged and isinstance(change, Mapping):
            present = {}
        if isinstance(present, Mapping) and isinstance(change, Mapping):
            other_kind = "kind" in change and change["kind"] != present.get("kind", change["kind"])
            merged[name] = dict(change) if other_kind else _merge(present, change, method_name)
        else:
            merged[name] = change
    return merged
