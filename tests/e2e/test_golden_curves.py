"""Twenty steps of every method: the readable objective, every fast path and the committed curves are the same."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from selfdistill.methods import names
from selfdistill.teachers.weights import trainable

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_curves", ROOT / "scripts" / "golden_curves.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["golden_curves"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PACKED = ("paint", "sc_sdpo", "srpo", "sft")
"""Methods that also train without padding: one of each objective and context. (Packing is slow on a CPU.)"""


@pytest.mark.parametrize("method", names())
def test_readable_and_fast_paths_and_the_committed_curve_are_one(
    golden: ModuleType, method: str, tmp_path: Path
) -> None:
    paths = [golden.READABLE, golden.FAST, *([golden.PACKED] if method in PACKED else [])]
    runs = [golden.begin(method, tmp_path / str(index), path) for index, path in enumerate(paths)]
    committed, final = golden.read(golden.GOLDEN / f"{method}.txt")
    assert len(committed) == golden.STEPS
    comparable = True
    for step, (readable, *others) in enumerate(golden.train_side_by_side(runs)):
        comparable = comparable and readable.sampled == committed[step].sampled
        # Untrained weights must give the committed rollouts; later, another processor may round to another token.
        assert comparable or step > 0
        for other in [*others, committed[step]] if comparable else others:
            assert other.loss == pytest.approx(readable.loss, abs=TOLERANCE), f"step {step + 1}"
            assert other.gradient_norm == pytest.approx(readable.gradient_norm, rel=1e-3, abs=TOLERANCE)
    expected = trainable(runs[0].trainer.policy.model)
    for run in runs[1:]:
        for name, parameter in trainable(run.trainer.policy.model).items():
            assert float((parameter - expected[name]).detach().abs().max()) <= TOLERANCE, name
    if not comparable:
        warnings.warn(f"{method}: this machine's rounding drew other rollouts than the committed ones", stacklevel=1)
        return
    for run in runs:
        for name, values in golden.weights(run).items():
            assert values == pytest.approx(final[name], abs=TOLERANCE * max(1.0, final[name][0])), name
