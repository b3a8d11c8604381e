"""The Triton tile operations: checked in Triton's interpreter everywhere, on real kernels where there is CUDA, and
compiled for an H100 / H200 without one. All of it in processes of its own: see triton_checks.py.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = {"row_statistics", "row_entropy", "compare_rows", "differentiate_rows", "finish_logits"}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed; torch for CUDA brings it"
)


def run(arguments, **variables):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_"))}
    # The checks import the package from this tree, installed or not.
    environment = inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")} | variables
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def run_checks(**variables):
    plugins = ("-p", "no:cacheprovider", "-p", "no:xdist", "--noconftest")
    done = run(["-m", "pytest", "-q", "--tb=short", *plugins, str(HERE / "triton_checks.py")], **variables)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-8000:] + done.stderr[-2000:]


def test_every_operation_agrees_with_the_dense_reference_in_the_interpreter():
    run_checks(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_operation_agrees_with_the_dense_reference_on_the_gpu(tmp_path):
    run_checks(TRITON_CACHE_DIR=str(tmp_path))


def test_every_kernel_compiles_for_hopper_without_spilling_and_with_wide_loads(tmp_path):
    tools = Path(importlib.util.find_spec("triton").origin).parent / "backends" / "nvidia" / "bin"
    for tool in ("ptxas", "cuobjdump"):
        if not (tools / tool).exists():
            pytest.skip(f"this Triton brings no {tool}, a tool for NVIDIA GPUs")
    done = run([str(HERE / "triton_compile.py")], TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert {kernel["kernel"] for kernel in report} == KERNELS
    for kernel in report:
        # 64 registers are what lets four programs of 256 threads share a multiprocessor.
        assert kernel["STACK"] == kernel["LOCAL"] == 0 and kernel["REG"] <= 64, kernel
        assert kernel["wide_loads"] >= 4, kernel
