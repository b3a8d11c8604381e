"""Lengths and tokens of a step: from the recipe's own questions where they are here, assumed where they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from selfdistill.planning.lengths import ASSUMED_PROMPT, lengths_of, local_chat, local_data
from selfdistill.planning.setup import Setup
from selfdistill.planning.tokens import forwarded_share, tokens_of
from selfdistill.training.recipe import Recipe, load_recipe

EMBEDDED = Path(__file__).resolve().parents[2] / "recipes" / "embedded"


def of(recipe: Recipe, context: int = 512):
    return lengths_of(recipe, context, local_data(recipe), local_chat(recipe))


def test_questions_that_are_here_are_looked_at() -> None:
    lengths = of(load_recipe(EMBEDDED / "paint.yaml"))
    assert "256 questions" in lengths.source and lengths.evaluates
    assert 0 < lengths.mean_prompt <= lengths.prompt < lengths.teacher_prompt
    assert lengths.response == 80


def test_a_sibling_s_response_is_counted_as_long_as_it_may_be() -> None:
    short, long = (
        of(load_recipe(EMBEDDED / "sc_sdpo.yaml", [f"rollouts.sampling.max_new_tokens={new}"])) for new in (20, 80)
    )
    assert long.teacher_prompt - short.teacher_prompt == 60


def test_without_a_teacher_there_is_no_privileged_prompt() -> None:
    assert of(load_recipe(EMBEDDED / "grpo.yaml")).teacher_prompt == 0


def test_reference_solutions_are_their_own_length() -> None:
    lengths = of(load_recipe(EMBEDDED / "sft.yaml"))
    assert lengths.response < 80


def test_questions_that_are_elsewhere_are_assumed_and_not_fetched(recipe: Callable[..., Recipe]) -> None:
    made = recipe(data={"task": "maths", "train": "owner/name"})
    assert local_data(made) is None
    lengths = of(made, 40_960)
    assert lengths.prompt == ASSUMED_PROMPT and "assumed: the questions" in lengths.source
    limited = recipe("sdpo", data={"task": "maths", "train": "owner/name"}, rollouts={"max_prompt_tokens": 100})
    assert of(limited, 40_960).prompt == 100


def test_a_step_s_tokens_are_rows_times_lengths(setup: Callable[..., Setup], recipe: Callable[..., Recipe]) -> None:
    made = setup("sdpo", train={"questions_per_step": 4})
    tokens = tokens_of(made, recipe("sdpo"))
    assert tokens.rows == 32 and tokens.sampled == tokens.scored == 32 * 24
    assert tokens.student == 32 * (40 + 24 - 1) and tokens.teacher == 32 * (90 + 24 - 1)
    assert tokens_of(setup("grpo"), recipe("grpo")).teacher == 0
    assert tokens_of(setup("sft"), recipe("sft")).sampled == 0


def test_a_trust_region_s_teacher_reads_twice(setup: Callable[..., Setup], recipe: Callable[..., Recipe]) -> None:
    method = {"name": "sdpo", "teacher": {"kind": "trust_region"}}
    one, two = (tokens_of(setup(name), recipe(name)).teacher for name in ("sdpo", method))
    assert two == 2 * one


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0.0), (1.0, 0.0), (0.5, 1 - 2 / 256)])
def test_a_question_needs_a_success_and_a_failure(rate: float, share: float) -> None:
    assert forwarded_share(rate, 8) == pytest.approx(share)


@pytest.mark.parametrize(
    ("method", "words"),
    [("paint", "all rows"), ("sc_sdpo", "99% at p=0.5"), ("grpo", "99% at p=0.5"), ("sdpo", "sibling's success")],
)
def test_the_share_that_is_forwarded_is_said_where_it_can_be(
    method: str, words: str, setup: Callable[..., Setup], recipe: Callable[..., Recipe]
) -> None:
    assert words in tokens_of(setup(method), recipe(method)).forwarded
