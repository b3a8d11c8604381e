from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.verifiers import NO_ANSWER, equivalence_classes


def same_number(first, second):
    return float(first) == float(second)


def test_equivalent_answers_share_a_class_in_order_of_appearance():
    assert equivalence_classes(["0.5", "2", ".50", None, "2.0"], same_number) == [0, 1, 0, NO_ANSWER, 1]


def test_a_vote_counts_equivalent_answers_and_not_strings():
    # As strings 7 leads with two votes; by meaning one half has three.
    classes = equivalence_classes(["7", "7", "0.5", ".5", "0.50"], same_number)
    assert max(set(classes), key=classes.count) == classes[2]


def test_equal_strings_are_never_compared():
    def refuse(first, second):
        raise AssertionError("compared")

    assert equivalence_classes(["a", " a ", "a"], refuse) == [0, 0, 0]


def test_no_answers_make_no_classes():
    assert equivalence_classes([], same_number) == []
    assert equivalence_classes([None, None], same_number) == [NO_ANSWER, NO_ANSWER]


@settings(deadline=None)
@given(st.lists(st.integers(0, 50).map(str), max_size=60), st.integers(0, 30))
def test_the_number_of_comparisons_is_bounded(answers, limit):
    calls = []
    equivalence_classes(answers, lambda a, b: bool(calls.append((a, b))), max_comparisons=limit)
    assert len(calls) <= limit


@settings(deadline=None)
@given(st.lists(st.none() | st.integers(0, 9), max_size=40))
def test_classes_agree_with_the_relation(numbers):
    answers = [None if number is None else f"{number:0{1 + index % 3}d}" for index, number in enumerate(numbers)]
    classes = equivalence_classes(answers, same_number)
    for i, one in enumerate(numbers):
        for j, other in enumerate(numbers):
            if one is not None and other is not None:
                assert (classes[i] == classes[j]) == (one == other)
