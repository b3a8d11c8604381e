"""Losses on single sampled tokens."""

import math

import pytest
import torch

from selfdistill.objectives import (
    imitation_loss,
    importance_ratio,
    policy_gradient_loss,
    sampled_token_loss,
    token_divergence,
)


def logs(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_before_any_update_the_gradient_is_that_of_the_advantage_weighted_log_probability():
    student = logs(0.2, 0.7, 0.5).requires_grad_()
    advantages = torch.tensor([1.7, -0.6, 0.0], dtype=torch.float64)
    surrogate = policy_gradient_loss(student, student.detach(), advantages)
    surrogate.loss.sum().backward()
    torch.testing.assert_close(student.grad, -advantages)
    assert not surrogate.clipped.any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 1.0, -1.28, 1),  # a good token is already likely enough
        (0.5, 1.0, -0.5, 0),  # a good token became unlikely: pull it back
        (1.5, -1.0, 1.5, 0),  # a bad token became likely: push it down
        (0.5, -1.0, 0.8, 1),  # a bad token is already unlikely enough
        (1.1, 1.0, -1.1, 0),
    ],
)
def test_the_ratio_is_clipped_on_the_side_where_the_update_has_gone_far_enough(ratio, advantage, loss, clipped):
    student = logs(0.1 * ratio).requires_grad_()
    surrogate = policy_gradient_loss(student, logs(0.1), torch.tensor([advantage]), clip_low=0.2, clip_high=0.28)
    surrogate.loss.sum().backward()
    assert surrogate.loss.item() == pytest.approx(loss)
    assert surrogate.clipped.item() == clipped
    assert (student.grad.item() == 0) == bool(clipped)


def test_advantages_and_rollout_log_probabilities_are_constants():
    student, rollout, advantages = (torch.zeros(2, requires_grad=True) for _ in range(3))
    policy_gradient_loss(student, rollout, advantages).loss.sum().backward()
    assert rollout.grad is None and advantages.grad is None


def test_the_importance_ratio_is_a_constant_capped_from_above_only():
    student = logs(0.9, 0.1, 0.3).requires_grad_()
    ratio = importance_ratio(student, logs(0.1, 0.9, 0.3), cap=2.0)
    torch.testing.assert_close(ratio, torch.tensor([2.0, 1 / 9, 1.0], dtype=torch.float64))
    assert not ratio.requires_grad
    assert importance_ratio(student, logs(0.1, 0.9, 0.3), cap=None)[0].item() == pytest.approx(9.0)


def test_the_sampled_token_objective_has_the_reverse_kl_as_its_expected_gradient():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 6, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    p, q = student.log_softmax(-1)[0], teacher.log_softmax(-1)[0]
    expected_loss = (p.detach().exp() * sampled_token_loss(p, q)).sum()
    (sampled,) = torch.autograd.grad(expected_loss, student)
    (exact,) = torch.autograd.grad(token_divergence(student, teacher, divergence="reverse_kl").sum(), student)
    torch.testing.assert_close(sampled, exact)


def test_a_ratio_multiplies_the_sampled_token_loss():
    student, teacher = logs(0.5, 0.5), logs(0.6, 0.1)
    ratio = torch.tensor([2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(
        sampled_token_loss(student, teacher, ratio), ratio * sampled_token_loss(student, teacher)
    )


def test_imitation_is_the_cross_entropy():
    assert imitation_loss(logs(0.25)).item() == pytest.approx(math.log(4))


def test_no_tokens_are_no_loss():
    nothing = torch.zeros(0, requires_grad=True)
    policy_gradient_loss(nothing, nothing, nothing).loss.sum().backward()
    assert nothing.grad.shape == (0,)
