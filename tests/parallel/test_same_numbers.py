"""The same recipe gives the same numbers on one process and on several: responses, losses, weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from selfdistill.methods import names

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "data.train_limit=12",
    "data.eval_limit=3",
    "evaluation.samples=2",
    "evaluation.sampling.max_new_tokens=24",
    "rollouts.sampling.max_new_tokens=24",
    "output.save_rollouts=all",
    "train.steps=2",
    "train.questions_per_step=3",
    "train.warmup_steps=0",
    "train.learning_rate=1e-3",
)
VARIANTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "layer by layer": ("sc_sdpo", (), ("parallel.reshard=layer",)),
    "layer by layer with PAINT": ("paint", (), ("parallel.reshard=layer",)),
    "groups divided": ("sc_sdpo", (), ("parallel.groups=split",)),
    "replicas": ("srpo", (), ("parallel.shard=1",)),
    "adapters": ("paint", ("model.lora.r=4",), ()),
    "adapters, layer by layer": ("sc_sdpo", ("model.lora.r=4",), ("parallel.reshard=layer",)),
    "kept in CPU memory": ("sdpo", (), ("parallel.cpu_offload=true",)),
    "trust region": ("sdpo", ("method.teacher.kind=trust_region",), ()),
    "two updates per batch": ("grpo", ("train.updates_per_batch=2",), ()),
    "padding-free, layer by layer": ("opsd", ("scoring.padding_free=true",), ("parallel.reshard=layer",)),
    "recomputed activations": ("opsd", ("model.gradient_checkpointing=true",), ("parallel.reshard=layer",)),
    "a process with nothing to do": ("sc_sdpo", ("train.questions_per_step=1",), ()),
    "nothing to do, layer by layer": ("srpo", ("train.questions_per_step=1",), ("parallel.reshard=layer",)),
}
"""Name: method, overrides of both runs, overrides of the one on several processes."""


@dataclass(frozen=True)
class Runs:
    """Where the runs are."""

    folder: Path

    def lines(self, run: str, name: str, file: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / run / name / file).read_text().splitlines()]


def _recipe(method: str) -> str:
    return str(ROOT / "recipes" / "embedded" / f"{method}.yaml")


def _overrides(folder: Path, *more: str) -> list[str]:
    return [*SMALL, *more, f"output.folder={folder}"]


def _start(jobs: list[Any], processes: int, store: Path) -> None:
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": str(processes)}
    own |= {"SELFDISTILL_STORE": str(store), "LOCAL_WORLD_SIZE": str(processes)}
    script = Path(__file__).with_name("parity_process.py")
    started = [
        subprocess.Popen(
            [sys.executable, str(script), json.dumps(jobs)],
            env=os.environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [one.communicate(timeout=900)[0] for one in started]
    assert [one.returncode for one in started] == [0] * processes, "\n".join(said)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """All runs, on one process and on two."""
    folder = tmp_path_factory.mktemp("runs")
    cases = {name: (name, (), ()) for name in names()} | VARIANTS
    for processes in (1, 2):
        jobs = [
            [_recipe(method), _overrides(folder / str(processes) / name, *both, *(several * (processes - 1))), {}]
            for name, (method, both, several) in cases.items()
        ]
        _start(jobs, processes, folder / f"store-{processes}")
    return Runs(folder)


@pytest.mark.parametrize("name", [*names(), *VARIANTS])
def test_a_run_draws_and_learns_the_same_on_two_processes(runs: Runs, name: str) -> None:
    one, two = (runs.lines(run, name, "rollouts.jsonl") for run in ("1", "2"))
    assert [(row["question"], row["sibling"], row["response"], row["weight"]) for row in one] == [
        (row["question"], row["sibling"], row["response"], row["weight"]) for row in two
    ]
    metrics = [runs.lines(run, name, "metrics.jsonl") for run in ("1", "2")]
    for own, other in zip(*metrics, strict=True):
        assert own.keys() == other.keys()
        timed = ("seconds/", "tokens_per_second/")
        for key in (key for key in own if not key.startswith(timed)):
            noise = 1e-4 if key.startswith("sampler_") else 1e-5  # the former are differences of rounding themselves
            assert other[key] == pytest.approx(own[key], rel=1e-4, abs=noise), key
    assert metrics[0][-1]["loss"] == pytest.approx(metrics[1][-1]["loss"], abs=1e-5)
    assert_same_weights(runs.folder / "1" / name / "final", runs.folder / "2" / name / "final")
    evaluations = [
        json.loads((runs.folder / run / name / "evaluations" / "step-000002" / "result.json").read_text())
        for run in ("1", "2")
    ]
    assert evaluations[0] == evaluations[1]


def test_what_two_processes_have_written_is_one_file_each(runs: Runs) -> None:
    for name in ("sc_sdpo", "groups divided"):
        folder = runs.folder / "2" / name
        assert not [path.name for path in folder.rglob("*rank-*")]
        drawn = (folder / "evaluations" / "step-000000" / "generations.jsonl").read_text().splitlines()
        assert len({(row["question_id"], row["sibling"]) for row in map(json.loads, drawn)}) == len(drawn) == 6


def test_a_run_goes_on_with_other_numbers_of_processes(runs: Runs, tmp_path) -> None:
    """Two steps on two processes and two on three, against four on one."""
    path, store = _recipe("sc_sdpo"), iter(range(9))
    together = _overrides(tmp_path / "run", "train.steps=4", "train.save_every=1")
    for processes, stop in ((2, 2), (3, None)):
        how = {"resume": stop != 2, "stop_after": stop}
        _start([[path, together, how]], processes, tmp_path / f"store-{next(store)}")
    _start([[path, _overrides(tmp_path / "whole", "train.steps=4"), {}]], 1, tmp_path / "store")
    assert_same_weights(tmp_path / "run" / "final", tmp_path / "whole" / "final")
    drawn = [
        [json.loads(line)["response"] for line in (tmp_path / run / "rollouts.jsonl").open()]
        for run in ("run", "whole")
    ]
    assert drawn[0] == drawn[1]


def test_a_warning_ends_the_run_on_all_processes_at_once(tmp_path) -> None:
    stops = ("rollouts.mismatch_warning=1e-12", "warnings.stop_on=mismatch", "warnings.patience=2", "train.steps=6")
    _start([[_recipe("sc_sdpo"), _overrides(tmp_path / "run", *stops), {}]], 2, tmp_path / "store")
    summary = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (summary["step"], summary["stopped_early"]["name"]) == (2, "mismatch")
    for file in ("metrics.jsonl", "warnings.jsonl"):
        steps = [json.loads(line)["step"] for line in (tmp_path / "run" / file).open()]
        assert steps == sorted(set(steps)) and set(steps) <= {1, 2}, file


def assert_same_weights(one: Path, other: Path) -> None:
    (name,) = {path.name for path in one.glob("*.safetensors")}
    before, after = load_file(one / name), load_file(other / name)
    assert before.keys() == after.keys()
    assert max(float((before[key] - after[key]).abs().max()) for key in before) < 1e-4
    assert {key: value.dtype for key, value in before.items()} == {key: value.dtype for key, value in after.items()}
