"""All randomness of a run, derived from one seed by name.

A stream is addressed, never advanced: ``derive(seed, "sampling", step, question_id, sibling)`` is the same number
whatever was drawn before. A resumed run therefore continues the same sequence without storing generator states, and no
two processes can draw the same stream by accident.
"""

from __future__ import annotations

import hashlib
import random


def derive(seed: int, *names: object) -> int:
    """Return a 63-bit integer that depends on ``seed`` and on every name, in order."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def python_random(seed: int, *names: object) -> random.Random:
    """Return a standard-library generator at the start of the named stream."""
    return random.Random(derive(seed, *names))
