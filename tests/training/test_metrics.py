"""What a step logs describes the whole batch, also the rollouts that are not trained on."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from selfdistill.contexts import PrivilegedPrompt
from selfdistill.methods import build
from selfdistill.objectives.losses import TokenLosses
from selfdistill.objectives.record import TokenRecord
from selfdistill.questions.question import Question
from selfdistill.rollouts.rollout import FinishReason, Rollout
from selfdistill.training.metrics import Drawn, Metrics, TokenMeans, batch_metrics, finite
from selfdistill.training.plan import make_plan
from selfdistill.verifiers.verdict import Group, Verdict


def group(name: str, verdicts: Sequence[Verdict], text: str = "2", finish: FinishReason = "stop") -> Group:
    question = Question(name, ({"role": "user", "content": "1+1"},))
    rollouts = tuple(
        Rollout(question, sibling, (5,), (6,) * (sibling + 1), (-1.0,) * (sibling + 1), text, finish)
        for sibling in range(len(verdicts))
    )
    return Group(question, rollouts, tuple(verdicts))


def prompt(source: str = "demonstration", **values: Any) -> PrivilegedPrompt:
    return PrivilegedPrompt((), (5, 6), "2", source, **values)


RIGHT, WRONG, UNPARSED = Verdict(1.0, True, "2"), Verdict(0.5, False, "3"), Verdict(0.0, False)
GROUPS = [
    group("a", [RIGHT, WRONG, WRONG, UNPARSED]),
    group("b", [RIGHT] * 4, text="As the reference solution shows, 2", finish="length"),
]


def metrics(
    name: str, prompts: Sequence[Sequence[PrivilegedPrompt | None]], groups: Sequence[Group] = GROUPS
) -> Metrics:
    method = build(name)
    return batch_metrics(make_plan(method, groups, prompts, {"a": 0.5, "b": 0.5}), method.source)


def test_a_batch_is_described_by_its_rollouts_and_verdicts() -> None:
    logged = metrics("sc_sdpo", [[None, prompt(), prompt(), prompt("feedback")], [prompt()] * 4])
    assert logged["rollouts"] == 8
    assert logged["response_length"] == 2.5
    assert logged["truncated_share"] == 0.5
    assert logged["unparseable_share"] == 1 / 8
    assert logged["leak_rate"] == 0.5
    assert logged["reward"] == (1 + 0.5 + 0.5 + 0 + 4) / 8
    assert logged["forwarded_share"] == 3 / 8


def test_pass_rates_and_weights_are_logged() -> None:
    logged = metrics("sc_sdpo", [[prompt()] * 4, [prompt()] * 4])
    assert logged["pass_rate"] == 0.625
    assert logged["informative_share"] == 0.5
    assert logged["weight_sum"] == logged["weight_max"] == 1.0
    assert logged["weighted_share"] == 0.5


def test_what_only_some_verifiers_say_is_averaged_over_the_responses_that_it_is_said_of() -> None:
    half, whole = Verdict(0.0, False, passed=0.5, well_formed=True), Verdict(1.0, True, "2", passed=1.0)
    broken = Verdict(0.0, False, passed=0.0, well_formed=False)
    logged = metrics("grpo", [[None] * 4] * 2, [group("a", [half, whole, broken, RIGHT]), GROUPS[1]])
    assert (logged["tests_passed"], logged["well_formed"]) == (0.5, 0.5)
    assert not {"tests_passed", "well_formed"} & metrics("grpo", [[None] * 4] * 2).keys()


def test_the_histogram_counts_questions_by_successes_in_the_group() -> None:
    groups = [group("a", [RIGHT] * 7 + [WRONG]), group("b", [WRONG] * 8)]
    assert metrics("grpo", [[None] * 8] * 2, groups)["pass_rate_histogram"] == [1, 0, 0, 0, 0, 0, 0, 1, 0]


def test_what_the_teacher_was_shown_is_logged() -> None:
    shown = [prompt(overlap=0.5, hidden_ratio=0.35, truncated_tokens=3), prompt("privileged_feedback", overlap=1.0)]
    logged = metrics("sdpo", [[*shown, None, None], [prompt("demonstration+feedback"), None, None, None]])
    assert logged["reprompted_share"] == 3 / 8
    assert logged["feedback_share"] == 2 / 8
    assert logged["context_truncated_tokens"] == 3
    assert (logged["overlap"], logged["hidden_ratio"]) == (0.75, 0.35)


@pytest.mark.parametrize("name", ["sdpo", "srpo"])
def test_a_batch_in_which_nothing_could_be_taught_logs_a_share_of_zero(name: str) -> None:
    logged = metrics(name, [[None] * 4] * 2)
    assert logged["reprompted_share"] == 0
    assert "overlap" not in logged


@pytest.mark.parametrize("name", ["grpo", "grpo_unnormalized"])
def test_a_method_without_a_teacher_logs_nothing_about_one(name: str) -> None:
    assert "reprompted_share" not in metrics(name, [[None] * 4] * 2)


def test_supervised_training_logs_no_pass_rate() -> None:
    logged = metrics("sft", [[None]], [group("a", [RIGHT])])
    assert logged == {"rollouts": 1, "response_length": 1.0, "forwarded_share": 1.0}


def test_token_means_weigh_every_token_the_same_whatever_the_micro_batches() -> None:
    means = TokenMeans()
    means.add("x", torch.tensor([1.0, 2.0, 3.0]))
    means.add("x", torch.tensor([10.0]))
    means.add("y", None)
    means.add("y", torch.tensor([]))
    assert means.means() == {"x": 4.0}


def test_token_means_keep_no_graph_alive() -> None:
    means = TokenMeans()
    means.add("x", torch.ones(2, requires_grad=True) * 2)
    assert not any(total.requires_grad for total in means._sums.values())


def test_the_losses_of_a_micro_batch_are_summarised() -> None:
    record = TokenRecord(
        student_entropy=torch.tensor([1.0, 2.0, 4.0]),
        student_logprob=torch.tensor([-1.0, -2.0, -3.0], requires_grad=True),
        divergence=torch.tensor([0.1, 0.2, 0.3]),
        teacher_entropy=torch.tensor([2.0, 2.0, 2.0]),
        clip_fraction=torch.tensor([0.0, 0.5, 1.0]),
    )
    selected = torch.tensor([True, False, False])
    means = TokenMeans()
    means.add_losses(TokenLosses(record.divergence, record, selected=selected), torch.tensor([-1.5, -2.0, -2.0]))
    means.add_losses(TokenLosses(record.divergence, record, selected=selected), None)
    logged = means.means()
    assert logged == pytest.approx(
        {
            "divergence": 0.2,
            "student_entropy": 7 / 3,
            "teacher_entropy": 2.0,
            "clip_fraction": 0.5,
            "selected_share": 1 / 3,
            "selected_ratio": 2.0,
        }
    )


@pytest.mark.parametrize("drawn", ["now", "before", "within_batch"])
def test_the_difference_to_what_drew_the_tokens_is_measured_only_where_it_means_something(drawn: Drawn) -> None:
    means = TokenMeans()
    for own, theirs in (([-1.0, -2.0], [-1.5, -2.0]), ([-3.0], [-2.0])):
        logprobs = torch.tensor(own, requires_grad=True)
        record = TokenRecord(student_entropy=torch.zeros(len(own)), student_logprob=logprobs)
        means.add_difference(TokenLosses(-logprobs, record), torch.tensor(theirs), drawn)
        means.add_difference(TokenLosses(-logprobs, record), None, drawn)
    kl = sum(math.exp(moved) - 1 - moved for moved in (0.5, 0.0, -1.0)) / 3
    expected = {
        "now": {"sampler_mismatch": 0.5, "sampler_mismatch_max": 1.0, "sampler_kl": kl},
        "before": {"policy_moved": 0.5},
        "within_batch": {},
    }
    assert means.means() == pytest.approx(expected[drawn])


def test_what_json_cannot_hold_becomes_null() -> None:
    values = {"a": math.nan, "b": math.inf, "c": 1.5, "d": 3, "e": [1, 2], "f": "text"}
    logged = finite(values)
    assert logged == {"a": None, "b": None, "c": 1.5, "d": 3, "e": [1, 2], "f": "text"}
    assert json.loads(json.dumps(logged, allow_nan=False)) == logged
