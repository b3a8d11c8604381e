"""Overriding a method's settings: from nested or dotted names to a new, validated Method.

``{"context.hidden_wrong": 0.25}``, ``{"context": {"hidden_wrong": 0.25}}`` and, where only one part has a setting of
that name, plain ``{"hidden_wrong": 0.25}`` mean the same. Giving a part another ``kind`` (or writing the kind in place
of the part) starts from that kind's own defaults; the order in which settings are written does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from selfdistill.errors import RecipeError, nearest
from selfdistill.methods.method import ADAPTER, Method
from selfdistill.validation import admitted, explain, kind_of, setting_types

OBJECTIVES = ("distillation", "policy", "imitation")


def with_settings(method: Method, settings: Mapping[str, Any]) -> Method:
    """Return ``method`` with ``settings`` applied.

    Raises:
        RecipeError: for an unknown, ambiguous, malformed or contradictory setting; names the nearest valid one.
    """
    if not settings:
        return method
    data = ADAPTER.dump_python(method)
    for name, value in sorted(((str(name), value) for name, value in settings.items()), key=_turn):
        data = _merge(data, nested(_full_path(data, name), value))
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


def _turn(setting: tuple[str, Any]) -> int:
    """Return when a setting is applied: kinds first, which reset their part; then parts; then what is inside parts."""
    name, value = setting
    is_part = name in setting_types(Method)
    if name.endswith(".kind") or (is_part and (isinstance(value, str) or _kind(value) is not None)):
        return 0
    return 1 if is_part else 2


def _full_path(data: Mapping[str, Any], name: str) -> str:
    head = name.split(".")[0]
    if head in data:
        return name
    if "." in name:
        raise RecipeError(f"method {data['name']!r} has no part {head!r}{nearest(head, data)}")
    paths = list(_leaves(data, Method))
    owners = [path for path in paths if path.rsplit(".", 1)[-1] == name]
    if len(owners) == 1:
        return owners[0]
    if owners:
        raise RecipeError(f"setting {name!r} of method {data['name']!r} is ambiguous; write one of {', '.join(owners)}")
    valid = {*data, *(path.rsplit(".", 1)[-1] for path in paths)} - {"kind", "name", "paper"}
    raise RecipeError(f"method {data['name']!r} has no setting {name!r}{nearest(name, valid)}")


def _leaves(data: Mapping[str, Any], owner: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings of the parts in ``data``, those that have their defaults included."""
    for name, annotation in setting_types(owner).items():
        parts = [option for option in admitted(annotation) if setting_types(option)]
        value = data.get(name)
        chosen = [part for part in parts if len(parts) == 1 or kind_of(part) == _kind(value)]
        if chosen and (isinstance(value, Mapping) or name not in data):
            yield from _leaves(value or {}, chosen[0], f"{prefix}{name}.")
        elif not parts:
            yield f"{prefix}{name}"


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, Mapping) else None


def _merge(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(data)
    for name, change in changes.items():
        present = merged.get(name)
        if isinstance(present, Mapping) and isinstance(change, str):
            change = {"kind": change}  # `context: full_solution` is short for `context: {kind: full_solution}`
        if present is None and name in OBJECTIVES and name in merged and isinstance(change, Mapping):
            present = {}
        if isinstance(present, Mapping) and isinstance(change, Mapping):
            other_kind = "kind" in change and change["kind"] != present.get("kind", change["kind"])
            merged[name] = dict(change) if other_kind else _merge(present, change)
        else:
            merged[name] = change
    return merged
