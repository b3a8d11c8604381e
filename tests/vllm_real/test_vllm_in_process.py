"""vLLM in process, where the installed versions allow one environment for it and the trainer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.vllm
@pytest.mark.slow
def test_the_engine_in_process_draws_from_what_it_was_given(vllm_install) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    plugins = ("-p", "no:cacheprovider", "-p", "no:xdist")
    done = subprocess.run(
        [vllm_install.python, "-m", "pytest", "-q", "--tb=short", *plugins, HERE / "in_process_checks.py"],
        cwd=HERE.parents[1],
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout[-8000:] + done.stderr[-4000:]
