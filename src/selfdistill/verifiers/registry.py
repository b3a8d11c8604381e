"""Verifiers by name: ``build_verifier("maths", timeout=10)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from selfdistill.errors import RecipeError, nearest
from selfdistill.verifiers.arithmetic import ArithmeticVerifier
from selfdistill.verifiers.last_integer import LastIntegerVerifier
from selfdistill.verifiers.maths import MathsVerifier
from selfdistill.verifiers.reward_function import RewardFunctionVerifier, load_reward_function
from selfdistill.verifiers.verdict import Verifier


def _reward_function(path: str, threshold: float = 0.5) -> Verifier:
    return RewardFunctionVerifier(load_reward_function(path), threshold)


_BUILDERS: dict[str, Callable[..., Verifier]] = {
    "arithmetic": ArithmeticVerifier,
    "last_integer": LastIntegerVerifier,
    "maths": MathsVerifier,
    "reward_function": _reward_function,
}


def verifier_names() -> tuple[str, ...]:
    """Return the names that :func:`build_verifier` knows."""
    return tuple(_BUILDERS)


def build_verifier(name: str, **settings: Any) -> Verifier:
    """Return a verifier: arithmetic; last_integer; maths(timeout, memory_mib); reward_function(path, threshold).

    Raises :class:`RecipeError` naming the nearest valid name for an unknown verifier or setting, and for a setting that
    is missing.
    """
    if name not in _BUILDERS:
        raise RecipeError(f"unknown verifier {name!r}{nearest(name, _BUILDERS)}")
    parameters = inspect.signature(_BUILDERS[name]).parameters
    for key in settings:
        if key not in parameters:
            raise RecipeError(f"the verifier {name!r} has no setting {key!r}{nearest(key, parameters)}")
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in settings:
            raise RecipeError(f"the verifier {name!r} needs the setting {key!r}, e.g. {key}=rewards.py:score")
    return _BUILDERS[name](**settings)
