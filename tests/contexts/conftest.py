"""A chat format whose tokens are characters, and builders of groups."""

from collections.abc import Callable, Sequence

import pytest

from selfdistill.contexts import PromptFrame
from selfdistill.questions.question import Message, Question
from selfdistill.rollouts.rollout import Rollout
from selfdistill.verifiers.verdict import Group, Verdict

HEADER = "<assistant>"


class CharacterChat:
    """Every character is a token; ``thinking`` shows up in the header."""

    def __init__(self) -> None:
        self.rendered = 0

    def render(self, messages: Sequence[Message], *, thinking: bool | None = None) -> tuple[int, ...]:
        self.rendered += 1
        turns = "".join(f"<{message['role']}>{message['content']}\n" for message in messages)
        return tuple(map(ord, turns + HEADER + ("<think>" if thinking else "")))

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))


@pytest.fixture
def frame() -> Callable[..., PromptFrame]:
    def build(max_tokens: int = 10_000, thinking: bool | None = None) -> PromptFrame:
        return PromptFrame(chat=CharacterChat(), max_tokens=max_tokens, thinking=thinking)  # type: ignore[arg-type]

    return build


@pytest.fixture
def group() -> Callable[..., Group]:
    def build(
        texts: Sequence[str],
        verdicts: Sequence[Verdict | bool] | None = None,
        *,
        solution: str | None = "17+25=42\n42+38=80\n#### 80",
        prompt: str = "17+25+38",
        question_id: str = "q1",
    ) -> Group:
        messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt})
        question = Question(id=question_id, messages=messages, solution=solution)
        rollouts = tuple(
            Rollout(question, index, (1,), (2,), (-0.1,), text, "stop") for index, text in enumerate(texts)
        )
        given = verdicts if verdicts is not None else [True] * len(texts)
        full = tuple(Verdict(float(v), v) if isinstance(v, bool) else v for v in given)
        return Group(question, rollouts, full)

    return build
