"""The evaluation run: sample k responses per question, verify, write each to disk, summarise.

Seeds come from (seed, "evaluation", question, sibling) only: two models, or two checkpoints, answer under the same
random numbers, which makes the difference between them easier to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from selfdistill.errors import DataError
from selfdistill.evaluation.generations import Generation, append_generations, generation, read_generations
from selfdistill.evaluation.result import EvaluationResult, summarise
from selfdistill.questions.question import Question
from selfdistill.rollouts.chat import ChatFormat
from selfdistill.rollouts.collect import collect_siblings, verify_groups
from selfdistill.rollouts.sampler import Sampler, Sampling
from selfdistill.validation import PART
from selfdistill.verifiers.verdict import Verifier

_ROWS_PER_WRITE = 1024
"""Responses between two writes of the generations file: what an interruption can cost."""

_Wanted = list[tuple[Question, list[int]]]


def _default_sampling() -> Sampling:
    return Sampling(temperature=1.0, top_p=0.95, max_new_tokens=1024)


@dataclass(frozen=True, config=PART, kw_only=True)
class EvaluationConfig:
    """How a model is evaluated."""

    questions: int | None = Field(default=None, ge=1)
    """Use the first so many questions; None uses all."""
    samples: int = Field(default=16, ge=1)
    """k, responses per question."""
    sampling: Sampling = Field(default_factory=_default_sampling)
    """How responses are drawn. PAINT evaluates at temperature 1, top-p .95; SC-SDPO at .6, .95."""
    thinking: bool | None = None
    """Thinking mode, where the chat template has one; None leaves the template's default."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals over problems."""


def evaluate(
    questions: Sequence[Question],
    sampler: Sampler,
    chat: ChatFormat,
    verifier: Verifier,
    config: EvaluationConfig,
    *,
    seed: int,
    generations_path: Path | None = None,
    label: str = "",
    on_tokens: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Evaluate a model on questions with unique ids.

    Args:
        questions: what is asked; the first ``config.questions`` of them.
        sampler: draws from the model under evaluation.
        chat: renders and decodes.
        verifier: decides what is right, and which answers mean the same.
        config: samples, sampling settings, thinking mode, level.
        seed: of the responses.
        generations_path: JSONL file to write and, if it exists, to continue: what is in it is not sampled again.
        label: names what is evaluated (a model, a checkpoint); a file with another label is not continued.
        on_tokens: called with the number of tokens that have just been drawn.

    Raises:
        DataError: no questions, duplicate ids, or a generations file of another evaluation.
    """
    asked = _checked(questions[: config.questions])
    settings = _settings(config, label)
    done = {} if generations_path is None else _continued(generations_path, asked, config.samples, seed, settings)
    lacking = [(question, [s for s in range(config.samples) if (question.id, s) not in done]) for question in asked]
    for part in _parts([(question, siblings) for question, siblings in lacking if siblings]):
        rollouts = collect_siblings(
            part,
            sampler,
            chat,
            sampling=config.sampling,
            seed=seed,
            stream=("evaluation",),
            thinking=config.thinking,
            on_tokens=on_tokens,
        )
        fresh = [
            generation(rollout, verdict, seed=seed, settings=settings)
            for group in verify_groups(rollouts, verifier)
            for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
        ]
        if generations_path is not None:
            append_generations(generations_path, fresh)
        done.update((one.key, one) for one in fresh)
    return summarise(
        [done[question.id, sibling] for question in asked for sibling in range(config.samples)],
        equivalent=verifier.equivalent,
        level=config.level,
        settings={**settings, "seed": seed},
    )


def _settings(config: EvaluationConfig, label: str) -> dict[str, Any]:
    """Return what decides a response, besides the question and the seed."""
    sampling = TypeAdapter(Sampling).dump_python(config.sampling)
    return {"label": label, "thinking": config.thinking, "sampling": sampling}


def _continued(
    path: Path, asked: Sequence[Question], samples: int, seed: int, settings: Mapping[str, Any]
) -> dict[tuple[str, int], Generation]:
    """Return the generations of the file that this evaluation would make again."""
    if not path.exists():
        return {}
    known = {question.id: [dict(message) for message in question.messages] for question in asked}
    done = {}
    for one in read_generations(path):
        same = one.seed == seed and one.settings == settings
        if not same or [dict(message) for message in one.messages] != known.get(one.question_id, list(one.messages)):
            raise DataError(
                f"{path} holds an evaluation with another seed, label, question or sampling settings; "
                "delete the file or write to another"
            )
        if one.question_id in known and one.sibling < samples:
            done[one.key] = one
    return done


def _parts(wanted: _Wanted) -> Iterator[_Wanted]:
    """Cut the work where the file is written, between questions."""
    part: _Wanted = []
    rows = 0
    for question, siblings in wanted:
        part.append((question, siblings))
        rows += len(siblings)
        if rows >= _ROWS_PER_WRITE:
            yield part
            part, rows = [], 0
    if part:
        yield part


def _checked(questions: Sequence[Question]) -> Sequence[Question]:
    if not questions:
        raise DataError("there are no questions to evaluate on; check the data")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"question id {question.id!r} occurs twice in the evaluation data; make ids unique")
        seen.add(question.id)
    return questions
