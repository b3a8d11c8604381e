"""The whole demo in a reduced form, as a process of its own: three runs, one table."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"
REDUCED = (
    "train.steps=2",
    "train.questions_per_step=4",
    "data.train_limit=16",
    "data.eval_limit=16",
    "rollouts.sampling.max_new_tokens=32",
    "evaluation.samples=2",
    "evaluation.sampling.max_new_tokens=32",
)


def selfdistill(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "selfdistill", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_the_demo_trains_both_methods_and_prints_one_table(tmp_path: Path) -> None:
    done = selfdistill("demo", *REDUCED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[0][:3] == ["| run", "avg@2, %", "maj@2, %"]
    assert [row[0] for row in rows[1:]] == ["| base", "| paint", "| sc_sdpo"]
    assert "brackets are 95% bootstrap intervals" in done.stdout
    assert "  runs/demo/paint-seed0\n" in done.stdout and "runs/demo/table.json" in done.stdout
    if importlib.util.find_spec("matplotlib"):
        assert "report: runs/demo/report.html" in done.stdout
        assert (tmp_path / "runs" / "demo" / "report.html").read_text().startswith("<!doctype html>")
    assert "\x1b" not in done.stdout + done.stderr
    assert "finished sc_sdpo seed 0: 16 problems" in done.stderr
    for name in ("paint", "sc_sdpo"):
        run = tmp_path / "runs" / "demo" / f"{name}-seed0"
        assert json.loads((run / "result.json").read_text())["step"] == 2
        assert (run / "final" / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
