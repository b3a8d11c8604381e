"""Weights, routes and denominators are settled for the whole batch before anything is forwarded."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.contexts import PrivilegedPrompt
from selfdistill.errors import DataError
from selfdistill.methods import build
from selfdistill.objectives.parts import Reduction
from selfdistill.questions.question import Question
from selfdistill.rollouts.rollout import Rollout
from selfdistill.training.plan import Plan, Row, make_plan
from selfdistill.verifiers.verdict import Group, Verdict

Rewards = Sequence[float]


def group(name: str, rewards: Rewards, lengths: Sequence[int] | None = None, success: float = 1.0) -> Group:
    """One question's group; a reward of at least ``success`` is a success."""
    question = Question(name, ({"role": "user", "content": "1+1"},))
    rollouts = tuple(
        Rollout(question, sibling, (5, 6), tuple(range(7, 7 + length)), (-1.0,) * length, "2", "stop")
        for sibling, length in enumerate(lengths or [3] * len(rewards))
    )
    return Group(question, rollouts, tuple(Verdict(reward, reward >= success) for reward in rewards))


def prompt(source: str = "demonstration") -> PrivilegedPrompt:
    return PrivilegedPrompt(({"role": "user", "content": "1+1"},), (5, 6, 8), "2", source)


def plan(
    method: str,
    groups: Sequence[Group],
    prompted: bool | Sequence[Sequence[bool]] = True,
    prior: dict[str, float] | None = None,
    **settings: Any,
) -> Plan:
    """Plan with a privileged prompt for all rollouts, none, or those that ``prompted`` says."""
    flags = [[prompted] * len(one.rollouts) for one in groups] if isinstance(prompted, bool) else prompted
    prompts = [[prompt() if flag else None for flag in row] for row in flags]
    return make_plan(build(method, **settings), groups, prompts, prior)


def step(made: Plan, **reduction: Any) -> tuple[Row, ...]:
    (rows,) = made.parts(1, Reduction(**reduction))
    return rows


def per_question(made: Plan) -> dict[str, set[float]]:
    weights: dict[str, set[float]] = {}
    for row in made.rows:
        weights.setdefault(row.rollout.question.id, set()).add(row.weight)
    return weights


def test_pass_rates_count_successes_and_ignore_partial_credit() -> None:
    """A mean reward of 0.5 with no success is a pass rate of 0."""
    groups = [group("credit", [0.5] * 4), group("half", [1, 1, 0, 0]), group("mixed", [0.9, 0.9, 1, 0.9])]
    assert [one.pass_rate for one in groups] == [0, 0.5, 0.25]
    made = plan("sc_sdpo", groups)
    raw = [0.0, 0.25**0.5, (0.25 * 0.75) ** 0.5]
    assert made.question_weights == pytest.approx([weight / ((raw[1] + raw[2]) / 2) for weight in raw])


def test_pass_rates_are_taken_before_demonstrations_leave_rollouts_out() -> None:
    """The lone success has no sibling to learn from; it still counts in p."""
    made = plan("sc_sdpo", [group("q", [1, 0, 0, 0])], prompted=[[False, True, True, True]])
    assert made.question_weights == (1.0,)
    assert made.groups[0].pass_rate == 0.25
    assert [row.rollout.sibling for row in step(made)] == [1, 2, 3]


def test_published_weights_of_sc_sdpo_follow_from_the_batchs_pass_rates() -> None:
    groups = [group(f"q{successes}", [1] * successes + [0] * (8 - successes)) for successes in (0, 1, 4, 7, 8)]
    assert plan("sc_sdpo", groups).question_weights == pytest.approx([0, 0.854249, 1.291503, 0.854249, 0], abs=1e-6)
    assert plan("sc_sdpo", groups, alpha=1).question_weights == pytest.approx([0, 0.7, 1.6, 0.7, 0])


def test_every_rollout_carries_its_questions_weight() -> None:
    groups = [group("a", [1, 0, 0, 0]), group("b", [1, 1, 0, 0]), group("c", [1, 1, 1, 1])]
    made = plan("sc_sdpo", groups)
    assert list(per_question(made).values()) == [{weight} for weight in made.question_weights]


def test_weights_are_the_global_batchs_also_when_it_is_split_into_several_updates() -> None:
    groups = [group("a", [1, 0, 0, 0]), group("b", [1, 1, 0, 0]), group("c", [1, 1, 1, 0]), group("d", [0, 0, 1, 1])]
    made = plan("sc_sdpo", groups)
    parts = made.parts(2, Reduction())
    assert [{row.rollout.question.id for row in part} for part in parts] == [{"a", "b"}, {"c", "d"}]
    assert sum(made.question_weights) == pytest.approx(4)
    for part in parts:
        for row in part:
            assert row.weight == made.question_weights["abcd".index(row.rollout.question.id)]
            assert row.token_weight == pytest.approx(row.weight / (3 * 8))  # the part's own denominator: 8 rollouts


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12))
def test_updates_split_a_batch_into_whole_groups_each_once(questions: int, count: int) -> None:
    made = plan("grpo", [group(f"q{index}", [1, 0]) for index in range(questions)])
    parts = made.parts(count, Reduction())
    seen = [row.rollout.question.id for part in parts for row in part]
    assert len(parts) == count
    assert seen == [f"q{index}" for index in range(questions) for _ in range(2)]
    if count <= questions:
        assert all(parts)  # no update goes without a question


