"""Every part of a method can be overridden; what cannot be meant is refused with one clear sentence."""

from itertools import permutations
from typing import Any

import pytest

from selfdistill.contexts import FullSolution, PartialSolution, SiblingSuccess
from selfdistill.errors import RecipeError
from selfdistill.methods import build, names, with_settings
from selfdistill.teachers import Initial, TrustRegion
from selfdistill.weighting.parts import PassRate, Uniform


def refusal(name: str, **settings: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        build(name, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_dotted_nested_and_bare_names_mean_the_same() -> None:
    dotted = build("paint", **{"context.hidden_wrong": 0.25})
    assert dotted == build("paint", context={"hidden_wrong": 0.25}) == build("paint", hidden_wrong=0.25)
    assert isinstance(dotted.context, PartialSolution)
    assert (dotted.context.hidden_wrong, dotted.context.hidden_correct) == (0.25, 0.40)


def test_an_override_leaves_every_other_part_alone() -> None:
    before, after = build("sc_sdpo"), build("sc_sdpo", alpha=1.0)
    assert after.weighting == PassRate(alpha=1.0)
    for part in ("source", "routing", "reduction", "context", "teacher", "distillation", "policy", "imitation"):
        assert getattr(before, part) == getattr(after, part)


def test_settings_three_levels_deep_can_be_overridden() -> None:
    method = build("paint", **{"context.template.heading": "Look:"})
    assert isinstance(method.context, PartialSolution) and method.context.template.heading == "Look:"
    assert build("paint", heading="Look:") == method


def test_another_kind_starts_from_its_own_defaults() -> None:
    method = build("paint", hidden_wrong=0.1)
    switched = with_settings(method, {"context.kind": "full_solution"})
    assert switched.context == FullSolution()
    assert with_settings(switched, {"context": {"kind": "partial_solution"}}).context == PartialSolution()


def test_a_kind_can_be_written_in_place_of_its_part() -> None:
    assert build("opsd", teacher="trust_region").teacher == TrustRegion()
    assert build("opsd", teacher={"kind": "trust_region", "rate": 0.2}).teacher == TrustRegion(rate=0.2)


def test_naming_the_kind_that_a_part_has_keeps_its_settings() -> None:
    method = build("paint", context={"kind": "partial_solution", "hidden_wrong": 0.1})
    assert method.context == PartialSolution(hidden_wrong=0.1, thinking=True)


def test_settings_of_a_newly_chosen_kind_can_be_written_by_their_bare_names() -> None:
    assert build("sdpo", weighting="pass_rate", alpha=1.0).weighting == PassRate(alpha=1.0)
    method = build("sdpo", **{"context.kind": "partial_solution", "hidden_wrong": 0.2, "heading": "Look:"})
    assert isinstance(method.context, PartialSolution)
    assert (method.context.hidden_wrong, method.context.template.heading) == (0.2, "Look:")


def test_the_order_in_which_settings_are_written_does_not_matter() -> None:
    settings = {
        "context.kind": "full_solution",
        "context.thinking": True,
        "context": {"template": {"heading": "Look:"}},
    }
    built = [build("paint", **dict(order)) for order in permutations(settings.items())]
    assert all(method == built[0] for method in built)
    assert isinstance(built[0].context, FullSolution) and built[0].context.thinking is True


def test_an_objective_can_be_added_and_removed() -> None:
    mixed = build(
        "grpo", routing="failures_to_distillation", context="sibling_success", teacher="initial", distillation={}
    )
    assert mixed.distillation is not None and isinstance(mixed.context, SiblingSuccess)
    back = with_settings(
        mixed, {"routing": build("grpo").routing, "context": "none", "teacher": "none", "distillation": None}
    )
    assert back == build("grpo")


def test_a_setting_can_be_switched_off_with_null() -> None:
    method = build("paint", entry_clip=None)
    assert method.distillation is not None and method.distillation.entry_clip is None


def test_numbers_may_come_as_the_text_that_a_command_line_gives() -> None:
    assert build("sc_sdpo", alpha="1e-1").weighting == PassRate(alpha=0.1)


@pytest.mark.parametrize("name", names())
def test_no_settings_change_nothing(name: str) -> None:
    assert with_settings(build(name), {}) == build(name)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("paint", {"hiden_wrong": 0.2}, "no setting 'hiden_wrong' (did you mean 'hidden_wrong'?)"),
        ("paint", {"contxt": "none"}, "no setting 'contxt' (did you mean 'context'?)"),
        ("paint", {"contxt.hidden_wrong": 0.2}, "no part 'contxt' (did you mean 'context'?)"),
        ("paint", {"context.hiden_wrong": 0.2}, "'context.hiden_wrong' (did you mean 'hidden_wrong'?)"),
        ("paint", {"context": {"hiden_wrong": 0.2}}, "'context.hiden_wrong' (did you mean 'hidden_wrong'?)"),
        ("paint", {"context.template.headng": "x"}, "'context.template.headng' (did you mean 'heading'?)"),
        ("paint", {"context": "full_solutoin"}, "unknown kind 'full_solutoin' (did you mean 'full_solution'?)"),
        ("paint", {"placement": "sufix"}, "(did you mean 'suffix'?)"),
        ("paint", {"divergence": "forwardkl"}, "(did you mean 'forward_kl'?)"),
        ("sdpo", {"clip_low": 0.1}, "method 'sdpo' has no setting 'clip_low'"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest_valid_one(
    name: str, settings: dict[str, Any], sentence: str
) -> None:
    assert sentence in refusal(name, **settings)


def test_an_ambiguous_name_is_refused_with_the_full_names() -> None:
    message = refusal("srpo", kind="x")
    assert "ambiguous" in message and "context.kind" in message and "weighting.kind" in message


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("paint", {"teacher": "none"}, ("needs a teacher", "initial")),
        ("paint", {"context": "none"}, ("needs privileged text", "full_solution")),
        ("paint", {"distillation": None}, ("'distillation'", "does not have")),
        ("paint", {"policy": {}}, ("policy is set", "routing sends no row there")),
        ("paint", {"support": "student_topk"}, ("distillation:", "top_k")),
        ("paint", {"token_clip": 0.5}, ("entry_clip=0.06 and token_clip=0.5",)),
        ("paint", {"interpolation_strength": 0}, ("interpolation_fraction=0.03", "only work together")),
        ("grpo", {"context": "full_solution"}, ("never used", "no distillation")),
        ("grpo", {"teacher": "initial"}, ("never used", "no distillation")),
        ("grpo", {"source": "reference_solutions"}, ("reference_solutions", "imitation learns from")),
        ("sft", {"source": "rollouts"}, ("rollouts", "imitation learns from")),
        ("sc_sdpo", {"group_size": 1}, ("source.group_size is 1", "'pass_rate'", "2 or more")),
        ("hard_filter", {"group_size": 1}, ("source.group_size is 1", "'hard_filter'")),
        ("grpo", {"group_size": 1}, ("source.group_size is 1", "'policy_gradient'")),
        ("sdpo", {"group_size": 1, "feedback": "off"}, ("source.group_size is 1", "'sibling_success'")),
        ("sft", {"weighting": "pass_rate"}, ("'pass_rate'", "'reference_solutions'")),
        ("hard_filter", {"low": 0.9}, ("low is 0.9 and high is 0.8",)),
    ],
)
def test_contradictory_settings_are_refused(name: str, settings: dict[str, Any], words: tuple[str, ...]) -> None:
    message = refusal(name, **settings)
    assert all(word in message for word in words), message


def test_one_rollout_per_question_is_fine_where_feedback_can_teach() -> None:
    assert build("sdpo", group_size=1).source.group_size == 1


def test_a_refused_override_leaves_the_method_usable() -> None:
    method = build("opsd")
    with pytest.raises(RecipeError):
        with_settings(method, {"teacher": "none"})
    assert method == build("opsd") and method.teacher == Initial() and method.weighting == Uniform()


@pytest.mark.parametrize(
    "settings", [{3: 1}, {"": 1}, {".": 1}, {"context.": 1}, {"context..kind": "none"}, {"a.b.c": 1}]
)
def test_names_that_cannot_be_names_are_refused(settings: dict[Any, Any]) -> None:
    with pytest.raises(RecipeError):
        with_settings(build("paint"), settings)
