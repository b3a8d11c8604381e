"""Comparing student and self-teacher as a method's objective asks."""

import pytest
import torch

from selfdistill.errors import SelfDistillError
from selfdistill.models.head import Projection
from selfdistill.objectives import Distillation, compare, linear_token_divergence, select_per_sequence

STUDENT = torch.tensor([[2, 1, 0, -1, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5], [5, -2, 1, 0, 0]])
TEACHER = torch.tensor([[1, 2, 0.5, -1, 0], [3, 0, 0, 0, 0], [4, -1, 1.5, 0.5, 0]])
HEAD = Projection(torch.eye(5))  # hidden states are logits


def paint(fraction=0.03, strength=0.03, **settings):
    return Distillation(interpolation_fraction=fraction, interpolation_strength=strength, **settings)


def test_paint_reproduces_the_published_vectors_for_one_sample():
    ids = torch.tensor([0, 1, 2])
    mild = compare(paint(0.34, 0.25), STUDENT, TEACHER, HEAD, HEAD, ids, [3], 1.0)
    assert mild.selected.tolist() == [True, False, True]
    torch.testing.assert_close(mild.record.divergence, torch.tensor([0.222000, 1.098062, 0.035558]), atol=2e-6, rtol=0)
    published = compare(paint(entry_clip=0.06), STUDENT, TEACHER, HEAD, HEAD, ids, [3], 1.0)
    assert published.selected.tolist() == [False, False, True]
    expected = torch.tensor([-0.125222, -0.207745, 0.038246])
    torch.testing.assert_close(published.record.divergence, expected, atol=2e-6, rtol=0)


def random_case(tokens=12, width=4, vocabulary=9):
    generator = torch.Generator().manual_seed(3)
    shapes = ((tokens, width), (tokens, width), (vocabulary, width))
    student, teacher, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    ids = torch.randint(vocabulary, (tokens,), generator=generator)
    return student.requires_grad_(), teacher, Projection(weight), ids


def test_comparing_the_selected_rows_again_equals_comparing_all_rows_with_their_targets():
    student, teacher, head, ids = random_case()
    part, lengths = paint(0.3, 0.4, entry_clip=0.05), [5, 7]
    twice = compare(part, student, teacher, head, head, ids, lengths, 1.1)
    plain = linear_token_divergence(student, teacher, head, temperature=1.1)
    selected = select_per_sequence(plain.student_entropy, plain.teacher_entropy, lengths, 0.3)
    once = linear_token_divergence(
        student, teacher, head, temperature=1.1, entry_clip=0.05, selected=selected, strength=0.4, response_ids=ids
    )
    assert torch.equal(twice.selected, selected) and selected.sum() == 2 + 3
    for name in once.__dataclass_fields__:
        torch.testing.assert_close(getattr(twice.record, name), getattr(once, name))
    (ours,) = torch.autograd.grad(twice.record.divergence.sum(), student)
    torch.testing.assert_close(ours, torch.autograd.grad(once.divergence.sum(), student)[0])


def test_without_interpolation_nothing_is_selected():
    student, teacher, head, ids = random_case()
    comparison = compare(Distillation(divergence="jsd"), student, teacher, head, head, ids, [12], 1.0)
    assert comparison.selected.shape == (12,) and not comparison.selected.any()


def test_log_probabilities_are_those_of_the_sampler_whatever_the_distillation_temperature():
    student, teacher, head, ids = random_case()
    comparison = compare(Distillation(temperature=2.0), student, teacher, head, head, ids, [12], 1.1)
    sampler = (head.logits(student) / 1.1).log_softmax(-1)[range(12), ids]
    torch.testing.assert_close(comparison.record.student_logprob, sampler)
    distilled = linear_token_divergence(student, teacher, head, temperature=2.0)
    torch.testing.assert_close(comparison.record.divergence, distilled.divergence)


def test_no_tokens_compare_to_a_zero_loss_that_backpropagates():
    student, teacher, head, ids = random_case(tokens=0)
    comparison = compare(paint(), student, teacher, head, head, ids, [], 1.0)
    comparison.record.divergence.sum().backward()
    assert student.grad.shape == (0, 4) and comparison.selected.shape == (0,)


def test_lengths_that_do_not_cover_the_tokens_are_refused():
    student, teacher, head, ids = random_case()
    with pytest.raises(SelfDistillError, match="add up to 11"):
        compare(paint(), student, teacher, head, head, ids, [5, 6], 1.0)
