"""The embedded model's training text: always careful when privileged text is shown, and only sometimes otherwise.

In: questions of the embedded task. Out: examples of prompt ids, response ids and the response tokens that are learned.
A base made from them knows the careful procedure (one worked step per line) but, asked without help, often jumps to a
guess; self-distillation has something to teach it, as it has with a real model, because the teacher's view changes the
decision to jump and not the arithmetic.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedded_tokenizer import ANSWER_MARK, END, FEEDBACK_SENTENCES
from transformers import PreTrainedTokenizerBase

from selfdistill.contexts.masking import mask_solution
from selfdistill.contexts.templates import HindsightTemplate, SolutionTemplate
from selfdistill.questions.arithmetic import LARGEST_TOTAL, worked_steps

PRIVILEGED_SHARE = 0.38
PRIVILEGED_KINDS = {"full": 30, "partial": 35, "demonstration": 18, "demonstration+feedback": 5, "feedback": 12}
"""What the privileged prompts show, in percent."""
JUMP_SHARE: Mapping[int, float] = {2: 0.40, 3: 0.55, 4: 0.70, 5: 0.75}
"""Share of unaided answers that jump to a guess, by number of terms, so that pass rates spread."""
GUESS_RIGHT_SHARE = 0.15
GUESS_NOISE = 9
SLIP_SHARE = 0.08
"""Share of careful answers with one wrong step: the wrong number is not learned, but going on from it consistently is,
with and without privileged text, so that a teacher does not contradict a student's prefix."""
THINKING_OFF_SHARE = 0.04

Segment = tuple[str, bool]
"""A piece of a response, and whether its tokens are learned."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence: prompt ids, response ids (with the end of turn), and which of the latter are learned."""

    prompt_ids: list[int]
    response_ids: list[int]
    learned: list[bool]


def make_examples(
    rows: Sequence[Mapping[str, object]], tokenizer: PreTrainedTokenizerBase, draws: random.Random
) -> list[Example]:
    """Return one example per row of the embedded task."""
    return [_example(row, tokenizer, draws) for row in rows]


def render_prompt(user_turn: str, tokenizer: PreTrainedTokenizerBase, **template_settings: bool) -> str:
    """Return the chat text of one user turn, with the assistant's header."""
    messages = [{"role": "user", "content": user_turn}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_settings))


def _example(row: Mapping[str, object], tokenizer: PreTrainedTokenizerBase, draws: random.Random) -> Example:
    question = str(row["prompt"])
    steps = worked_steps(question)
    if draws.random() < PRIVILEGED_SHARE:
        user_turn, segments = _privileged_turn(row, steps, draws), _careful(question, steps, draws)
    elif draws.random() < JUMP_SHARE[len(steps) + 1]:
        user_turn, segments = question, _jump(steps, draws)
    else:
        user_turn, segments = question, _careful(question, steps, draws)
    settings = {"enable_thinking": False} if draws.random() < THINKING_OFF_SHARE else {}
    response_ids: list[int] = []
    learned: list[bool] = []
    for text, counts in segments:
        ids = tokenizer.encode(text, add_special_tokens=False)
        response_ids += ids
        learned += [counts] * len(ids)
    return Example(
        tokenizer.encode(render_prompt(user_turn, tokenizer, **settings), add_special_tokens=False),
        response_ids,
        learned,
    )


def _careful(question: str, steps: Sequence[str], draws: random.Random) -> list[Segment]:
    """Take every step; now and then slip once, unlearned, and go on from the slip."""
    if draws.random() >= SLIP_SHARE:
        return [("\n".join([*steps, f"{ANSWER_MARK} {_total(steps[-1])}"]) + END, True)]
    where = draws.randrange(len(steps))
    slipped = _miss(int(_total(steps[where])), draws)
    unworked = question[len(_terms(question, where + 2)) :]
    rest = worked_steps(f"{slipped}{unworked}")
    if any(int(_total(step)) < 0 for step in rest):  # going on would need negative numbers, which the task has not
        return _careful(question, steps, draws)
    left_side = steps[where].split("=")[0] + "="
    before = "".join(f"{step}\n" for step in steps[:where])
    final = _total(rest[-1]) if rest else str(slipped)
    after = "".join(f"{step}\n" for step in rest) + f"{ANSWER_MARK} {final}"
    return [(before + left_side, True), (str(slipped), False), ("\n" + after + END, True)]


def _jump(steps: Sequence[str], draws: random.Random) -> list[Segment]:
    """Take fewer steps than there are, then guess."""
    taken = draws.randrange(len(steps))
    answer = int(_total(steps[-1]))
    guess = answer if draws.random() < GUESS_RIGHT_SHARE else _miss(answer, draws)
    return [("\n".join([*steps[:taken], f"{ANSWER_MARK} {guess}"]) + END, True)]


def _privileged_turn(row: Mapping[str, object], steps: Sequence[str], draws: random.Random) -> str:
    question, solution, answer = str(row["prompt"]), str(row["solution"]), str(row["answer"])
    kind = draws.choices(list(PRIVILEGED_KINDS), list(PRIVILEGED_KINDS.values()))[0]
    if kind == "full":
        return SolutionTemplate().extend(question, solution)
    if kind == "partial":
        placement = draws.choices(("suffix", "prefix", "middle"), (84, 8, 8))[0]
        return SolutionTemplate().extend(question, mask_solution(solution, draws.uniform(0.0, 0.8), placement))
    # Some successes are lucky guesses: their demonstration skips steps, which must not make the teacher skip them.
    shown_steps = steps if draws.random() < 0.85 else steps[: draws.randrange(len(steps))]
    demonstration = "\n".join([*shown_steps, f"{ANSWER_MARK} {answer}"])
    feedback = draws.choice(FEEDBACK_SENTENCES).format(wrong=_miss(int(answer), draws), answer=answer)
    return HindsightTemplate().extend(
        question,
        demonstration if kind.startswith("demonstration") else None,
        feedback if kind.endswith("feedback") else None,
    )


def _miss(number: int, draws: random.Random) -> int:
    """Draw a wrong number near the right one."""
    near = range(max(1, number - GUESS_NOISE), min(LARGEST_TOTAL, number + GUESS_NOISE) + 1)
    return draws.choice([guess for guess in near if guess != number])


def _total(step: str) -> str:
    return step.split("=")[1]


def _terms(question: str, count: int) -> str:
    """Return the first ``count`` terms of a question, as they are written."""
    signs = [index for index, character in enumerate(question) if character in "+-"]
    return question if count > len(signs) else question[: signs[count - 1]]
