"""Replacing an engine's own weights: nobody draws meanwhile, and afterwards nobody takes half of them for the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from selfdistill.errors import RolloutError
from selfdistill.rollouts.control import Control
from selfdistill.rollouts.sync.handshake import Difference, shake_hands
from selfdistill.rollouts.sync.versions import Export


@contextlib.contextmanager
def paused(control: Control, version: str) -> Iterator[None]:
    """Hold an engine's requests back while its weights become ``version``; it serves again in any case.

    Until the block has ended well its weights have a name that no request accepts.

    Raises:
        RolloutError: the engine cannot be paused or resumed.
    """
    try:
        control.pause()
        control.set_version(f"updating to {version}")
        yield
    except BaseException:
        with contextlib.suppress(RolloutError):
            refuse(control, version)
        with contextlib.suppress(RolloutError):
            control.resume()
        raise
    control.resume()


def proven(control: Control, export: Export, tolerance: float) -> Difference:
    """Return how far the engine is from the trainer; weights that are not proven lose their name.

    Raises:
        Stale: the engine draws from other weights.
        RolloutError: the engine does not answer.
    """
    try:
        return shake_hands(control, export.served, export.text, tolerance)
    except RolloutError:
        with contextlib.suppress(RolloutError):
            refuse(control, export.served.version)
        raise


def refuse(control: Control, version: str) -> None:
    """Give an engine's weights a name that no request accepts.

    Raises:
        RolloutError: the engine does not answer.
    """
    control.set_version(f"not proven to be {version}")
