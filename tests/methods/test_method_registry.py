"""Ten methods, each a composition that fits on one screen, prints, reloads and says what was published."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import selfdistill
from selfdistill.errors import RecipeError
from selfdistill.methods import Method, as_data, build, names, summary
from selfdistill.methods.table import COLUMNS, cells, method_table

SOURCE = Path(selfdistill.__file__).parent
NAMES = ["paint", "opsd", "sdpo", "sc_sdpo", "paced", "hard_filter", "srpo", "grpo", "grpo_unnormalized", "sft"]
SDPO_LOSS = {"divergence": "jsd", "beta": 0.5, "support": "student_topk", "top_k": 100, "tail": True, "ratio_cap": 2.0}
SDPO_PARTS = {
    "source": {"kind": "rollouts", "group_size": 8},
    "context": {"kind": "sibling_success", "demonstration": "random", "threshold": 0.5},
    "teacher": {"kind": "moving_average", "rate": 0.05, "every": "batch"},
    "reduction": {"kind": "sequence_mean", "over": "all"},
    "distillation": {**SDPO_LOSS, "entry_clip": None, "entropy_weight": None, "interpolation_fraction": 0.0},
}
GRPO_PARTS = {
    "source": {"kind": "rollouts", "group_size": 8},
    "routing": {"kind": "every_row", "objective": "policy"},
    "context": {"kind": "none"},
    "teacher": {"kind": "none"},
    "reduction": {"kind": "token_mean", "over": "all"},
    "distillation": None,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "paint": {
        "source": {"kind": "rollouts", "group_size": 1},
        "context": {
            "kind": "partial_solution",
            "hidden_wrong": 0.30,
            "hidden_correct": 0.40,
            "placement": "suffix",
            "thinking": True,
        },
        "teacher": {"kind": "initial"},
        "weighting": {"kind": "uniform"},
        "routing": {"kind": "every_row", "objective": "distillation"},
        "reduction": {"kind": "sequence_mean", "over": "all"},
        "distillation": {
            "divergence": "forward_kl",
            "estimator": "full",
            "support": "full",
            "entry_clip": 0.06,
            "token_clip": None,
            "interpolation_fraction": 0.03,
            "interpolation_strength": 0.03,
            "temperature": None,
            "ratio_cap": None,
        },
    },
    "opsd": {
        "source": {"kind": "rollouts", "group_size": 1},
        "context": {"kind": "full_solution", "thinking": True},
        "teacher": {"kind": "initial"},
        "reduction": {"kind": "sequence_mean", "over": "all"},
        "distillation": {
            "divergence": "forward_kl",
            "support": "full",
            "entry_clip": 0.05,
            "interpolation_fraction": 0.0,
            "interpolation_strength": 0.0,
        },
    },
    "sdpo": SDPO_PARTS | {"weighting": {"kind": "uniform"}},
    "sc_sdpo": SDPO_PARTS | {"weighting": {"kind": "pass_rate", "alpha": 0.5}},
    "paced": SDPO_PARTS | {"weighting": {"kind": "paced", "rollouts": 8}},
    "hard_filter": SDPO_PARTS | {"weighting": {"kind": "hard_filter", "low": 0.2, "high": 0.8}},
    "srpo": SDPO_PARTS
    | {
        "routing": {"kind": "failures_to_distillation"},
        "reduction": {"kind": "token_mean", "over": "all"},
        "distillation": SDPO_LOSS | {"entropy_weight": 1.0},
        "policy": {"normalize": True, "clip_low": 0.2, "clip_high": 0.28},
    },
    "grpo": GRPO_PARTS | {"policy": {"normalize": True, "clip_low": 0.2, "clip_high": 0.28}},
    "grpo_unnormalized": GRPO_PARTS | {"policy": {"normalize": False, "clip_low": 0.2, "clip_high": 0.28}},
    "sft": {
        "source": {"kind": "reference_solutions"},
        "routing": {"kind": "every_row", "objective": "imitation"},
        "context": {"kind": "none"},
        "teacher": {"kind": "none"},
        "reduction": {"kind": "token_mean", "over": "all"},
        "imitation": {"kind": "imitation"},
    },
}


def reload(method: Method) -> Method:
    """Print as YAML and build again from what was printed."""
    data = yaml.safe_load(yaml.safe_dump(as_data(method), sort_keys=False))
    return build(data.pop("name"), **data)


def test_the_ten_methods_are_registered_paint_first() -> None:
    assert names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_its_published_settings(name: str) -> None:
    data = as_data(build(name))
    assert data["name"] == name
    for part, published in PUBLISHED[name].items():
        assert (data[part] is None) == (published is None), part
        assert all(data[part][key] == value for key, value in (published or {}).items()), part


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("paint", "2604.26573"),
        ("opsd", "2601.18734"),
        ("sdpo", "2601.20802"),
        ("sc_sdpo", "2605.27765"),
        ("paced", "2603.11178"),
        ("srpo", "2604.02288"),
        ("grpo", "2402.03300"),
    ],
)
def test_every_method_says_which_paper_it_comes_from(name: str, identifier: str) -> None:
    assert identifier in build(name).paper


@settings(deadline=None)
@given(st.sampled_from(NAMES))
def test_building_twice_gives_equal_methods(name: str) -> None:
    assert build(name) == build(name) and build(name) is not build(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_method_reloads_as_an_equal_one(name: str) -> None:
    assert reload(build(name)) == build(name)


@pytest.mark.parametrize(
    "method",
    [
        build("paint", context="full_solution", entry_clip=None, teacher={"kind": "trust_region", "rate": 0.1}),
        build("sdpo", feedback="off"),
        build(
            "sdpo", routing={"objective": "policy"}, distillation=None, policy={}, context="none", teacher="none"
        ),  # an objective that the registered method has, and this one does not
        build("grpo", routing="failures_to_distillation", distillation={}, context="full_solution", teacher="live"),
        build("sc_sdpo", thinking=True, **{"context.template.closing": "Löse sie: „jetzt“"}),
    ],
    ids=["paint", "sdpo without feedback", "sdpo as a policy gradient", "grpo with distillation", "sc_sdpo"],
)
def test_an_overridden_method_reloads_as_an_equal_one(method: Method) -> None:
    assert reload(method) == method


@settings(deadline=None)
@given(
    name=st.sampled_from(["paint", "opsd"]),
    clip=st.none() | st.floats(1e-6, 1e3),
    low=st.floats(0, 1),
    kind=st.sampled_from(["full_solution", "partial_solution"]),
    over=st.sampled_from(["all", "informative"]),
)
def test_any_valid_override_survives_printing(name: str, clip: float | None, low: float, kind: str, over: str) -> None:
    settings: dict[str, Any] = {"entry_clip": clip, "context": kind, "over": over}
    if kind == "partial_solution":
        settings["hidden_wrong"] = low
    method = build(name, **settings)
    assert reload(method) == method
    assert method == build(name, **settings)


def test_methods_say_which_fields_of_a_question_they_need() -> None:
    needs = {name: build(name).requires for name in NAMES}
    assert {name for name, fields in needs.items() if "solution" in fields} == {"paint", "opsd", "sft"}


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_line_that_says_what_it_is(name: str) -> None:
    assert 10 < len(summary(name)) < 120 and "\n" not in summary(name)


@pytest.mark.parametrize("ask", [build, summary])
def test_an_unknown_method_names_the_nearest(ask: Any) -> None:
    with pytest.raises(RecipeError, match=r"unknown method 'sc-sdpo' \(did you mean 'sc_sdpo'\?\)"):
        ask("sc-sdpo")


def test_the_table_has_a_line_per_method_and_shows_what_differs() -> None:
    lines = method_table([build(name) for name in NAMES]).splitlines()
    assert len(lines) == 2 + len(NAMES)
    assert len({line.count("|") for line in lines}) == 1 and len({len(line) for line in lines}) == 1
    assert len({cells(build(name))[1:] for name in NAMES}) == len(NAMES)  # no two methods look the same
    assert all(len(cells(build(name))) == len(COLUMNS) for name in NAMES)
    assert "token clip 0.5" in cells(build("paint", entry_clip=None, token_clip=0.5))[6]
    sampled = build("opsd", entry_clip=None, estimator="sampled_token", divergence="reverse_kl")
    assert "on the sampled token" in cells(sampled)[6] and "full" not in cells(sampled)[6]


@pytest.mark.parametrize("file", ["paint", "opsd", "sdpo", "sc_sdpo", "srpo", "grpo", "sft"])
def test_a_method_fits_on_one_screen(file: str) -> None:
    assert len((SOURCE / "methods" / f"{file}.py").read_text(encoding="utf-8").splitlines()) <= 60


def test_nothing_asks_which_method_it_is() -> None:
    """A method is data; comparing or matching its name anywhere would mean that the seams are wrong."""
    asking = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.Match) and _asks_for_a_method(node)
    ]
    assert asking == []


def _asks_for_a_method(node: ast.Compare | ast.Match) -> bool:
    asked = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node.subject]
    texts = {ast.unparse(part) for part in asked}
    names_method = any(text == "method" or text.endswith((".method", "method.name", "method_name")) for text in texts)
    if isinstance(node, ast.Match):
        return names_method
    against = {part.value for part in asked if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    return bool(against & set(NAMES)) or (names_method and bool(against))
