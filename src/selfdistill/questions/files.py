"""Rows of a local data file or of a data set on the hub.

In: a path or a hub id. Out: the rows as dictionaries, as they are in the source. Errors name the file and the line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from selfdistill.errors import DataError, nearest

Row = dict[str, Any]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def read_rows(path: str, *, split: str = "train", limit: int | None = None) -> list[Row]:
    """Return the first ``limit`` rows (None: all) of a .jsonl, .json, .csv or .parquet file, a folder or a hub id.

    A folder is searched for ``<split>.<suffix>``. A hub id is ``owner/name`` or ``owner/name:configuration``; only
    there, and for folders, ``split`` matters. Raises :class:`DataError` for whatever cannot be read, and for no rows.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = _file_of_split(file, split)
    if file.is_file():
        rows = list(islice(_reader(file)(file), limit))
    elif file.suffix not in _READERS and not file.parent.is_dir() and _HUB_ID.fullmatch(path):
        rows = list(islice(_hub_rows(path, split), limit))
    else:
        raise DataError(_missing(file, path))
    if not rows:
        raise DataError(f"{path} holds no rows; give a file with at least one question")
    return rows


def source_name(path: str, split: str = "train") -> str:
    """Return the short name that ids start with: the file's stem, or name and split of a folder or hub data set."""
    file = Path(path)
    return file.stem if file.suffix in _READERS else f"{file.name.replace(':', '-')}-{split}"


def _missing(file: Path, path: str) -> str:
    folder = file.parent
    names = [entry.name for entry in folder.iterdir() if entry.suffix in _READERS] if folder.is_dir() else []
    where = nearest(file.name, names) if folder.is_dir() else f" (the folder {folder} does not exist either)"
    return f"there is no data file {path}{where}; give an existing file, or a hub id such as openai/gsm8k:main"


def _file_of_split(folder: Path, split: str) -> Path:
    for suffix in _READERS:
        if (folder / f"{split}{suffix}").is_file():
            return folder / f"{split}{suffix}"
    names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:20]) or "nothing"
    raise DataError(
        f"the folder {folder} has no {split}.jsonl, .json, .csv or .parquet (it holds {names}); "
        "name the file itself, or set the split"
    )


def _reader(file: Path) -> Callable[[Path], Iterator[Row]]:
    if file.suffix not in _READERS:
        raise DataError(f"{file} has an unknown format {file.suffix!r}; use one of {', '.join(_READERS)}")
    return _READERS[file.suffix]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from error


def _jsonl_rows(file: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{file}:{number} is not JSON ({error.msg} at column {error.colno}); write one JSON object per line"
            ) from error
        yield _object(row, f"{file}:{number}")


def _json_rows(file: Path) -> Iterator[Row]:
    try:
        content = json.loads(_text(file))
    except json.JSONDecodeError as error:
        remedy = "name it .jsonl if it has one object per line" if error.msg == "Extra data" else "correct the file"
        raise DataError(f"{file}:{error.lineno} is not JSON ({error.msg} at column {error.colno}); {remedy}") from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise DataError(
                f"{file} holds an object with {len(lists)} lists (keys {', '.join(content)}); "
                "it must be a list of rows, or an object with exactly one list"
            )
        content = lists[0]
    if not isinstance(content, list):
        raise DataError(f"{file} holds a {type(content).__name__}; it must be a list of rows (objects)")
    for number, row in enumerate(content, start=1):
        yield _object(row, f"{file} row {number}")


def _csv_rows(file: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)  # worked solutions exceed the standard 128 KiB
    reader = csv.DictReader(_text(file).splitlines(keepends=True), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{file}:{reader.line_num} does not have the {len(reader.fieldnames or ())} fields of the header; "
                    "quote fields that contain commas or line breaks"
                )
            yield dict(row)
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num} is not CSV ({error}); correct the line") from error


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a readable Parquet file ({error}); write it again") from error


def _hub_rows(path: str, split: str) -> Iterator[Row]:
    name, _, configuration = path.partition(":")
    try:
        import datasets

        yield from (dict(row) for row in datasets.load_dataset(name, configuration or None, split=split))
    except Exception as error:
        raise DataError(
            f"{path!r} is no local file, and its split {split!r} could not be loaded from the hub "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); correct the name, or download the data "
            "and give the path of a .jsonl, .json, .csv or .parquet file"
        ) from error


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(row).__name__}; every row must be an object with named columns")
    return row


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
