"""Rendering: from privileged text to the self-teacher's token ids. The only place where a PrivilegedPrompt is built.

In: the question, the privileged texts, and how they go into the conversation. Out: a prompt that fits the teacher's
context. What is too long is cut from the privileged texts and from nothing else: the question, the headings, the
closing line and the assistant header always stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from selfdistill.contexts.prompt import PrivilegedPrompt
from selfdistill.errors import DataError
from selfdistill.questions.question import Message, Question

if TYPE_CHECKING:
    from selfdistill.rollouts.chat import ChatFormat

Extend = Callable[..., str]
"""Takes the last user turn and the privileged texts, in order; returns the extended user turn."""


@dataclass(frozen=True, slots=True)
class PromptFrame:
    """What every privileged prompt of a run has to fit into."""

    chat: ChatFormat
    """Renders messages and counts tokens."""
    max_tokens: int
    """Longest rendered prompt of the teacher, in tokens, assistant header included."""
    thinking: bool | None
    """Whether the teacher's chat template opens a thinking block; None leaves the template's default."""

    def with_thinking(self, thinking: bool | None) -> PromptFrame:
        """Return this frame with a context's own ``thinking``, or unchanged when that is None."""
        return self if thinking is None else replace(self, thinking=thinking)


def render(
    frame: PromptFrame,
    question: Question,
    extend: Extend,
    texts: Sequence[str],
    *,
    source: str,
    overlap: float | None = None,
    hidden_ratio: float | None = None,
    demonstrator: int | None = None,
) -> PrivilegedPrompt:
    """Return the teacher's prompt: the question's messages, the last user turn extended by the privileged ``texts``.

    If it is longer than ``frame.max_tokens``, the first text is cut at its end until the prompt fits; only when nothing
    of it is left, the second, and so on. ``truncated_tokens`` counts by how many tokens that made the prompt shorter.

    Raises:
        DataError: if the prompt does not fit even without any privileged text, or the question does not end with a user
            turn.
    """

    def messages(shown: Sequence[str]) -> tuple[Message, ...]:
        return _extend_last_turn(question, lambda turn: extend(turn, *shown))

    def encode(shown: Sequence[str]) -> tuple[int, ...]:
        return tuple(frame.chat.render(messages(shown), thinking=frame.thinking))

    shown = list(texts)
    token_ids = full = encode(shown)
    for index in range(len(shown)):
        if len(token_ids) <= frame.max_tokens:
            break
        shown[index] = _longest_fitting_prefix(shown, index, lambda trial: len(encode(trial)) <= frame.max_tokens)
        token_ids = encode(shown)
    if len(token_ids) > frame.max_tokens:
        raise DataError(
            f"question {question.id!r} needs {len(token_ids)} teacher prompt tokens before any privileged text, "
            f"but only {frame.max_tokens} are allowed: raise the prompt limit or leave the question out"
        )
    return PrivilegedPrompt(
        messages=messages(shown),
        token_ids=token_ids,
        shown="\n\n".join(filter(None, shown)),
        source=source,
        overlap=overlap,
        hidden_ratio=hidden_ratio,
        demonstrator=demonstrator,
        truncated_tokens=len(full) - len(token_ids),
    )


def _extend_last_turn(question: Question, extend: Callable[[str], str]) -> tuple[Message, ...]:
    if not question.messages or question.messages[-1]["role"] != "user":
        raise DataError(
            f"question {question.id!r} does not end with a user turn, which contexts extend: end its messages with one"
        )
    *before, last = question.messages
    return (*before, {**last, "content": extend(last["content"])})


def _longest_fitting_prefix(texts: Sequence[str], index: int, fits: Callable[[Sequence[str]], bool]) -> str:
    """Return a prefix of ``texts[index]`` with which the prompt fits, by bisection; empty if none does.

    Token counts need not grow evenly with characters (merges), so the result is only guaranteed to fit, and to be
    within such a bump of the longest.
    """
    text = texts[index]

    def with_prefix(length: int) -> list[str]:
        return [*texts[:index], text[:length], *texts[index + 1 :]]

    fitting, failing = 0, len(text)
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        if fits(with_prefix(middle)):
            fitting = middle
        else:
            failing = middle
    return text[:fitting]
