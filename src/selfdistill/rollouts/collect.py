"""From questions to rollouts. The only place where a Rollout is built.

Every completion has a seed of its own, derived from the run's seed, the name of the stream (for example the step), the
question's id and the sibling's index. It does not depend on the process that draws it, so that a group can be spread
over processes, and no two groups, siblings or steps can share a seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence

from selfdistill.errors import DataError
from selfdistill.questions.question import Question
from selfdistill.randomness import derive
from selfdistill.rollouts.chat import ChatFormat
from selfdistill.rollouts.rollout import Rollout
from selfdistill.rollouts.sampler import Completion, Place, Sampler, Sampling


def stream_siblings(
    wanted: Sequence[tuple[Question, Sequence[int]]],
    sampler: Sampler,
    chat: ChatFormat,
    *,
    sampling: Sampling,
    seed: int,
    stream: Sequence[object],
    thinking: bool | None = None,
    max_prompt_tokens: int | None = None,
    logprobs: bool = True,
    on_tokens: Callable[[int], None] | None = None,
) -> Generator[tuple[Place, Rollout], None, None]:
    """Yield rollouts as they finish, each with the indices of its question and of its sibling in ``wanted``.

    Args:
        wanted: what is asked, and which siblings of each. A question that comes twice gets different responses the
            second time.
        sampler: draws the completions.
        chat: renders the prompts and decodes the responses.
        sampling: how to draw.
        seed: the run's seed.
        stream: names this round of sampling, for example ``("train", step)``; another stream, other responses.
        thinking: the student's thinking mode, where the template has one.
        max_prompt_tokens: longest rendered prompt that is accepted.
        logprobs: whether the rollouts need log-probabilities.
        on_tokens: called with the number of tokens that have just been drawn.

    Raises:
        DataError: a prompt is longer than ``max_prompt_tokens``; before anything is sampled.
    """
    questions = [question for question, _ in wanted]
    prompts = [_render(question, chat, thinking, max_prompt_tokens) for question in questions]
    seeds = [
        [sibling_seed(seed, stream, question, sibling, occurrence) for sibling in siblings]
        for (question, siblings), occurrence in zip(wanted, _occurrences(questions), strict=True)
    ]
    for place, completion in sampler.stream(prompts, seeds, sampling, logprobs=logprobs, on_tokens=on_tokens):
        question, siblings = wanted[place[0]]
        yield place, _rollout(question, siblings[place[1]], prompts[place[0]], completion, chat)


def sibling_seed(seed: int, stream: Sequence[object], question: Question, sibling: int, occurrence: int = 0) -> int:
    """Return the seed of one completion; ``occurrence`` counts earlier copies of the question in the same round.

    Siblings have consecutive seeds: an engine that draws n responses to one request from the seeds s, s+1 ... s+n-1
    (vLLM does) draws the same ones whether it is asked for all siblings or for those that are still missing.
    """
    repeat = () if occurrence == 0 else (occurrence,)
    return (derive(seed, *stream, question.id, *repeat) >> 1) + sibling


def reference_rollouts(
    questions: Sequence[Question],
    chat: ChatFormat,
    *,
    thinking: bool | None = None,
    max_prompt_tokens: int | None = None,
) -> list[Rollout]:
    """Return each question's reference solution as if it had been the response: what supervised fine-tuning reads.

    Raises:
        DataError: a question has no solution, or a prompt is longer than ``max_prompt_tokens``.
    """
    rollouts = []
    for question in questions:
        if not question.solution:
            raise DataError(
                f"question {question.id!r} has no solution, and supervised fine-tuning needs one; "
                "name the solution column in data.columns or drop the row"
            )
        prompt = _render(question, chat, thinking, max_prompt_tokens)
        _, response = chat.render_with_response(question.messages, question.solution, thinking=thinking)
        rollouts.append(Rollout(question, 0, prompt, response, None, question.solution, "stop"))
    return rollouts


def _rollout(
    question: Question, sibling: int, prompt: tuple[int, ...], completion: Completion, chat: ChatFormat
) -> Rollout:
    return Rollout(
        question=question,
        sibling=sibling,
        prompt_ids=prompt,
        response_ids=completion.ids,
        logprobs=completion.logprobs,
        text=chat.decode(completion.ids),
        finish_reason=completion.finish_reason,
    )


def _render(question: Question, chat: ChatFormat, thinking: bool | None, max_tokens: int | None) -> tuple[int, ...]:
    ids = chat.render(question.messages, thinking=thinking)
    if max_tokens is not None and len(ids) > max_tokens:
        raise DataError(
            f"the prompt of question {question.id!r} has {len(ids)} tokens, more than max_prompt_tokens {max_tokens}; "
            "raise the limit or drop the question"
        )
    return ids


def _occurrences(questions: Sequence[Question]) -> Iterator[int]:
    """Count, for each question, how often its id came before."""
    seen: Counter[str] = Counter()
    for question in questions:
        yield seen[question.id]
        seen[question.id] += 1