def test_paced_weights_come_from_before_training_not_from_the_batch() -> None:
    prior = {"a": 0.25, "b": 0.5, "c": 1.0, "elsewhere": 0.5}
    groups = [group("a", [1, 1, 1, 1]), group("b", [0, 0, 0, 0]), group("c", [1, 0, 0, 0])]
    mean = (0.1875 + 0.25 + 0 + 0.25) / 4  # over the data set, not over the batch
    assert plan("paced", groups, prior=prior).question_weights == pytest.approx([0.1875 / mean, 0.25 / mean, 0])


@pytest.mark.parametrize("prior", [None, {"b": 0.5}])
def test_paced_without_a_prior_pass_rate_is_refused(prior: dict[str, float] | None) -> None:
    with pytest.raises(DataError, match="'a' has no pass rate from before training"):
        plan("paced", [group("a", [1, 0])], prior=prior)


def test_the_hard_filter_drops_questions_outside_its_band() -> None:
    groups = [group("hard", [1] + [0] * 7), group("middle", [1] * 4 + [0] * 4), group("easy", [1] * 7 + [0])]
    made = plan("hard_filter", groups)
    assert made.question_weights == (0, 1, 0)
    assert {row.rollout.question.id for row in step(made)} == {"middle"}


def test_srpo_distils_failures_that_have_context_and_rewards_everything_else() -> None:
    made = plan("srpo", [group("q", [1, 0, 0, 1])], prompted=[[True, True, False, False]])
    assert [row.objective for row in made.rows] == ["policy", "distillation", "policy", "policy"]
    assert [row.advantage for row in made.rows] == [1, -1, -1, 1]


def test_srpo_does_not_forward_a_degenerate_group_without_context_but_counts_its_tokens() -> None:
    groups = [group("flat", [0, 0], [4, 6]), group("mixed", [1, 0], [5, 5])]
    made = plan("srpo", groups, prompted=[[False, False], [True, True]])
    rows = step(made, kind="token_mean")
    assert [(row.rollout.question.id, row.objective) for row in rows] == [
        ("mixed", "policy"),
        ("mixed", "distillation"),
    ]
    assert {row.token_weight for row in rows} == {1 / 20}


@pytest.mark.parametrize("name", ["grpo", "grpo_unnormalized"])
def test_groups_whose_rewards_are_equal_have_no_signal(name: str) -> None:
    made = plan(name, [group("same", [1, 1, 1, 1]), group("credit", [0.3, 0.3, 0.3, 0.3])], prompted=False)
    assert [row.advantage for row in made.rows] == [0] * 8
    assert step(made) == ()


def test_advantages_use_rewards_partial_credit_included() -> None:
    made = plan("grpo_unnormalized", [group("q", [1.0, 0.5, 0.0, 0.5])], prompted=False)
    assert [row.advantage for row in made.rows] == [0.5, 0, -0.5, 0]
    made = plan("grpo", [group("q", [1, 0, 0, 0])], prompted=False)
    assert [row.advantage for row in made.rows] == pytest.approx([1.732051, -0.577350, -0.577350, -0.577350], abs=1e-6)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ({"kind": "sequence_mean", "over": "all"}, [1 / (2 * 4), 1 / (6 * 4)]),
        ({"kind": "sequence_mean", "over": "informative"}, [1 / (2 * 2), 1 / (6 * 2)]),
        ({"kind": "token_mean", "over": "all"}, [1 / 16, 1 / 16]),
        ({"kind": "token_mean", "over": "informative"}, [1 / 8, 1 / 8]),
    ],
)
def test_each_reduction_has_the_denominator_that_its_name_says(
    reduction: dict[str, str], expected: list[float]
) -> None:
    """Four rollouts of 2, 3, 5 and 6 tokens; the second and the third have no signal."""
    made = plan("sdpo", [group("q", [1, 1, 0, 0], [2, 3, 5, 6])], prompted=[[True, False, False, True]])
    rows = step(made, **reduction)
    assert [row.rollout.sibling for row in rows] == [0, 3]
    assert [row.token_weight for row in rows] == pytest.approx(expected)


def test_rows_without_tokens_have_no_signal() -> None:
    made = plan("sdpo", [group("q", [1, 0], [0, 3])])
    assert [row.rollout.sibling for row in step(made)] == [1]


def test_references_are_imitated_whatever_their_verdict() -> None:
    made = plan("sft", [group("a", [1], [4]), group("b", [1], [6])], prompted=False)
    assert [row.objective for row in made.rows] == ["imitation"] * 2
    assert [row.token_weight for row in step(made, kind="token_mean")] == [1 / 10, 1 / 10]


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6))
def test_informative_questions_have_mean_weight_one_and_all_others_none(successes: list[list[bool]]) -> None:
    groups = [group(f"q{index}", [float(one) for one in row]) for index, row in enumerate(successes)]
    weights = plan("sc_sdpo", groups).question_weights
    informative = [weight for weight, one in zip(weights, groups, strict=True) if 0 < one.pass_rate < 1]
    assert sum(weights) == pytest.approx(len(informative))
    assert all(weight == 0 for weight, one in zip(weights, groups, strict=True) if one.pass_rate in (0, 1))
