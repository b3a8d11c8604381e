"""The mismatch between engine and trainer: how it is measured, and when it is worth a warning."""

from __future__ import annotations

import pytest
import torch

from selfdistill.rollouts.mismatch import WARNING_STEPS, MismatchAlarm, k3, log_ratio


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


def test_a_large_mismatch_is_warned_of_once_in_a_while() -> None:
    alarm = MismatchAlarm(0.05)
    assert alarm.text(1, None) is None and alarm.text(1, 0.05) is None
    warning = alarm.text(2, 0.1234)
    assert warning is not None
    for part in ("step 2", "0.123 nats", "rollouts.mismatch_warning (0.05)", "model.dtype=float32", "ratio_cap"):
        assert part in warning
    assert [step for step in range(3, 30) if alarm.text(step, 0.2)] == [2 + WARNING_STEPS, 2 + 2 * WARNING_STEPS]
