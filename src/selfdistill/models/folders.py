"""Folders that are either complete or absent: written under a temporary name, then renamed.

A process that is killed while it writes leaves a ``.NAME.partial-*`` folder beside the target, never half a target.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; on success it becomes ``target`` (replacing it), on an error it is removed.

    The rename is atomic when ``target`` does not exist yet. An existing target is first moved aside: a crash exactly
    between the two renames leaves both versions under hidden names and loses neither.
    """
    target = target.absolute()
    suffix = uuid.uuid4().hex[:8]
    partial = target.with_name(f".{target.name}.partial-{suffix}")
    partial.mkdir(parents=True)
    try:
        yield partial
        _share(partial)
        previous = target.with_name(f".{target.name}.previous-{suffix}")
        if target.exists():
            os.rename(target, previous)
        os.rename(partial, target)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sweep(target: Path) -> None:
    """Remove what killed processes left beside ``target``, which nobody may be writing meanwhile.

    A target that had been moved aside when the process was killed gets its name back.
    """
    for previous in target.parent.glob(f".{target.name}.previous-*"):
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
        else:
            os.rename(previous, target)
    for partial in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


def _share(folder: Path) -> None:
    """Give every file a new file's permissions: weights come from temporary files that only their owner can read."""
    probe = folder / f".{uuid.uuid4().hex}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
