"""A recipe: everything that a run depends on, from YAML and dotted overrides to one validated, frozen object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator, model_validator

from selfdistill.errors import RecipeError, nearest
from selfdistill.evaluation.run import EvaluationConfig
from selfdistill.methods import Method, as_data, build, with_settings
from selfdistill.methods.settings import nested
from selfdistill.methods.sources import ReferenceSolutions
from selfdistill.models.loading import ModelConfig
from selfdistill.parallel.config import ParallelConfig
from selfdistill.questions.config import DataConfig
from selfdistill.questions.tasks import find_task
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.needs import Needs, has_logprobs
from selfdistill.training.alarm_config import WarningsConfig
from selfdistill.training.config import OutputConfig, ScoringConfig, TrainConfig
from selfdistill.training.recipe_file import dump_yaml, merged, read_extended, split_override
from selfdistill.validation import SECTION, explain

MAY_CHANGE = (
    "steps",
    "rollout_tokens",
    "evaluate_every",
    "evaluate_first",
    "save_every",
    "keep_checkpoints",
    "keep_best",
    "save_asynchronously",
    "max_bad_steps",
)
"""Settings of ``train`` that a resumed run may change: what was done so far would have been the same."""

PLACE_MAY_CHANGE = (
    "parallel.",
    "rollouts.server.",
    "rollouts.vllm.",
    "rollouts.mismatch_warning",
    "rollouts.handshake_tolerance",
    "warnings.",
    "evaluation.teacher_questions",
)
"""Beginnings of the settings that a resumed run may change because they say where things are, who is waited for, what
is worth a warning, and what is looked at on the side."""
HOTTEST = 2.0
"""The highest temperature that vLLM takes."""


class Recipe(BaseModel):
    """One run, completely described. Unknown keys are errors that name the nearest key."""

    model_config = SECTION | ConfigDict(arbitrary_types_allowed=True)

    name: str = "run"
    """Names the run folder."""
    notes: str = ""
    """What differs from the published settings, and why; for readers."""
    method: Any
    """A method's name, or ``{name: ..., part: {setting: value}}``."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    rollouts: RolloutsConfig = Field(default_factory=RolloutsConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    scoring: ScoringConfig = Field(default_factory=ScoringConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    warnings: WarningsConfig = Field(default_factory=WarningsConfig)
    output: OutputConfig = Field(default_factory=OutputConfig)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not name.strip(". ") or any(character in name for character in "/\\") or not name.isprintable():
            raise ValueError(f"{name!r} names the run folder, so it needs a letter or digit, and no slash")
        return name

    @field_validator("method", mode="before")
    @classmethod
    def _build_method(cls, value: Any) -> Method:
        if isinstance(value, Method):
            return value
        if isinstance(value, str):
            return build(value)
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            settings = {key: setting for key, setting in value.items() if key not in ("name", "paper")}
            return with_settings(build(value["name"]), settings)
        raise RecipeError(f"method is {value!r}; write a method's name, or a mapping with at least `name:`")

    @field_serializer("method")
    def _method_data(self, value: Method) -> dict[str, Any]:
        return as_data(value)

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        updates, questions = self.train.updates_per_batch, self.train.questions_per_step
        if updates > questions:
            raise ValueError(
                f"train.updates_per_batch is {updates}, more than train.questions_per_step ({questions}); "
                "each update needs at least one question"
            )
        if problem := self._nothing_to_budget() or self._too_hot_for_vllm() or self._ratio_is_lacking():
            raise ValueError(problem)
        return self

    def _nothing_to_budget(self) -> str | None:
        if self.train.rollout_tokens is None or not isinstance(self.method.source, ReferenceSolutions):
            return None
        return (
            f"train.rollout_tokens is {self.train.rollout_tokens}, but method {self.method.name!r} samples nothing; "
            "set train.steps instead"
        )

    def _too_hot_for_vllm(self) -> str | None:
        sections = {"rollouts": self.rollouts.sampling, "evaluation": self.evaluation.sampling}
        for name, sampling in sections.items():
            if self.rollouts.engine != "transformers" and sampling.temperature > HOTTEST:
                return (
                    f"{name}.sampling.temperature is {sampling.temperature}, and vLLM takes {HOTTEST:g} at most; "
                    "lower it, or set rollouts.engine=transformers"
                )
        return None

    def _ratio_is_lacking(self) -> str | None:
        """Return what is wrong if responses are old but nothing corrects for it, or cannot for want of log-probs."""
        method, rollouts = self.method, self.rollouts
        distillation = method.distillation
        if rollouts.ahead and isinstance(method.source, ReferenceSolutions):
            return f"rollouts.ahead is 1, but method {method.name!r} samples nothing; set rollouts.ahead=0"
        if rollouts.ahead and distillation is not None and distillation.ratio_cap is None:
            return (
                "rollouts.ahead is 1, but nothing corrects for responses that are one step old; "
                "add method.distillation.ratio_cap=2 (SDPO's), or set rollouts.ahead=0"
            )
        uses = method.policy is not None or (distillation is not None and distillation.ratio_cap is not None)
        if rollouts.engine == "transformers" or not uses or has_logprobs(rollouts.sampling, self.needs().logprobs_mode):
            return None
        return (
            f"method {method.name!r} weights tokens by the ratio to what drew them, and vLLM has no log-probabilities "
            f"at temperature {rollouts.sampling.temperature} together with top_p or top_k; set "
            "rollouts.sampling.temperature=1, or top_p=1 and top_k=0, or rollouts.engine=transformers"
        )

    def needs(self) -> Needs:
        """Return what an engine must be able to do for this recipe."""
        return Needs(
            new_tokens=max(self.rollouts.sampling.max_new_tokens, self.evaluation.sampling.max_new_tokens),
            lora_rank=self.model.lora.r if self.model.lora else None,
            training=self.rollouts.sampling,
        )

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output.folder or f"runs/{self.name}")

    def to_yaml(self) -> str:
        """Return the resolved recipe; loading it gives an equal recipe."""
        return dump_yaml(self.model_dump(mode="json"))


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a YAML recipe and apply ``section.key=value`` overrides (values are YAML).

    Args:
        path: the file; its stem names the recipe unless the file says otherwise.
        overrides: applied in order.
        changes: nested settings that are put on the file before the overrides.

    Raises:
        RecipeError: for a missing or malformed file, or an unknown, malformed or contradictory setting.
    """
    data = merged(read_extended(Path(path)), changes or {})
    data.setdefault("name", Path(path).stem)
    return overridden_recipe(data, overrides, str(path))


def overridden_recipe(data: Mapping[str, Any], overrides: Sequence[str], where: str = "recipe") -> Recipe:
    """Validate plain data with ``section.key=value`` overrides as a recipe. Raises as :func:`load_recipe`."""
    for override in overrides:
        data = _overridden(data, override)
    return parse_recipe(data, where)


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validate plain data as a recipe.

    Raises:
        RecipeError: naming ``where``, the setting and its value.
    """
    if data.get("method") is None:
        raise RecipeError(f"{where}: there is no `method:`; write for example `method: paint`")
    try:
        return Recipe.model_validate(dict(data))
    except ValidationError as error:
        raise RecipeError(f"{where}: {explain(error, Recipe)}") from None
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def differing_settings(first: Recipe, second: Recipe) -> dict[str, tuple[str, str]]:
    """Return the settings in which two recipes differ, as JSON by dotted name, apart from output and notes."""
    one, two = _flat(_spelled_out(first)), _flat(_spelled_out(second))
    names = (name for name in dict.fromkeys([*one, *two]) if not name.startswith(("output.", "notes")))
    return {name: (one.get(name, "unset"), two.get(name, "unset")) for name in names if one.get(name) != two.get(name)}


