"""PACED's pass before training: the untrained model's pass rate on every question of the training set (METHODS 6).

In: the training questions, the engine, the verifier. Out: pass rates by question id, and how many tokens they took. The
file in the run folder is written after every few questions, and a journal has the responses in between; so a run that
is stopped, or fails, in the middle of the pass goes on there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from selfdistill.errors import TrainingError
from selfdistill.questions.question import Question
from selfdistill.rollouts.collect import stream_siblings
from selfdistill.rollouts.journal import Journaled
from selfdistill.rollouts.verifying import Results, for_others, groups_of, joined, verifying
from selfdistill.training.loop import Clock, Trainer
from selfdistill.training.run_folder import write_json
from selfdistill.validation import PART

QUESTIONS = 256
"""Between two writes of the file."""


@dataclass(frozen=True, config=PART, kw_only=True)
class Prior:
    """What is known of the questions before training."""

    tokens: int = Field(default=0, ge=0)
    """Sampled for it."""
    pass_rates: dict[str, float] = Field(default_factory=dict)
    """By question id, in [0, 1]."""


_ADAPTER = TypeAdapter(Prior)


def measure(trainer: Trainer, path: Path, check: Callable[[], None]) -> Prior | None:
    """Return the pass rates, after measuring those that the file lacks; None if the method's weights do not want them.

    Args:
        trainer: of a run that has not taken a step.
        path: the file.
        check: called while tokens are drawn; may raise, to stop.

    Raises:
        RolloutError: the engine failed. What had finished is kept, as after any other error.
        TrainingError: the file is not what this function writes.
    """
    if not trainer.recipe.method.weighting.offline:
        return None
    prior, progress = _read(path), trainer.progress
    lacking = [question for question in trainer.questions if question.id not in prior.pass_rates]
    if not lacking:
        return prior

    def on_tokens(tokens: int) -> None:
        check()
        progress.advance(tokens)

    began, before = time.monotonic(), prior.tokens
    trainer.sync(0, Clock(progress))
    responses = len(lacking) * trainer.recipe.method.weighting.rollouts
    total = responses * trainer.recipe.rollouts.sampling.max_new_tokens
    with progress.phase("measuring pass rates before training", total):
        for start in range(0, len(lacking), QUESTIONS):
            prior = _with(prior, lacking[start : start + QUESTIONS], trainer, on_tokens)
            if trainer.world.is_main:
                write_json(path, _ADAPTER.dump_python(prior))
            trainer.journals.forget("prior")
    seconds, tokens = time.monotonic() - began, prior.tokens - before
    progress.message(
        f"pass rates of {len(prior.pass_rates)} questions before training: {tokens:,} tokens in {seconds:,.1f} s "
        f"({tokens / seconds:,.0f} tokens/s), mean {sum(prior.pass_rates.values()) / len(prior.pass_rates):.3f}"
    )
    return prior


def _with(prior: Prior, questions: Sequence[Question], trainer: Trainer, on_tokens: Callable[[int], None]) -> Prior:
    """Return ``prior`` with the pass rates of more questions. What the journal has is not drawn again."""
    rollouts, train, world = trainer.recipe.rollouts, trainer.recipe.train, trainer.world
    siblings = range(trainer.recipe.method.weighting.rollouts)
    journals = trainer.journals

    def draw() -> tuple[Results, int]:
        with verifying(trainer.verifier) as verified:
            responses = stream_siblings(
                list(zip(questions, trainer.own(len(questions), siblings), strict=True)),
                Journaled(trainer.sampler, journals.of("prior"), 0, 0, others=journals.all_of("prior")),
                trainer.policy.chat,
                sampling=rollouts.sampling,
                seed=train.seed,
                stream=("prior",),
                thinking=rollouts.thinking,
                on_tokens=verified.watching(on_tokens),
            )
            with closing(responses):
                for (index, _), rollout in responses:
                    verified.add((index, rollout.sibling), rollout)
            return for_others(verified.results()), verified.tokens

    with trainer.drawing():
        drawn = world.each(draw)
    groups = groups_of(joined([results for results, _ in drawn]), questions, len(siblings))
    rates = {group.question.id: group.pass_rate for group in groups}
    tokens = sum(tokens for _, tokens in drawn)
    return Prior(tokens=prior.tokens + tokens, pass_rates={**prior.pass_rates, **rates})


def _read(path: Path) -> Prior:
    if not path.exists():
        return Prior()
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except (ValidationError, OSError):
        raise TrainingError(
            f"{str(path)!r} does not hold the pass rates of the pass before training; remove it, and --resume measures "
            "them again"
        ) from None
