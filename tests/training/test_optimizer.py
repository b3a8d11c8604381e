"""AdamW, its float32 copies, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from selfdistill.training.config import TrainConfig
from selfdistill.training.optimizer import learning_rate, make_optimizer
from selfdistill.training.update import gradient_norm


def step_with_gradient(model: nn.Module, optimizer: torch.optim.Optimizer, value: float = 1.0) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def test_the_warm_up_is_linear_and_reaches_the_rate_at_its_last_step() -> None:
    config = TrainConfig(learning_rate=1e-3, warmup_steps=4)
    assert [learning_rate(config, step) for step in range(6)] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


def test_without_warm_up_the_rate_is_constant_from_the_first_step() -> None:
    config = TrainConfig(learning_rate=1e-3, steps=3)
    assert [learning_rate(config, step) for step in range(3)] == [1e-3] * 3


def test_the_cosine_starts_at_the_rate_falls_steadily_and_ends_at_zero_after_the_last_step() -> None:
    config = TrainConfig(learning_rate=1e-3, warmup_steps=2, schedule="cosine", steps=12)
    rates = [learning_rate(config, step) for step in range(2, 13)]
    assert rates[0] == 1e-3
    assert rates[5] == pytest.approx(5e-4)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_a_warm_up_longer_than_the_run_is_no_error() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=10, steps=2, schedule="cosine")
    assert [learning_rate(config, step) for step in range(2)] == [0.1, 0.2]


def test_weight_decay_acts_on_matrices_and_not_on_vectors() -> None:
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1, learning_rate=0.5))
    decays = {
        parameter.dim(): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decays == {2: 0.1, 1: 0.0}
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step_with_gradient(model, optimizer, 0.0)
    assert torch.allclose(model.weight, before[0] * 0.95)
    assert torch.equal(model.bias, before[1])


def test_only_trainable_parameters_are_updated() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = make_optimizer(model, TrainConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_float32_weights_are_updated_as_by_torch_itself() -> None:
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    config = TrainConfig(learning_rate=0.01, betas=(0.8, 0.9))
    own, torchs = (
        make_optimizer(model, config),
        torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.8, 0.9), weight_decay=0),
    )
    for value in (1.0, -0.5, 0.25):
        step_with_gradient(model, own, value)
        step_with_gradient(twin, torchs, value)
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)


def test_updates_below_a_bf16_ulp_add_up_in_the_float32_copies() -> None:
    model = nn.Linear(4, 4, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    optimizer = make_optimizer(model, TrainConfig(learning_rate=1e-4))  # an ulp below 1 is 3.9e-3
    for _ in range(10):
        step_with_gradient(model, optimizer)
    assert torch.equal(model.weight, torch.ones_like(model.weight))
    for _ in range(40):
        step_with_gradient(model, optimizer)
    assert model.weight.dtype == torch.bfloat16
    assert bool((model.weight < 1).all())


def test_the_float32_copies_survive_a_restart() -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(4, 4, dtype=torch.bfloat16)
        return model, make_optimizer(model, TrainConfig(learning_rate=1e-4))

    model, optimizer = fresh()
    for _ in range(20):
        step_with_gradient(model, optimizer)
    weights, saved = {name: value.clone() for name, value in model.state_dict().items()}, optimizer.state_dict()
    again, resumed = fresh()
    again.load_state_dict(weights)
    resumed.load_state_dict(saved)
    for _ in range(20):
        step_with_gradient(model, optimizer)
        step_with_gradient(again, resumed)
    assert torch.equal(model.weight, again.weight)
    assert all(
        torch.equal(one, two)
        for one, two in zip(optimizer.state_dict()["copies"], resumed.state_dict()["copies"], strict=True)
    )


@pytest.mark.parametrize(("clip", "after"), [(1.0, 1.0), (100.0, 5.0), (None, 5.0)])
def test_the_gradient_is_clipped_to_the_norm_and_the_norm_before_is_reported(clip, after) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert gradient_norm([parameter], clip) == pytest.approx(5.0)
    assert float(parameter.grad.norm()) == pytest.approx(after, rel=1e-5)


def test_a_gradient_that_is_not_finite_is_reported_as_such() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([math.inf, 1.0])
    assert not math.isfinite(gradient_norm([parameter], 1.0))