def resume_conflicts(before: Recipe, now: Recipe) -> dict[str, tuple[str, str]]:
    """Return the settings that differ, and that a run must keep when it is resumed."""
    free = {f"train.{name}" for name in MAY_CHANGE}
    if now.train.schedule == "cosine":  # the number of steps decides the learning rate of every step
        free.remove("train.steps")
    if (now.train.rollout_tokens or math.inf) < (before.train.rollout_tokens or math.inf):
        free.remove("train.rollout_tokens")  # what was done so far might have ended earlier
    return {
        name: both
        for name, both in differing_settings(before, now).items()
        if name not in free and not name.startswith(PLACE_MAY_CHANGE)
    }


def describe_changes(changes: Mapping[str, tuple[str, str]]) -> str:
    """Return the first few of :func:`differing_settings` as text."""
    shown = [f"{name} ({old}, now {new})" for name, (old, new) in list(changes.items())[:4]]
    more = len(changes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _overridden(data: Mapping[str, Any], override: str) -> dict[str, Any]:
    key, value = split_override(override)
    head = key.split(".")[0]
    if head not in Recipe.model_fields:
        raise RecipeError(f"{override!r}: a recipe has no section {head!r}{nearest(head, Recipe.model_fields)}")
    return merged(data, nested(key, value))


def _spelled_out(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain data, with the prompt template that a task brings where the recipe has none."""
    data: dict[str, Any] = recipe.model_dump(mode="json")
    if recipe.data.prompt_template is None:
        data["data"]["prompt_template"] = find_task(recipe.data.task).prompt_template
    return data


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat
