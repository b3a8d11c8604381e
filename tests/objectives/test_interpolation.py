"""PAINT's selection of tokens and its softened targets."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.errors import SelfDistillError
from selfdistill.objectives import interpolate_targets, select_by_entropy_ratio, select_per_sequence


@pytest.mark.parametrize(
    ("budget", "tokens", "count"),
    [
        (0.03, 1024, 31),
        (0.1, 30, 3),
        (0.07, 100, 7),
        (0.1, 3, 1),
        (0.34, 3, 2),
        (0.0, 50, 0),
        (1.0, 50, 50),
        (0.01, 1, 1),
    ],
)
def test_the_budget_selects_the_ceiling_of_its_share(budget, tokens, count):
    entropies = torch.rand(tokens, generator=torch.Generator().manual_seed(0))
    assert select_by_entropy_ratio(entropies, entropies.flip(0), budget).sum() == count


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 100))
def test_the_selection_counts_exactly_the_ceiling_for_every_percentage(tokens, percent):
    selected = select_by_entropy_ratio(torch.ones(tokens), torch.rand(tokens), percent / 100)
    assert selected.dtype == torch.bool and selected.sum().item() == -(-percent * tokens // 100)


def test_the_largest_ratios_of_teacher_to_student_entropy_are_selected():
    student, teacher = torch.tensor([1.0, 2.0, 0.5, 4.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert select_by_entropy_ratio(student, teacher, 0.5).tolist() == [True, False, True, False]


def test_ties_go_to_the_earlier_token():
    assert select_by_entropy_ratio(torch.ones(200), torch.ones(200), 0.03).nonzero().flatten().tolist() == list(
        range(6)
    )


def test_a_certain_student_ranks_by_the_floor_of_its_entropy():
    student, teacher = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1e-3, 1.0])
    assert select_by_entropy_ratio(student, teacher, 0.1, eps=1e-6).tolist() == [False, True, False]
    assert select_by_entropy_ratio(student, teacher, 0.1, eps=1e-2).tolist() == [False, False, True]


def test_the_published_vector_selects_positions_0_and_2():
    student, teacher = torch.tensor([1.206489, 1.599502, 0.174549]), torch.tensor([1.206489, 0.679836, 0.496087])
    assert select_by_entropy_ratio(student, teacher, 0.34).tolist() == [True, False, True]
    assert select_by_entropy_ratio(student, teacher, 0.03).tolist() == [False, False, True]


def test_each_sequence_spends_its_own_budget():
    student = torch.ones(7)
    teacher = torch.tensor([1.0, 2, 3, 90, 80, 70, 60])
    selected = select_per_sequence(student, teacher, [3, 0, 4], 0.3)
    assert selected.tolist() == [False, False, True, True, True, False, False]


def test_no_sequences_select_nothing():
    assert select_per_sequence(torch.zeros(0), torch.zeros(0), [], 0.5).shape == (0,)


@pytest.mark.parametrize("budget", [-0.01, 1.01, math.nan])
def test_a_budget_outside_0_to_1_is_refused(budget):
    with pytest.raises(SelfDistillError, match="budget="):
        select_by_entropy_ratio(torch.ones(3), torch.ones(3), budget)


def test_lengths_that_do_not_add_up_are_refused():
    with pytest.raises(SelfDistillError, match="add up to 5 tokens but student_entropy has 4"):
        select_per_sequence(torch.ones(4), torch.ones(4), [2, 3], 0.5)


def test_a_softened_target_is_the_normalised_geometric_mean():
    generator = torch.Generator().manual_seed(1)
    teacher, student = (torch.randn(2, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    mixed = interpolate_targets(teacher, student, torch.tensor([True, False]), 0.25)
    mean = teacher.softmax(-1) ** 0.75 * student.softmax(-1) ** 0.25
    torch.testing.assert_close(mixed.softmax(-1)[0], mean[0] / mean[0].sum())
    assert torch.equal(mixed[1], teacher[1])


def test_a_softened_target_is_a_constant():
    teacher, student = torch.randn(2, 6, requires_grad=True), torch.randn(2, 6, requires_grad=True)
    assert not interpolate_targets(teacher, student, torch.ones(2, dtype=torch.bool), 0.5).requires_grad


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_forbidden_ids_stay_forbidden_in_a_softened_target(strength):
    teacher, student = torch.tensor([[0.0, -math.inf, 1.0]]), torch.tensor([[0.0, -math.inf, 2.0]])
    mixed = interpolate_targets(teacher, student, torch.tensor([True]), strength)
    assert mixed[0].tolist() == [0.0, -math.inf, 1.0 + strength]


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_a_strength_outside_0_to_1_is_refused(strength):
    with pytest.raises(SelfDistillError, match="strength="):
        interpolate_targets(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([True]), strength)
