r"""From rows to questions: the only place where a :class:`Question` is made.

In: rows (:mod:`.files`) and a :class:`ColumnMapping`. Out: questions with unique, content-independent ids. Answers stay
text (``033`` and ``27.0`` keep their form); where no answer column is mapped, the answer is read off the solution.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from selfdistill.errors import DataError
from selfdistill.questions.columns import ColumnMapping, resolve_columns
from selfdistill.questions.files import Row, read_rows, source_name
from selfdistill.questions.question import Message, Question
from selfdistill.verifiers.extraction import after_hashes, reference_answer

_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Wording:
    r"""What is put around the text of a row."""

    prompt_template: str = "{prompt}"
    r"""The last user turn, ``{prompt}`` standing for its text, e.g. ``{prompt}\nPut your final answer in \boxed{}.``"""
    system: str | None = None
    """A system message in front of the conversation."""
    strip_calculator_marks: bool = False
    """Remove GSM8K's ``<<48/2=24>>`` from solutions."""

    def __post_init__(self) -> None:
        if "{prompt}" not in self.prompt_template:
            raise DataError(
                f"data.prompt_template={self.prompt_template!r} lacks the placeholder {{prompt}}; "
                "write it where the question belongs"
            )


_PLAIN = Wording()


def load_questions(
    path: str,
    *,
    columns: ColumnMapping | None = None,
    split: str = "train",
    limit: int | None = None,
    wording: Wording = _PLAIN,
    notes: list[str] | None = None,
) -> list[Question]:
    """Return the questions of a file, folder or hub data set (:func:`.files.read_rows`), the first ``limit`` of them.

    What was guessed about the columns is appended to ``notes``. Raises :class:`DataError` naming file, row and remedy.
    """
    rows = read_rows(path, split=split, limit=limit)
    return questions_from_rows(rows, columns=columns, source=source_name(path, split), wording=wording, notes=notes)


def questions_from_rows(
    rows: Sequence[Row],
    *,
    columns: ColumnMapping | None = None,
    source: str,
    wording: Wording = _PLAIN,
    notes: list[str] | None = None,
) -> list[Question]:
    """Return one question per row, in order; ids are unique. ``source`` starts the ids and the error messages."""
    available = list(dict.fromkeys(name for row in rows for name in row))
    resolved, remarks = resolve_columns(columns or ColumnMapping(), available, source)
    if notes is not None:
        notes.extend(remarks)
    questions = [
        question_from_row(row, columns=resolved, index=index, source=source, wording=wording)
        for index, row in enumerate(rows)
    ]
    first: dict[str, int] = {}
    for index, question in enumerate(questions):
        if first.setdefault(question.id, index) != index:
            raise DataError(
                f"{source}: rows {first[question.id] + 1} and {index + 1} have the same id {question.id!r}; "
                "make the ids unique, or set data.columns.id=null to number the rows"
            )
    return questions


def question_from_row(
    row: Mapping[str, Any], *, columns: ColumnMapping, index: int, source: str, wording: Wording = _PLAIN
) -> Question:
    """Return the question in one row. ``columns`` are taken literally: every name that is not None must hold a value.

    ``index`` counts rows from 0; messages count from 1. Raises :class:`DataError` for an empty or malformed value.
    """
    where = f"{source} row {index + 1}"
    value = _value(row, columns.prompt, "prompt", where)
    solution = answer = None
    if columns.solution is not None:
        solution = _scalar_text(_value(row, columns.solution, "solution", where))
        if wording.strip_calculator_marks:
            solution = _CALCULATOR_MARK.sub("", solution)
    if columns.answer is not None:
        answer = _scalar_text(_value(row, columns.answer, "answer", where)).strip()
        answer = after_hashes(answer) or answer  # a worked solution in GSM8K's form states it after ####
    elif solution is not None:
        answer = reference_answer(solution)
    name = f"{source}:{index}" if columns.id is None else str(_value(row, columns.id, "id", where))
    return Question(
        id=name,
        messages=_messages(value, wording, f"{where}, column {columns.prompt!r}"),
        solution=solution,
        answer=answer,
        columns=MappingProxyType(dict(row)),
        conversational=not isinstance(value, str),
    )


def require(questions: Iterable[Question], fields: Sequence[str], why: str) -> None:
    """Demand that no question lacks one of ``fields`` (``solution``, ``answer``); ``why`` names who needs it.

    Raises :class:`DataError`, e.g. for ``why="the method 'paint' (context partial_solution)"``.
    """
    questions = list(questions)
    for field in fields:
        lacking = [question for question in questions if getattr(question, field) is None]
        if lacking:
            raise DataError(
                f"{len(lacking)} of {len(questions)} questions have no {field} (first: {lacking[0].id!r}), which {why} "
                f"needs; set data.columns.{field} to the column that holds it "
                f"(columns: {', '.join(lacking[0].columns) or 'none'}), or choose one that does not need it"
            )


def _value(row: Mapping[str, Any], column: str, field: str, where: str) -> Any:
    value = row.get(column)
    if value is None or (isinstance(value, (str, list)) and not (value.strip() if isinstance(value, str) else value)):
        remedy = "fill it in or remove the row"
        if field in ("solution", "answer"):
            remedy += f", or set data.columns.{field}=null if there is none"
        raise DataError(f"{where}: the {field} (column {column!r}) is empty: {value!r}; {remedy}")
    return value


def _scalar_text(value: object) -> str:
    """Numbers keep the form that they have in the file (27.0 stays ``27.0``); structures become JSON."""
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _messages(value: object, wording: Wording, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise DataError(f"{where} is a {type(value).__name__}; a prompt is a string or a list of chat messages")
    messages = [_message(message, where) for message in value]
    if messages[-1]["role"] != "user":
        raise DataError(
            f"{where} ends with a turn of role {messages[-1]['role']!r}; remove it, a prompt ends with a user turn"
        )
    messages[-1]["content"] = wording.prompt_template.replace("{prompt}", messages[-1]["content"])
    if wording.system is not None:
        if messages[0]["role"] == "system":
            raise DataError(f"{where} starts with its own system message; remove data.system or the row's message")
        messages.insert(0, {"role": "system", "content": wording.system})
    return tuple(MappingProxyType(message) for message in messages)


def _message(message: object, where: str) -> dict[str, str]:
    role = message.get("role") if isinstance(message, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if role not in _ROLES or not isinstance(content, str) or not content.strip():
        raise DataError(
            f"{where} holds the message {str(message)[:120]!r}; "
            f"write {{'role': one of {', '.join(_ROLES)}, 'content': text}} with text that is not empty"
        )
    return {"role": role, "content": content}
