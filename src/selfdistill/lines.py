"""Files of JSON lines that grow while a run goes on, and whose last line a kill may tear."""

from __future__ import annotations

from pathlib import Path

_BLOCK = 65_536


def drop_torn_line(path: Path) -> None:
    """Cut a file after its last newline, reading no more than the torn line; a missing file is no error.

    Raises:
        OSError: the file cannot be read or written.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = position = file.seek(0, 2)
        while position > 0:
            start = max(0, position - _BLOCK)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        if position < end:
            file.truncate(position)
