"""What one number of processes wrote, another reads, bit by bit; and all processes take the same decision."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfdistill.checkpoints import Saver, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
Action = tuple[str, dict[str, Any]]


def processes(size: int, folder: Path, *actions: Action, killed: int | None = None) -> list[str]:
    """Do the actions on so many processes, and return what each printed; one may be ``killed`` by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "SELFDISTILL_STORE": str(folder / f"store-{os.urandom(4).hex()}"),
    }
    command = [sys.executable, str(Path(__file__).with_name("checkpoint_process.py")), json.dumps(actions)]
    started = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [each.communicate(timeout=240)[0] for each in started]
    finally:
        for each in started:
            each.kill()
    codes = [-signal.SIGKILL if rank == killed else 0 for rank in range(size)]
    assert [each.returncode for each in started] == codes, "\n".join(said)
    return said


@pytest.mark.slow
def test_a_checkpoint_is_read_by_another_number_of_processes(tmp_path: Path) -> None:
    """2 -> 1, 2 -> 4 (replicas of two), 4 -> 1, 1 (bf16) -> 2, 1 (float32) -> 1 (bf16)."""
    by = {name: str(tmp_path / name) for name in ("two", "four", "half", "one")}
    of = {name: f"{path}.pt" for name, path in by.items()}
    processes(2, tmp_path, ("save", {"checkpoints": by["two"], "expected": of["two"]}))
    processes(
        4,
        tmp_path,
        ("load", {"checkpoints": by["two"], "expected": of["two"], "replicas": 2}),
        ("load", {"checkpoints": by["two"], "expected": of["two"]}),
        ("save", {"checkpoints": by["four"], "expected": of["four"], "replicas": 2, "seed": 3}),
    )
    processes(
        1,
        tmp_path,
        ("load", {"checkpoints": by["two"], "expected": of["two"]}),
        ("load", {"checkpoints": by["two"], "expected": of["two"], "dtype": "bfloat16"}),
        ("load", {"checkpoints": by["four"], "expected": of["four"]}),
        ("save", {"checkpoints": by["half"], "expected": of["half"], "dtype": "bfloat16"}),
        ("load", {"checkpoints": by["half"], "expected": of["half"]}),
        ("save", {"checkpoints": by["one"], "expected": of["one"]}),
    )
    processes(
        2,
        tmp_path,
        ("load", {"checkpoints": by["half"], "expected": of["half"]}),
        ("load", {"checkpoints": by["one"], "expected": of["one"]}),
        ("load", {"checkpoints": by["four"], "expected": of["four"]}),
    )
    manifest = json.loads((tmp_path / "four" / "step-000002" / "state.json").read_text())
    assert manifest["world_size"] == 4
    assert sorted(manifest["files"]) == [".metadata", *(f"__{rank}_0.distcp" for rank in range(4))]


@pytest.mark.slow
def test_what_goes_wrong_on_one_process_is_decided_by_all(tmp_path: Path) -> None:
    checkpoints = str(tmp_path / "checkpoints")
    saved = [
        ("save", {"checkpoints": checkpoints, "steps": 1}),
        ("save", {"checkpoints": checkpoints, "steps": 2}),
        ("save", {"checkpoints": checkpoints, "steps": 3}),
    ]
    incomplete = tmp_path / "incomplete"
    said = processes(
        2,
        tmp_path,
        *saved,
        ("fails_to_read", {"checkpoints": checkpoints, "rank": 1, "at": 2}),
        ("fails_to_read", {"checkpoints": checkpoints, "rank": 0, "at": 1}),
        ("fails_to_write", {"checkpoints": str(tmp_path / "full"), "rank": 1}),
        ("save", {"checkpoints": str(incomplete)}),
        ("remove", {"file": str(incomplete / "step-000002" / "__1_0.distcp")}),
        ("refused", {"checkpoints": str(incomplete), "says": "its __1_0.distcp is missing"}),
    )
    assert "step-000003' cannot be used: Input/output error" in said[0]
    assert said[1].count("cannot be used") == 0  # only the main process speaks
    names = sorted(path.name for path in Path(checkpoints).iterdir())
    assert names == ["step-000001", "unusable-step-000002", "unusable-step-000003"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_while_it_writes_costs_that_checkpoint_only(rank, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    said = processes(2, tmp_path, ("loses_a_process", {"checkpoints": str(checkpoints), "rank": rank}), killed=rank)
    assert "step-000002' is not written: another process of the run is gone" in said[1 - rank]
    after = Saver(checkpoints)
    assert [path.name for path in checkpoints.iterdir()] == ["step-000001"] and after.steps() == [1]
    assert read_checkpoint(checkpoints / "step-000001").manifest.world_size == 2
    after.close()
