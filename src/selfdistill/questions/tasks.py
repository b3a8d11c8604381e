"""Tasks by name: where the questions come from and who checks the answers.

In: the ``data:`` section of a recipe. Out: training and evaluation questions that share no prompt, the verifier, and
notes for the user (what was guessed, what was dropped). A new task is one :class:`Task` given to :func:`register_task`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfdistill.errors import DataError, RecipeError, nearest
from selfdistill.questions.arithmetic import Split, arithmetic_rows
from selfdistill.questions.config import DataConfig
from selfdistill.questions.loading import load_questions, questions_from_rows, require
from selfdistill.questions.question import Question
from selfdistill.questions.sums import sum_rows
from selfdistill.randomness import python_random
from selfdistill.verifiers import (
    ArithmeticVerifier,
    LastIntegerVerifier,
    MathsVerifier,
    RewardFunctionVerifier,
    Verifier,
    load_reward_function,
)

GENERATED_TRAIN, GENERATED_EVAL, SUMS_TRAIN = 2048, 128, 512
"""Generated questions when the recipe sets no limit."""

RowMaker = Callable[[Split, int, int], list[dict[str, object]]]
"""Makes rows from a split, a count and a seed."""

Loader = Callable[[DataConfig, list[str]], list[Question]]
"""Returns questions and appends notes to the list."""


@dataclass(frozen=True)
class Task:
    """A source of questions with its verifier."""

    name: str
    summary: str
    """One line for listings."""
    train: Loader
    eval: Loader
    """May return no questions: then ``eval_questions`` of the training questions are held out."""
    verifier: Callable[[DataConfig], Verifier]


@dataclass(frozen=True)
class LoadedData:
    """What a run works on. Training and evaluation share no prompt."""

    train: tuple[Question, ...]
    eval: tuple[Question, ...]
    verifier: Verifier
    notes: tuple[str, ...] = ()
    """Sentences for the user."""


def load_data(config: DataConfig) -> LoadedData:
    """Return questions and verifier of a recipe's ``data:`` section.

    Raises:
        RecipeError: unknown task, or settings that the task cannot use.
        DataError: a file or row that cannot be used, an answer that the verifier needs and that is missing.
    """
    task = find_task(config.task)
    verifier = task.verifier(config)
    notes: list[str] = []
    train = task.train(config, notes)
    evaluation = task.eval(config, notes)
    if not evaluation and config.eval_questions is not None:
        train, evaluation = _hold_out(train, config.eval_questions, config.seed)
    kept = _without_contamination(train, evaluation, notes)
    require([*kept, *evaluation], verifier.requires, f"the verifier of data.task={task.name}")
    return LoadedData(tuple(kept), tuple(evaluation), verifier, tuple(dict.fromkeys(notes)))


def find_task(name: str) -> Task:
    """Return a registered task. Raises :class:`RecipeError` naming the nearest one."""
    if name not in _TASKS:
        raise RecipeError(f"data.task={name!r} is unknown{nearest(name, _TASKS)}")
    return _TASKS[name]


def register_task(task: Task) -> None:
    """Make a task available to recipes under its name. Raises :class:`RecipeError` if the name is taken."""
    if task.name in _TASKS:
        raise RecipeError(f"there is already a task {task.name!r}; choose another name")
    _TASKS[task.name] = task


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks."""
    return tuple(_TASKS)


def _hold_out(questions: list[Question], count: int, seed: int) -> tuple[list[Question], list[Question]]:
    """Split off ``count`` seeded questions; both parts keep the order of the file."""
    if count >= len(questions):
        raise DataError(
            f"data.eval_questions={count} leaves nothing to train on: there are {len(questions)} questions; "
            "hold out fewer or give an evaluation file"
        )
    chosen = set(python_random(seed, "hold-out").sample(range(len(questions)), count))
    rest = [question for index, question in enumerate(questions) if index not in chosen]
    return rest, [question for index, question in enumerate(questions) if index in chosen]


