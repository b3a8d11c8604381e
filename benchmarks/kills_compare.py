"""What two run folders have in common: everything but times, to the last bit; and what a killed run left about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TIMED = ("seconds/", "tokens_per_second/")
"""Beginnings of the names of metrics that no two runs share."""
OWN = ("recipe.yaml", "environment.json", ".lock")
"""Files that name the folder, the machine or the process."""


def differences(folder: Path, expected: Path) -> list[str]:
    """Return the files, by path in the run folder, that are not what they are in ``expected``; and those in excess."""
    own, other = (_files(one) for one in (folder, expected))
    found = [f"{name} is left over" for name in sorted(own - other)]
    found += [f"{name} is missing" for name in sorted(other - own)]
    for name in sorted(own & other):
        if Path(name).name not in OWN and _content(folder / name) != _content(expected / name):
            found.append(f"{name} differs")
    return found


def is_free(folder: Path) -> bool:
    """Say whether the run folder can be locked."""
    from selfdistill.errors import TrainingError
    from selfdistill.training.lock import RunLock

    try:
        with RunLock(folder):
            return True
    except TrainingError:
        return False


def steps_done(folder: Path) -> int:
    """Return the last step whose metrics stand in the folder, whole."""
    return len(_lines(folder / "metrics.jsonl"))


def steps_saved(folder: Path) -> int:
    """Return the step of the newest complete checkpoint."""
    saved = folder.glob("checkpoints/step-*/state.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in saved), default=0)


def responses_kept(folder: Path) -> int:
    """Return how many finished responses of the step that was going on are on disk."""
    return sum(max(0, len(_lines(path)) - 1) for path in folder.glob("pending-*.jsonl"))


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _content(file: Path) -> Any:
    if file.name == "metrics.jsonl":
        rows = [json.loads(line) for line in _lines(file)]
        return [{key: value for key, value in row.items() if not key.startswith(TIMED)} for row in rows]
    if file.name == "generations.jsonl":  # in the order in which they finished, which an interruption changes
        return sorted(_lines(file))
    return file.read_bytes()


def _lines(file: Path) -> list[bytes]:
    """Return the lines that were written to their end."""
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []
