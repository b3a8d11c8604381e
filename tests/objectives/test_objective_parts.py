"""The objective parts validate themselves and refuse settings that contradict each other."""

import pytest
from pydantic import ValidationError

from selfdistill.objectives import Distillation, DivergenceSettings, Imitation, PolicyGradient, Reduction

PUBLISHED = [
    {"divergence": "forward_kl", "entry_clip": 0.06, "interpolation_fraction": 0.03, "interpolation_strength": 0.03},
    {"divergence": "forward_kl", "entry_clip": 0.05},
    {"divergence": "forward_kl", "support": "teacher_topk", "top_k": 50},
    {"divergence": "reverse_kl", "estimator": "sampled_token"},
    {"divergence": "jsd", "support": "student_topk", "top_k": 100, "ratio_cap": 2.0},
    {"divergence": "reverse_kl", "support": "student_topk", "top_k": 20, "ratio_cap": 2.0},
    {"divergence": "jsd", "support": "student_topk", "top_k": 100, "ratio_cap": 2.0, "entropy_weight": 1.0},
]


@pytest.mark.parametrize("chosen", PUBLISHED)
def test_every_published_objective_can_be_said(chosen):
    assert Distillation(**chosen) == Distillation(**chosen)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"divergence": "revers_kl"}, "did you mean 'reverse_kl'"),
        ({"support": "topk"}, "valid: |did you mean"),
        ({"estimator": "sampled"}, "did you mean 'sampled_token'"),
        ({"beta": 0.3}, "beta=0.3 has no meaning"),
        ({"divergence": "jsd", "beta": 0.0}, "reverse_kl"),
        ({"divergence": "jsd", "beta": 1.0}, "forward_kl"),
        ({"top_k": 20}, "top_k=20 has no meaning"),
        ({"support": "student_topk"}, "needs top_k"),
        ({"support": "student_topk", "top_k": 0}, "greater than or equal to 1"),
        ({"tail": False}, "tail=False has no meaning"),
        ({"support": "teacher_topk", "top_k": 5, "tail": False}, "tail=False has no meaning"),
        ({"entry_clip": 0.05, "token_clip": 0.1}, "exclude each other"),
        ({"entry_clip": 0.0}, "greater than 0"),
        ({"temperature": -1.0}, "greater than 0"),
        ({"interpolation_fraction": 0.03}, "only work together"),
        ({"interpolation_strength": 0.03}, "only work together"),
        ({"interpolation_fraction": 1.5, "interpolation_strength": 0.1}, "less than or equal to 1"),
        (
            {"interpolation_fraction": 0.1, "interpolation_strength": 0.1, "support": "teacher_topk", "top_k": 5},
            "needs support='full'",
        ),
        ({"estimator": "sampled_token"}, "set divergence='reverse_kl'"),
        ({"estimator": "sampled_token", "divergence": "reverse_kl", "entry_clip": 0.1}, "entry_clip=0.1 is not read"),
        (
            {"estimator": "sampled_token", "divergence": "reverse_kl", "support": "student_topk", "top_k": 5},
            "support='student_topk' is not read",
        ),
        ({"estimator": "sampled_token", "divergence": "reverse_kl", "temperature": 1.1}, "temperature=1.1 is not read"),
        ({"ratio_cap": 0.0}, "greater than 0"),
        ({"entropy_weight": -1.0}, "greater than or equal to 0"),
        ({"entry_clp": 0.05}, "entry_clp"),
    ],
)
def test_a_contradiction_is_refused_with_the_remedy(chosen, message):
    with pytest.raises(ValidationError, match=message):
        Distillation(**chosen)


def test_the_distillation_temperature_is_the_sampling_temperature_unless_it_is_set():
    assert Distillation().settings(1.1).temperature == 1.1
    assert Distillation(temperature=2.0).settings(1.1).temperature == 2.0


def test_the_divergence_gets_every_setting_of_the_part():
    part = Distillation(divergence="jsd", beta=0.3, support="student_topk", top_k=7, tail=False, token_clip=0.4)
    assert part.settings(1.0) == DivergenceSettings(
        divergence="jsd", beta=0.3, temperature=1.0, support="student_topk", top_k=7, tail=False, token_clip=0.4
    )


def test_parts_are_frozen_and_know_their_kind():
    for part in (Distillation(), PolicyGradient(), Imitation(), Reduction()):
        with pytest.raises(AttributeError):
            part.kind = "other"
    assert (PolicyGradient().clip_low, PolicyGradient().clip_high) == (0.2, 0.28)


@pytest.mark.parametrize("chosen", [{"clip_low": 1.0}, {"clip_low": -0.1}, {"clip_high": -0.1}, {"clip": 0.2}])
def test_a_policy_gradient_refuses_clips_that_cannot_be(chosen):
    with pytest.raises(ValidationError):
        PolicyGradient(**chosen)


def test_a_reduction_names_the_nearest_valid_name():
    with pytest.raises(ValidationError, match="did you mean 'token_mean'"):
        Reduction(kind="token_man")
    with pytest.raises(ValidationError, match="did you mean 'informative'"):
        Reduction(over="informed")
    assert Reduction(kind="token_mean").token_weights([1, 3], [1, 1], [True, True]) == [0.25, 0.25]
