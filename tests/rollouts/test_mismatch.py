"""The mismatch between engine and trainer: how it is measured."""

from __future__ import annotations

import pytest
import torch

from selfdistill.rollouts.mismatch import k3, log_ratio


def test_the_estimate_is_the_kl_divergence_of_engine_and_trainer() -> None:
    torch.manual_seed(0)
    engine, trainer = (torch.log_softmax(torch.randn(50, dtype=torch.float64), -1) for _ in range(2))
    exact = (engine.exp() * (engine - trainer)).sum()
    tokenwise = k3(log_ratio(trainer, engine))
    assert (engine.exp() * tokenwise).sum() == pytest.approx(float(exact))
    assert (tokenwise >= 0).all()


def test_equal_probabilities_are_no_mismatch_and_small_ones_do_not_drown_in_rounding() -> None:
    same = torch.tensor([-1.0, -20.0])
    assert k3(log_ratio(same, same)).tolist() == [0.0, 0.0]
    near = log_ratio(same.double() + 1e-7, same.double())
    assert k3(near) == pytest.approx([5e-15, 5e-15], rel=1e-2, abs=0)
