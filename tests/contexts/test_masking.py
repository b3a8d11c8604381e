"""Hidden ratio and masks (METHODS 3.2)."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.contexts import OMISSION_MARKER, hidden_ratio, mask_solution
from selfdistill.contexts.masking import Placement, shown_parts
from selfdistill.errors import RecipeError

PLACEMENTS = ["suffix", "prefix", "middle", "random", "suffix_at_sentence"]
TEXT = "abcdefghij"


def test_high_overlap_hides_more() -> None:
    assert hidden_ratio(0.0) == 0.30
    assert hidden_ratio(1.0) == pytest.approx(0.40)
    assert hidden_ratio(0.5) == pytest.approx(0.35)
    assert hidden_ratio(0.5, wrong=0.5, correct=0.25) == pytest.approx(0.375)


@pytest.mark.parametrize("arguments", [(-0.1,), (1.1,), (math.nan,), (0.5, -1.0), (0.5, 0.3, 2.0)])
def test_shares_outside_0_to_1_are_refused_by_name(arguments: tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match=r"(overlap|wrong|correct) is"):
        hidden_ratio(*arguments)


def test_each_placement_hides_its_part() -> None:
    assert mask_solution(TEXT, 0.3) == "abcdefg" + OMISSION_MARKER
    assert mask_solution(TEXT, 0.3, "prefix") == OMISSION_MARKER + "defghij"
    assert mask_solution(TEXT, 0.4, "middle") == "abc" + OMISSION_MARKER + "hij"
    assert mask_solution("One. Two. Three.", 0.3, "suffix_at_sentence") == "One. Two." + OMISSION_MARKER
    assert mask_solution("17+25=42\n42+38=80\n#### 80", 0.4, "suffix_at_sentence") == (
        "17+25=42\n42+38=80" + OMISSION_MARKER
    )


def test_a_sentence_end_is_not_a_decimal_point_and_may_be_missing() -> None:
    assert mask_solution("It is 3.5 units wide", 0.5, "suffix_at_sentence") == mask_solution(
        "It is 3.5 units wide", 0.5
    )


def test_random_masks_follow_the_seed_alone() -> None:
    text = "".join(map(chr, range(65, 165)))
    assert mask_solution(text, 0.3, "random", seed=1) == mask_solution(text, 0.3, "random", seed=1)
    assert len({mask_solution(text, 0.3, "random", seed=seed) for seed in range(20)}) > 10
    assert mask_solution(text, 0.3, "random") == mask_solution(text, 0.3, "random", seed=0)


@pytest.mark.parametrize(
    ("length", "ratio", "hidden"), [(5, 0.3, 2), (10, 0.35, 4), (5, 0.1, 1), (4, 0.1, 0), (3, 0.5, 2), (45, 0.7, 32)]
)
def test_halves_round_up_exactly(length: int, ratio: float, hidden: int) -> None:
    masked = mask_solution("x" * length, ratio)
    assert masked.count("x") == length - hidden


def test_float_noise_below_a_half_still_rounds_up() -> None:
    assert mask_solution("x" * 10, math.nextafter(0.35, 0.0)).count("x") == 6


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_nothing_cut_leaves_no_marker(placement: str) -> None:
    for text, ratio in (("", 0.5), (TEXT, 0.0), ("a", 0.49)):
        assert mask_solution(text, ratio, placement) == text


@pytest.mark.parametrize("placement", ["suffix", "prefix", "middle", "random"])
def test_everything_cut_leaves_the_marker_alone(placement: str) -> None:
    assert mask_solution(TEXT, 1.0, placement) == OMISSION_MARKER


@pytest.mark.parametrize("ratio", [-0.01, 1.01, math.nan, math.inf])
def test_a_ratio_outside_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(RecipeError, match="ratio is"):
        mask_solution(TEXT, ratio)


def test_an_unknown_placement_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'suffix'"):
        mask_solution(TEXT, 0.3, "sufix")


@pytest.mark.parametrize("alias", ["sentence", "suffix_sentence", "sentence_suffix"])
def test_the_sentence_placement_has_aliases(alias: str) -> None:
    assert mask_solution("One. Two.", 0.5, alias) == mask_solution("One. Two.", 0.5, "suffix_at_sentence")


@given(st.text(max_size=60), st.floats(0, 1), st.sampled_from(PLACEMENTS[:-1]), st.integers(0, 9))
def test_what_is_left_is_the_text_without_one_stretch_of_the_right_length(
    text: str, ratio: float, placement: str, seed: int
) -> None:
    masked = mask_solution(text, ratio, placement, seed)
    hidden = math.floor(round(ratio, 12) * len(text) + 0.5 + 1e-12)
    if masked == text:
        assert hidden == 0
        return
    # The marker may also occur in the text, so every place is tried.
    places = [i for i in range(len(masked)) if masked.startswith(OMISSION_MARKER, i)]
    assert any(text.startswith(masked[:i]) and text.endswith(masked[i + len(OMISSION_MARKER) :]) for i in places)
    assert len(masked) == len(text) - hidden + len(OMISSION_MARKER)


def test_masks_count_code_points() -> None:
    text = "\U0001f600\u00e9e\u0301\u4e2d\u6587\U0001f468\u200d\U0001f469"
    assert mask_solution(text, 0.5) == text[: len(text) - 5] + OMISSION_MARKER
    mask_solution(text, 0.5).encode("utf-8")


def test_a_solution_of_100k_characters_is_masked() -> None:
    text = "A step. " * 12_500
    for placement in PLACEMENTS:
        assert len(mask_solution(text, 0.35, placement, seed=3)) == pytest.approx(65_000, abs=30)


@given(text=st.text(max_size=60), ratio=st.floats(0, 1), placement=st.sampled_from(get_args(Placement)))
def test_shown_parts_join_to_the_text_and_hide_what_was_hidden(text: str, ratio: float, placement: str):
    shown = mask_solution(text, ratio, placement, 3)
    parts = shown_parts(text, shown)
    assert "".join(part for part, _ in parts) == text
    assert sum(len(part) for part, hidden in parts if hidden) == len(text) - len(shown.replace(OMISSION_MARKER, "", 1))


def test_shown_parts_of_a_text_that_was_cut_to_fit_hide_its_end():
    assert shown_parts("abcdef", "abc") == (("abc", False), ("def", True))
    assert shown_parts("abcdef", "abcdef") == (("abcdef", False),)
    masked = mask_solution("abcdefghij", 0.4, "middle")
    assert shown_parts("abcdefghij", masked[:-1]) == (("abc", False), ("defg", True), ("hi", False), ("j", True))
