"""The evaluation run: sample k responses per question, verify and write each soon after it finishes, summarise.

Seeds come from (seed, "evaluation", question, sibling) only: two models, or two checkpoints, answer under the same
random numbers, which makes the difference between them easier to see.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from selfdistill.errors import DataError
from selfdistill.evaluation.generations import Generation, append_generations, generation, read_generations
from selfdistill.evaluation.result import EvaluationResult, summarise
from selfdistill.parallel.world import ALONE, World
from selfdistill.questions.question import Question
from selfdistill.rollouts.chat import ChatFormat
from selfdistill.rollouts.collect import stream_siblings
from selfdistill.rollouts.rollout import Rollout
from selfdistill.rollouts.sampler import Place, Sampler, Sampling, draws_from_policy
from selfdistill.rollouts.thinking import ThinkingBudget
from selfdistill.rollouts.verifying import verifying
from selfdistill.validation import PART
from selfdistill.verifiers.verdict import Verifier

_VERIFIED_TOGETHER = 32
"""Finished responses that make a batch, for a verifier that wants whole ones; a kill costs fewer than that."""
_VERIFIED_AFTER = 5.0
"""Seconds that a response waits for the others of such a batch at most, as long as tokens are drawn."""
_BACKLOG = 128
"""Finished responses without a verdict, for any other verifier; sampling waits when there are more."""

_Key = tuple[str, int]
"""Question and sibling."""
_Wanted = tuple[Question, list[int]]
"""A question, and the siblings that are to be drawn of it."""
_Draw = Callable[[Callable[[int], None]], Generator[tuple[Place, Rollout], None, None]]
"""From whom to tell of the tokens that are drawn to the responses."""


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
    teacher_questions: int = Field(default=0, ge=0)
    """During training, at each evaluation, on so many questions: is the self-teacher better than the student? Both are
    asked (in this process, whatever the engine) held-out questions if those have what the teacher is shown, else
    training questions. 0: not measured."""


@plain_dataclass(frozen=True, slots=True)
class About:
    """What a result says besides its scores."""

    in_form: Callable[[str], bool] | None = None
    """Whether a response states an answer in the form that was asked for."""
    multiple_choice: bool = False
    """Whether to report what the best constant answer scores."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """More of the result's settings, such as the benchmark's name; they decide no response."""

    def golds(self, questions: Sequence[Question]) -> list[str]:
        """Return the answers that a constant answer is compared with."""
        return [one.answer for one in questions if one.answer is not None] if self.multiple_choice else []


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
    on_responses: Callable[[int, int, int], None] | None = None,
    about: About | None = None,
    world: World = ALONE,
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
        on_responses: called at the beginning and whenever responses have been verified, with how many are done, how
            many there are to be, and how many tokens those that are done have; what was in the file counts.
        about: what the result says besides its scores.
        world: processes that share the work, all of which call this; each writes beside ``generations_path`` until the
            main one joins what they have, and all return the result.

    Raises:
        DataError: no questions, duplicate ids, or a generations file of another evaluation.
        RolloutError: the engine failed. What had finished is in the file, as after any other error.
    """
    asked = _checked(questions[: config.questions])
    settings = _settings(config, label)
    done: dict[_Key, Generation] = {}
    if generations_path is not None:
        world.main(lambda: _join_parts(generations_path))
        done = _continued(generations_path, asked, config.samples, seed, settings)
    desk = _Desk(
        verifier,
        None if generations_path is None else _own_path(generations_path, world.rank),
        seed=seed,
        settings=settings,
        done=done,
        total=len(asked) * config.samples,
        on_responses=on_responses,
    )
    lacking = [(question, [s for s in range(config.samples) if (question.id, s) not in done]) for question in asked]
    wanted = [(question, siblings) for question, siblings in lacking if siblings]
    own = _share(wanted, world.rank, world.size if draws_from_policy(sampler) else 1)
    draw = partial(_responses, own, sampler, chat, config, seed)
    if wanted:
        done.update((one.key, one) for fresh in world.each(lambda: _take_all(draw, desk, on_tokens)) for one in fresh)
    if generations_path is not None:
        world.main(lambda: _join_parts(generations_path))
    about = about or About()
    return summarise(
        [done[question.id, sibling] for question in asked for sibling in range(config.samples)],
        equivalent=verifier.equivalent,
        level=config.level,
        settings={**settings, "seed": seed, **about.settings},
        in_form=about.in_form,
        golds=about.golds(asked),
    )


def _share(wanted: Sequence[_Wanted], rank: int, size: int) -> list[_Wanted]:
    """Return what a process draws: every so many of all responses, so that none has all of the hard questions."""
    places = [sum(len(siblings) for _, siblings in wanted[:index]) for index in range(len(wanted))]
    own = [
        (question, [sibling for turn, sibling in enumerate(siblings, start) if turn % size == rank])
        for start, (question, siblings) in zip(places, wanted, strict=True)
    ]
    return [(question, siblings) for question, siblings in own if siblings]


