"""Norm, anchors and overlap (METHODS 3.1)."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.contexts import anchor_overlap, anchors, normalize
from selfdistill.contexts.anchors import anchor_hits

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "math"
EMBEDDED = "17+25=42\n42+38=80\n#### 80"
NATALIA = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"$x$ \(y\) \[z\] $$w$$", "xyzw"),
        (r"\left( a \right)\,\;\!\ b", "(a)b"),
        (r"\leftarrow \rightarrow", r"\leftarrow\rightarrow"),
        (r"\dfrac{1}{2}+\tfrac{3}{4}", r"\frac{1}{2}+\frac{3}{4}"),
        ("1,234,567 and 12, 345", "1234567and12,345"),
        (r"1{,}234 + 1,\!234 + 1\,234", "1234+1234+1234"),
        ("(1,2) and 12345,678", "(1,2)and12345,678"),
        ("2 \u00d7 3 \u00b7 4", "2*3*4"),
        (r"2\cdot 3\times 4", "2*3*4"),
        (r"a, \cdots, b", r"a,\cdots,b"),
        ("5 \u2212 3 \u2013 2 \u2014 1", "5-3-2-1"),
        ("ABC\tDef\u00a0G", "abcdefg"),
        (r"\$5", "5"),
        (r"a \\[2pt] b", r"a\\[2pt]b"),
        ("", ""),
    ],
)
def test_norm_writes_a_formula_in_one_way(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_the_embedded_tasks_solution_gives_its_steps_and_numbers() -> None:
    assert anchors(EMBEDDED) == {"17+25=42", "42+38=80", "80", "17", "25", "42", "38"}


def test_a_gsm8k_solution_gives_calculations_without_marks_words_or_money() -> None:
    assert anchors(NATALIA) == {"48/2=24", "48+24=72", "48/2", "48", "24", "72"}
    priced = "12/60 = $<<12/60=0.2>>0.2 per minute.\nShe earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10"
    assert anchors(priced) == {"12/60=0.2", "0.2*50=10", "12/60", "12", "60", "0.2", "50", "10"}


def test_the_contents_of_all_four_kinds_of_math_spans_are_formulas() -> None:
    text = r"So $abc$, then $$d+e$$ and \( f(g) \) or \[ h^2. \] but not $xy$"
    assert anchors(text) == {"abc", "d+e", "f(g)", "h^2"}
    assert anchors("$a^2$$b^2$") == {"a^2", "b^2"}


def test_plain_text_around_an_equals_sign_is_a_formula_and_prose_is_not() -> None:
    assert anchors("so x = 3, hence 2(a + b) = 4; f(x, y) = 9. The area = one. (y = 2)") == {
        "x=3",
        "2(a+b)=4",
        "f(x,y)=9",
        "y=2",
    }
    assert anchors("= = =, this = that, ==> x") == frozenset()


def test_the_answer_is_the_last_box_or_else_the_number_after_the_hashes() -> None:
    assert anchors(r"\boxed{3}, or rather \boxed{ \dfrac{a}{b} }") == {r"\frac{a}{b}"}
    assert anchors(r"\boxed{7} #### 9") == {"7"}
    assert anchors(r"\framebox{7}") == {"7"}
    assert anchors("#### 9") == {"9"}
    assert anchors("#### -1,234") == {"-1234", "1234"}
    assert anchors(r"\boxed{7") == frozenset()


def test_an_only_answer_solution_is_wholly_contained_in_a_response_with_that_answer() -> None:
    for solution in (r"$\boxed{42}$", r"\boxed{42}", "#### 42", "42"):
        assert anchors(solution) == {"42"}
        assert anchor_overlap(solution, "I get 42.") == 1.0


def test_numbers_are_informative_with_two_digits_a_point_or_a_fraction_bar() -> None:
    assert anchors(r"7 and 42, 2.5, .5, 3/4, \tfrac{1}{2}") == {"42", "2.5", ".5", "3/4", r"\frac{1}{2}"}


@pytest.mark.parametrize(
    ("number", "response", "found"),
    [
        ("12", "3124", False),
        ("12", "12.5 or 3.12", False),
        ("12", "exactly 12.", True),
        ("12", "12,345", False),
        ("1,234", "1234", True),
        ("1234", r"1{,}234", True),
        ("12", "x=12\n34", True),
        ("12", "12/60", True),
        ("3/4", "3 / 4", True),
        ("3/4", "13/4", False),
        ("-5", "it is -5", True),
        ("-5", "it is \u22125", True),
        ("-5", "it is 5", False),
        ("-5", "10-5", False),
        ("-5", "10 - 5", False),
        ("5", "it is -5", True),  # an unsigned anchor does not look at signs
        (r"50\%", "150%", False),
        (r"50\%", r"50 \%", True),
    ],
)
def test_a_number_is_matched_on_its_boundaries_the_boxed_answer_too(number: str, response: str, found: bool) -> None:
    boxed = rf"\boxed{{{number}}}"
    assert (anchor_overlap(boxed, response) == 1.0) is found


def test_overlap_is_the_share_of_anchors_found() -> None:
    assert anchor_overlap(EMBEDDED, EMBEDDED) == 1.0
    assert anchor_overlap(EMBEDDED, "17 + 25 = 42") == pytest.approx(4 / 7)
    assert anchor_overlap(EMBEDDED, "no idea") == 0.0
    assert anchor_overlap(EMBEDDED, "") == 0.0


def test_a_solution_without_anchors_has_no_overlap() -> None:
    assert anchors("It is obvious.") == frozenset()
    assert anchor_overlap("It is obvious.", "It is obvious.") == 0.0
    assert anchor_overlap("", "42") == 0.0


def test_spelling_does_not_matter_for_formulas() -> None:
    assert anchor_overlap(r"$\dfrac{1}{2} \cdot X = 7$", r"\(\tfrac{1}{2}\times x=7\)") == 1.0


@given(
    st.text(alphabet="$\\()[]{}=<>#+-*/.,|0123456789abx \n\u2212\u00d7\U0001f600e\u0301", max_size=80),
    st.text(max_size=40),
)
def test_any_text_gives_an_overlap_between_0_and_1(reference: str, response: str) -> None:
    assert 0.0 <= anchor_overlap(reference, response) <= 1.0
    assert "" not in anchors(reference)


@pytest.mark.parametrize(
    "unit",
    [
        "$",
        "{",
        "\\boxed{",
        "=",
        "-",
        "(",
        "1",
        "1,",
        "111,",
        " ",
        "#",
        "#### ",
        "####\t",
        "1/",
        "a",
        "a=",
        "$ ",
        ".",
        "\\",
        "\\[",
        "\n",
        "ab cd ",
        "$ab ",
        "1 ",
        "1 x ",
        "<",
        "$\\text{",
        "\\boxed{}}",
        "😀",
    ],
)
def test_hostile_texts_of_100k_characters_take_well_under_a_second(unit: str) -> None:
    text = (unit * 100_000)[:100_000]
    start = time.process_time()
    anchor_overlap("#### 80" + text, text)
    assert time.process_time() - start < 3.0  # quadratic time would take minutes


def test_a_solution_of_100k_characters_is_found_in_itself() -> None:
    steps = "\n".join(f"{n}+{n + 1}={2 * n + 1} hence $x_{{{n}}} = {n}$" for n in range(3000))
    assert len(steps) > 100_000
    start = time.process_time()
    assert anchor_overlap(steps, steps) == 1.0
    assert time.process_time() - start < 3.0


@pytest.mark.skipif(not DATA.exists(), reason="the shared data folder is absent")
@pytest.mark.parametrize(("file", "column"), [("gsm8k_test.jsonl", "answer"), ("aime24.json", "solution")])
def test_every_real_solution_has_anchors_and_contains_them_all(file: str, column: str) -> None:
    text = (DATA / file).read_text(encoding="utf-8")
    rows = json.loads(text) if file.endswith(".json") else [json.loads(line) for line in text.splitlines()[:300]]
    for row in rows:
        assert anchors(row[column])
        assert anchor_overlap(row[column], row[column]) == 1.0
        assert not any("<<" in anchor or ">>" in anchor for anchor in anchors(row[column]))


@pytest.mark.skipif(not DATA.exists(), reason="the shared data folder is absent")
def test_a_real_aime_solution_gives_formulas_and_the_framed_answer() -> None:
    first = json.loads((DATA / "aime24.json").read_text(encoding="utf-8"))[0]["solution"]
    assert {r"\frac{9}{s}+t=4", "s=2.5", "204", "2.4"} <= anchors(first)


def test_an_unbraced_fraction_is_a_fraction_and_not_a_number() -> None:
    assert anchors(r"\boxed{\frac12}") == anchors(r"\boxed{\frac{1}{2}}")
    assert anchor_overlap(r"\boxed{\frac12}", "there are 12 apples") == 0
    assert anchor_overlap(r"\boxed{\dfrac12}", r"so it is \tfrac{1}{2}") == 1


def test_hits_name_the_anchors_and_their_share_is_the_overlap() -> None:
    reference, response = r"First $x+1=12$, then 345. So \boxed{7}.", "x + 1 = 12, hence 7"
    hits = anchor_hits(reference, response)
    assert hits == {"12": True, "345": False, "7": True, "x+1=12": True}
    assert sum(hits.values()) / len(hits) == anchor_overlap(reference, response)
    assert anchor_hits("nothing to find", response) == {}