def _without_contamination(
    train: Sequence[Question], evaluation: Sequence[Question], notes: list[str]
) -> list[Question]:
    """Return the training questions whose prompt is no evaluation question's, whatever the case and the white space."""
    asked = {_conversation(question) for question in evaluation}
    kept = [question for question in train if _conversation(question) not in asked]
    if dropped := len(train) - len(kept):
        notes.append(f"{dropped} of {len(train)} training questions are also evaluation questions and were dropped")
    if train and not kept:
        raise DataError(
            f"all {len(train)} training questions are also evaluation questions; "
            "give different files or splits as data.train and data.eval"
        )
    return kept


def _conversation(question: Question) -> tuple[str, ...]:
    return tuple(" ".join(message["content"].split()).casefold() for message in question.messages)


def _generated(name: str, rows_of: RowMaker, split: Split, default: int) -> Loader:
    def load(config: DataConfig, notes: list[str]) -> list[Question]:
        if config.train is not None or config.eval is not None:
            field = "train" if config.train is not None else "eval"
            raise RecipeError(
                f"data.{field}={getattr(config, field)!r} contradicts data.task={config.task!r}, which generates its "
                "questions; remove it, or set data.task=maths"
            )
        if config.eval_questions is not None:
            raise RecipeError(
                f"data.eval_questions={config.eval_questions} contradicts data.task={config.task!r}, which generates "
                "its evaluation questions; set data.eval_limit instead"
            )
        count = (config.train_limit if split == "train" else config.eval_limit) or default
        rows = rows_of(split, count, config.seed)
        return questions_from_rows(
            rows, columns=config.columns, source=f"{name}-{split}", wording=config.wording, notes=notes
        )

    return load


def _train_file(config: DataConfig, notes: list[str]) -> list[Question]:
    if config.train is None and config.eval is None:
        raise RecipeError(
            f"data.task={config.task!r} needs questions; set data.train to a .jsonl, .json, .csv or .parquet file "
            "or a hub id"
        )
    if config.train is None:
        return []
    return load_questions(
        config.train,
        columns=config.columns,
        split=config.train_split,
        limit=config.train_limit,
        wording=config.wording,
        notes=notes,
    )


def _eval_file(config: DataConfig, notes: list[str]) -> list[Question]:
    if config.eval is None:
        return []
    return load_questions(
        config.eval,
        columns=config.eval_columns or config.columns,
        split=config.eval_split,
        limit=config.eval_limit,
        wording=config.wording,
        notes=notes,
    )


def _checked_by(make: Callable[[], Verifier]) -> Callable[[DataConfig], Verifier]:
    def verifier(config: DataConfig) -> Verifier:
        if config.reward is not None:
            raise RecipeError(
                f"data.reward={config.reward!r} contradicts data.task={config.task!r}, which has its own verifier; "
                "set data.task=custom"
            )
        return make()

    return verifier


def _reward_function(config: DataConfig) -> Verifier:
    if config.reward is None:
        raise RecipeError(
            f"data.task={config.task!r} needs data.reward; name a function as file.py:function or "
            "package.module:function"
        )
    return RewardFunctionVerifier(load_reward_function(config.reward), config.success_threshold)


_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "arithmetic",
            "generated sums with worked solutions, exact integer answers after ####",
            _generated("arithmetic", arithmetic_rows, "train", GENERATED_TRAIN),
            _generated("arithmetic", arithmetic_rows, "eval", GENERATED_EVAL),
            _checked_by(ArithmeticVerifier),
        ),
        Task(
            "sums",
            "small sums in words, for real language models; the last integer of a response is its answer",
            _generated("sums", sum_rows, "train", SUMS_TRAIN),
            _generated("sums", sum_rows, "eval", GENERATED_EVAL),
            _checked_by(LastIntegerVerifier),
        ),
        Task("maths", "files or hub data, checked by math-verify", _train_file, _eval_file, _checked_by(MathsVerifier)),
        Task("custom", "files or hub data, checked by your reward function", _train_file, _eval_file, _reward_function),
    )
}
