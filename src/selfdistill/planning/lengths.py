"""How long the texts of a step are, in tokens: prompts of student and teacher, and responses.

In: a recipe, its questions where they are on this machine, and the model's chat format where its tokenizer is. Out:
:class:`Lengths`. What is not here is assumed, and said to be. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.contexts.rendering import PromptFrame
from selfdistill.errors import SelfDistillError
from selfdistill.methods.sources import ReferenceSolutions
from selfdistill.models.loading import resolve_source
from selfdistill.questions import LoadedData, load_data
from selfdistill.questions.question import Question
from selfdistill.rollouts.chat import ChatFormat
from selfdistill.rollouts.collect import reference_rollouts
from selfdistill.rollouts.rollout import Rollout
from selfdistill.training.recipe import Recipe
from selfdistill.verifiers.verdict import Group, Verdict

LOOKED_AT = 256
"""Questions that are rendered: the first so many."""
ASSUMED_PROMPT = 512
"""Tokens of a question whose data or tokenizer is not here."""
ASSUMED_PRIVILEGED = 1024
"""Tokens of a reference solution that is not here."""
ASSUMED_TEMPLATE = 128
"""Tokens around a privileged text."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """In tokens, chat template included."""

    prompt: int
    """The longest prompt."""
    teacher_prompt: int
    """The longest privileged prompt; 0 without a teacher."""
    response: int
    """The longest response: the sampling budget, or the longest reference solution."""
    mean_prompt: float
    mean_teacher_prompt: float
    evaluates: bool = True
    """Whether there may be held-out questions."""
    source: str = ""
    """Where the numbers come from, for readers."""


def local_data(recipe: Recipe) -> LoadedData | None:
    """Return the recipe's questions if they are generated or in files here; None otherwise.

    A file that is here and cannot be used is no matter of a plan: `selfdistill data RECIPE` says what is wrong with it.
    """
    config = recipe.data
    names = [] if config.task == "reasoning_gym" else [one for one in (config.train, config.eval) if one is not None]
    if any(not (isinstance(one, str) and Path(one).expanduser().exists()) for one in names):
        return None
    try:
        return load_data(config)
    except SelfDistillError:
        return None


def local_chat(recipe: Recipe) -> ChatFormat | None:
    """Return the model's chat format if its tokenizer is in a folder here; None otherwise."""
    from transformers import AutoTokenizer

    source = resolve_source(recipe.model.path)
    if not Path(source).is_dir():
        return None
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=recipe.model.trust_remote_code)
        return ChatFormat(tokenizer)
    except (OSError, ValueError, KeyError, ImportError, SelfDistillError):
        return None


def lengths_of(recipe: Recipe, context: int, data: LoadedData | None, chat: ChatFormat | None) -> Lengths:
    """Return the lengths of a recipe's texts.

    Args:
        recipe: whose sampling budget and limits hold.
        context: positions that the model has for prompt and response together.
        data: the questions; None: not here.
        chat: renders them; None: not here.
    """
    new = recipe.rollouts.sampling.max_new_tokens
    evaluates = bool(data.eval) if data else recipe.data.eval is not None or recipe.data.eval_questions is not None
    room = max(1, context - new)
    if data is None or chat is None or not data.train:
        return _assumed(recipe, room, new, evaluates, "questions" if data is None else "tokenizer")
    asked = data.train[:LOOKED_AT]
    prompts = [len(chat.render(one.messages, thinking=recipe.rollouts.thinking)) for one in asked]
    if isinstance(recipe.method.source, ReferenceSolutions):
        rows = reference_rollouts(asked, chat, thinking=recipe.rollouts.thinking)
        new = max(len(one.response_ids) for one in rows)
    teacher = _teacher_prompts(recipe, chat, asked, room, new)
    return Lengths(
        prompt=max(prompts),
        teacher_prompt=max(teacher, default=0),
        response=new,
        mean_prompt=sum(prompts) / len(prompts),
        mean_teacher_prompt=sum(teacher) / max(1, len(teacher)),
        evaluates=evaluates,
        source=f"the longest of {len(asked)} questions",
    )


def _assumed(recipe: Recipe, room: int, new: int, evaluates: bool, lacking: str) -> Lengths:
    """Return lengths for texts that cannot be looked at: the recipe's own limits, or the constants above."""
    prompt = min(room, recipe.rollouts.max_prompt_tokens or ASSUMED_PROMPT)
    teacher = 0
    if recipe.method.distillation is not None:
        shown = new if recipe.method.context.kind == "sibling_success" else ASSUMED_PRIVILEGED
        teacher = min(recipe.train.max_teacher_prompt_tokens or room, prompt + shown + ASSUMED_TEMPLATE)
    source = f"assumed: the {lacking} {'are' if lacking == 'questions' else 'is'} not on this machine"
    return Lengths(prompt, teacher, new, float(prompt), float(teacher), evaluates, source)


def _teacher_prompts(recipe: Recipe, chat: ChatFormat, questions: Sequence[Question], room: int, new: int) -> list[int]:
    """Return the lengths of privileged prompts: each question as if one sibling had solved it and one had not.

    A sibling's response is counted as long as it may be.
    """
    if recipe.method.distillation is None:
        return []
    limit = recipe.train.max_teacher_prompt_tokens or room
    frame = PromptFrame(chat, limit, recipe.rollouts.thinking)
    context = recipe.method.context
    shown = new if context.kind == "sibling_success" else 0
    lengths = []
    for question in questions:
        text = "?" if shown else question.solution or "?"
        ids = chat.render(question.messages, thinking=frame.thinking)
        rollouts = tuple(Rollout(question, sibling, ids, (0,), None, text, "stop") for sibling in (0, 1))
        verdicts = (Verdict(reward=1.0, success=True), Verdict(reward=0.0, success=False, feedback="?"))
        try:
            prompts = context.contextualise(Group(question, rollouts, verdicts), frame, 0)
        except SelfDistillError:
            continue
        lengths += [min(limit, len(one.token_ids) + shown) for one in prompts if one is not None]
    return lengths