def _own_path(path: Path, rank: int) -> Path:
    """Return the file that a process writes; the main one writes the evaluation's own."""
    return path.with_name(f"{path.name}.rank-{rank:05d}") if rank else path


def _join_parts(path: Path) -> None:
    """Put what other processes have written, also before an interruption, into the file of the evaluation."""
    for part in sorted(path.parent.glob(f"{path.name}.rank-*")):
        known = {one.key for one in read_generations(path)} if path.exists() else set()
        append_generations(path, [one for one in read_generations(part) if one.key not in known])
        part.unlink()


def _take_all(draw: _Draw, desk: _Desk, on_tokens: Callable[[int], None] | None) -> list[Generation]:
    """Draw the responses, and have the desk take in each; what has been verified is written while others are drawn."""

    def count(tokens: int) -> None:
        desk.write()
        if on_tokens is not None:
            on_tokens(tokens)

    # Closed at once when verifying fails: an engine must not go on drawing for nobody.
    with desk, closing(draw(count)) as responses:
        try:
            for place, rollout in responses:
                desk.take(place, rollout)
            desk.finish(lambda: count(0))
        except Exception:  # an engine's fault, or a stop: what has finished is kept
            desk.finish()
            raise
    return desk.fresh


def _responses(
    wanted: Sequence[tuple[Question, Sequence[int]]],
    sampler: Sampler,
    chat: ChatFormat,
    config: EvaluationConfig,
    seed: int,
    on_tokens: Callable[[int], None],
) -> Generator[tuple[Place, Rollout], None, None]:
    """Yield the wanted siblings' responses as they finish."""
    limited = sampler if config.sampling.thinking_budget is None else ThinkingBudget(sampler, chat)
    yield from stream_siblings(
        wanted,
        limited,
        chat,
        sampling=config.sampling,
        seed=seed,
        stream=("evaluation",),
        thinking=config.thinking,
        logprobs=False,
        on_tokens=on_tokens,
    )


class _Desk:
    """Takes in finished responses; what has been verified is written, and added to what is done.

    Verifying goes on in the background: an engine draws on while programs run. Everything else, writing too, happens in
    the caller's thread.
    """

    def __init__(
        self,
        verifier: Verifier,
        path: Path | None,
        *,
        seed: int,
        settings: Mapping[str, Any],
        done: dict[_Key, Generation],
        total: int,
        on_responses: Callable[[int, int, int], None] | None,
    ) -> None:
        self._path, self._seed, self._settings = path, seed, settings
        self._done, self._total, self._on_responses = done, total, on_responses
        self.fresh: list[Generation] = []
        """What was taken in here and has been verified."""
        self._tokens = sum(one.tokens or 0 for one in done.values())
        self._verified = verifying(verifier, batch=_VERIFIED_TOGETHER, patience=_VERIFIED_AFTER, backlog=_BACKLOG)
        self._tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._verified.close()

    def take(self, place: Place, rollout: Rollout) -> None:
        """Take in a finished response, and write what has been verified."""
        self._verified.add(place, rollout)
        self.write()

    def write(self) -> None:
        """Write what has been verified; raise what the verifier raised."""
        fresh = [
            generation(rollout, verdict, seed=self._seed, settings=self._settings)
            for rollout, verdict in self._verified.ready()
        ]
        if fresh:
            if self._path is not None:
                append_generations(self._path, fresh)
            self._done.update((one.key, one) for one in fresh)
            self.fresh += fresh
            self._tokens += sum(one.tokens or 0 for one in fresh)
            self._tell()
        self._verified.check()

    def finish(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait for all verdicts and write them; ``meanwhile`` is called every now and then."""
        self._verified.wait(meanwhile)
        self.write()

    def _tell(self) -> None:
        if self._on_responses is not None:
            self._on_responses(len(self._done), self._total, self._tokens)


def _settings(config: EvaluationConfig, label: str) -> dict[str, Any]:
    """Return what decides a response, besides the question and the seed."""
    sampling = TypeAdapter(Sampling).dump_python(config.sampling, mode="json")
    return {"label": label, "thinking": config.thinking, "sampling": sampling}


def _continued(
    path: Path, asked: Sequence[Question], samples: int, seed: int, settings: Mapping[str, Any]
) -> dict[_Key, Generation]:
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


def _checked(questions: Sequence[Question]) -> Sequence[Question]:
    if not questions:
        raise DataError("there are no questions to evaluate on; check the data")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"question id {question.id!r} occurs twice in the evaluation data; make ids unique")
        seen.add(question.id)
    return questions
