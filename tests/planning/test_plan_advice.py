"""What does not fit gets a list of settings with which it does, in order, and no longer than it has to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from selfdistill.planning.advice import advise
from selfdistill.planning.layout import Layout
from selfdistill.planning.lengths import Lengths
from selfdistill.planning.memory import memory
from selfdistill.planning.setup import Setup
from selfdistill.planning.shape import ModelShape

GIB = 2**30
LONG = Lengths(512, 1664, 1024, 512.0, 1664.0)


@pytest.fixture
def adapted(setup: Callable[..., Setup], qwen3_8b: ModelShape) -> Setup:
    """PAINT on Qwen3-8B as careless as can be: float32, everything remembered, many positions at a time."""
    return setup(shape=qwen3_8b, lengths=LONG, device="cuda", model={"lora": {}})


def overrides(setup: Setup, gib: float) -> list[str]:
    return [change.override for change in advise(setup, int(gib * GIB))]


def test_what_fits_needs_no_change(adapted: Setup) -> None:
    assert advise(adapted, memory(adapted).peak) == ()


def test_changes_come_in_the_order_in_which_one_would_try_them(adapted: Setup) -> None:
    assert overrides(adapted, 80) == ["train.micro_batch_tokens=2048"]
    names = [override.split("=")[0] for override in overrides(adapted, 24)]
    assert names[-2:] == ["model.gradient_checkpointing", "model.dtype"]
    order = ["train.micro_batch_tokens", "rollouts.batch_tokens", "model.gradient_checkpointing", "model.dtype"]
    assert names == [name for name in order if name in names]


def test_every_change_says_what_it_saves_and_the_last_one_fits(adapted: Setup) -> None:
    capacity = 24 * GIB
    changes = advise(adapted, capacity)
    assert all(change.saves > 0 for change in changes)
    assert changes[-1].peak <= capacity < memory(adapted).peak
    assert all(change.peak > capacity for change in changes[:-1])


def test_a_number_is_lowered_no_further_than_needed(adapted: Setup) -> None:
    halved = replace(adapted, micro_batch_tokens=8192)
    assert overrides(adapted, memory(halved).peak / GIB + 0.1) == ["train.micro_batch_tokens=8192"]


def test_what_a_later_change_makes_superfluous_is_taken_back(setup: Callable[..., Setup], qwen3_8b: ModelShape) -> None:
    full = setup("sdpo", shape=qwen3_8b, lengths=LONG, device="cuda", model={"dtype": "bfloat16"})
    assert overrides(full, 140) == ["train.micro_batch_tokens=8192", "model.lora={r: 64, alpha: 128}"]


def test_several_processes_are_told_how_to_divide_more(setup: Callable[..., Setup], qwen3_8b: ModelShape) -> None:
    model = {"dtype": "bfloat16", "gradient_checkpointing": True}
    copied = setup("sdpo", shape=qwen3_8b, lengths=LONG, device="cuda", model=model, layout=Layout(8, 1))
    assert overrides(copied, 80)[-1] == "parallel.shard=null"
    divided = replace(copied, layout=Layout(8, 8))
    assert "parallel.reshard=layer" in overrides(divided, 40)


def test_if_one_gpu_is_not_enough_the_number_that_is_is_named(
    setup: Callable[..., Setup], qwen3_8b: ModelShape
) -> None:
    fused = replace(qwen3_8b, linears={"qkv_proj": 1})  # nothing that the usual adapters could be put on
    made = setup("sdpo", shape=fused, lengths=LONG, device="cuda", model={"dtype": "bfloat16"})
    changes = advise(made, 80 * GIB)
    assert changes[-1].override.startswith("--gpus") and changes[-1].peak <= 80 * GIB


def test_what_cannot_fit_at_all_keeps_what_helps(adapted: Setup) -> None:
    changes = advise(adapted, GIB // 2)
    assert changes and changes[-1].peak > GIB // 2
