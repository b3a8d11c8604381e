"""The methods by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfdistill.errors import RecipeError, nearest
from selfdistill.methods.grpo import grpo, grpo_unnormalized
from selfdistill.methods.method import Method
from selfdistill.methods.opsd import opsd
from selfdistill.methods.paint import paint
from selfdistill.methods.sc_sdpo import hard_filter, paced, sc_sdpo
from selfdistill.methods.sdpo import sdpo
from selfdistill.methods.settings import with_settings
from selfdistill.methods.sft import sft
from selfdistill.methods.srpo import srpo

_METHODS: dict[str, Callable[[], Method]] = {
    function.__name__: function
    for function in (paint, opsd, sdpo, sc_sdpo, paced, hard_filter, srpo, grpo, grpo_unnormalized, sft)
}


def names() -> list[str]:
    """Return the registered names, PAINT first."""
    return list(_METHODS)


def build(name: str, **settings: Any) -> Method:
    """Return the named method with ``settings`` applied.

    ``build("sc_sdpo", alpha=1.0)``, ``build("paint", context={"hidden_wrong": 0.25})`` and
    ``build("paint", **{"context.hidden_wrong": 0.25})`` all work.

    Raises:
        RecipeError: for an unknown name or an unknown, malformed or contradictory setting; names the nearest valid one.
    """
    return with_settings(_registered(name)(), settings)


def summary(name: str) -> str:
    """Return the one line that says what the named method is.

    Raises:
        RecipeError: for an unknown name.
    """
    return (_registered(name).__doc__ or "").strip().splitlines()[0].removeprefix("Return ").rstrip(".")


def _registered(name: str) -> Callable[[], Method]:
    if name not in _METHODS:
        raise RecipeError(f"unknown method {name!r}{nearest(name, _METHODS)}")
    return _METHODS[name]
