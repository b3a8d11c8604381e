"""SFT, GRPO and PACED as whole runs through the command line: interrupted wherever it hurts, resumed, looked at."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.training.progress import PlainProgress
from selfdistill.training.recipe import load_recipe
from selfdistill.training.run import start, train

ROOT = Path(__file__).resolve().parents[2]
REDUCED = (
    "train.steps=2",
    "train.questions_per_step=6",
    "train.warmup_steps=1",
    "data.train_limit=8",
    "data.eval_limit=2",
    "rollouts.sampling.max_new_tokens=48",
    "rollouts.max_rows=1",  # what is drawn then does not depend on what else is, not even in the last bit
    "evaluation.samples=1",
    "evaluation.sampling.max_new_tokens=16",
    "train.evaluate_first=false",
    "train.seed=1",
)


def recipe_file(method: str) -> Path:
    return ROOT / "recipes" / "embedded" / f"{method}.yaml"


class Process:
    """`selfdistill train` in a process of its own."""

    def __init__(self, method: str, folder: Path, *more: str) -> None:
        self.folder = folder
        arguments = ["train", str(recipe_file(method)), *REDUCED, f"output.folder={folder}", *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "selfdistill", *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_lines(self, name: str, count: int) -> None:
        deadline, file = time.monotonic() + 240, self.folder / name
        while not file.exists() or file.read_bytes().count(b"\n") < count:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def interrupt(self, times: int = 1) -> None:
        """Press Ctrl-C: once asks for a stop after the step, twice does not want to wait for that."""
        for _ in range(times):
            self.process.send_signal(signal.SIGINT)
            time.sleep(0.4)  # two signals that nobody has looked at are one

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=480)
        assert "Traceback" not in err
        return self.process.returncode, out, err


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def undisturbed(tmp_path: Path):
    """Return a function that makes, in this process, the outcome of a run that nothing interrupts."""

    def undisturbed(method: str, *more: str) -> dict[str, Any]:
        folder = tmp_path / "undisturbed"
        train(load_recipe(recipe_file(method), [*REDUCED, f"output.folder={folder}", *more]))
        return outcome(folder)

    return undisturbed


def ended_at_once(code: int, out: str) -> bool:
    """Say whether two Ctrl-C have ended a run: the second on its way out, or too late to matter."""
    return (code, out) == (130, "") or (code == 0 and out.startswith("stopped after step 0 of 2; go on with: "))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").split("\n") if line]


def answer_of(model: Path) -> str:
    """Return what transformers alone makes of the final model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "7+5"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return tokenizer.decode(network.generate(**prompt, max_new_tokens=32, do_sample=False)[0])


def outcome(folder: Path) -> dict[str, Any]:
    """Return all that a run leaves, apart from times."""
    timed = ("seconds/", "tokens_per_second/")
    return {
        "weights": (folder / "final" / "model.safetensors").read_bytes(),
        "metrics": [{key: row[key] for key in row if not key.startswith(timed)} for row in rows_of(folder)],
        "rollouts": (folder / "rollouts.jsonl").read_text("utf-8"),
        "result": json.loads((folder / "result.json").read_text("utf-8")),
        "prior": json.loads(prior.read_text("utf-8")) if (prior := folder / "prior_pass_rates.json").exists() else None,
    }


def test_paced_is_interrupted_in_its_pass_and_in_a_step_and_ends_as_if_it_had_not_been(tmp_path, undisturbed) -> None:
    folder = tmp_path / "run"
    first = Process("paced", folder)
    first.wait_for_lines("pending-prior.jsonl", 3)
    first.interrupt()
    code, out, _ = first.end()
    assert code == 0 and out.startswith("stopped after step 0 of 2; go on with: selfdistill train ")
    assert out.endswith(f"output.folder={folder} --resume\n")
    assert not (folder / "metrics.jsonl").exists() and not (folder / "prior_pass_rates.json").exists()
    kept = (folder / "pending-prior.jsonl").read_bytes()
    assert 2 <= kept.count(b"\n") - 1 < 8 * 8

    second = Process("paced", folder, "--resume")
    second.wait_for_lines("pending-000000.jsonl", 3)
    second.interrupt(times=2)
    code, out, err = second.end()
    assert ended_at_once(code, out)
    assert "pass rates of 8 questions before training: " in err and " tokens/s), mean 0." in err
    assert not (folder / "pending-prior.jsonl").exists()  # its work is done
    assert (folder / "pending-000000.jsonl").read_bytes().count(b"\n") > 2

    code, out, err = Process("paced", folder, "--resume").end()
    assert code == 0 and "pass rates of 8 questions" not in err  # once measured, they are kept
    found = outcome(folder)
    assert found == undisturbed("paced")
    assert (
        found["prior"]["tokens"] + sum(round(row["rollouts"] * row["response_length"]) for row in found["metrics"])
        == (found["result"]["rollout_tokens"])
    )
    assert set(found["prior"]["pass_rates"].values()) <= {count / 8 for count in range(9)}
    assert [path.name for path in folder.glob("pending-*")] == []
    for row in found["metrics"]:  # frozen weights of mean 1 over the data set, so not over a batch
        assert 0 <= row["weighted_share"] <= 1 and row["weight_sum"] > 0


def test_grpo_is_interrupted_in_a_step_and_ends_as_if_it_had_not_been(tmp_path, undisturbed) -> None:
    folder = tmp_path / "run"
    first = Process("grpo", folder)
    first.wait_for_lines("pending-000000.jsonl", 3)
    first.interrupt(times=2)
    assert ended_at_once(*first.end()[:2])
    assert not (folder / "metrics.jsonl").exists()
    code, out, _ = Process("grpo", folder, "--resume").end()
    assert code == 0 and f"\nrun folder: {folder}\n" in out and out.startswith("step     2  ")
    found = outcome(folder)
    assert found == undisturbed("grpo")
    assert (found["result"]["finished"], found["result"]["step"]) == (True, 2)
    for row in found["metrics"]:
        assert row["ratio"] == pytest.approx(1.0, abs=1e-4) and row["rollouts"] == 48
        assert "divergence" not in row and "reprompted_share" not in row
    assert any(row["grad_norm"] > 0 for row in found["metrics"])
    kept = [json.loads(line) for line in found["rollouts"].split("\n") if line]
    assert {row["objective"] for row in kept} == {"policy"} and {row["shown"] for row in kept} == {None}
    assert all(row["success"] == (row["reward"] == 1.0) for row in kept)
    assert "####" in answer_of(folder / "final")


def test_supervised_training_is_stopped_and_ends_as_if_it_had_not_been(tmp_path, undisturbed) -> None:
    folder = tmp_path / "run"
    first = Process("sft", folder, "train.steps=100000")
    first.wait_for_lines("metrics.jsonl", 2)
    first.interrupt()
    code, out, _ = first.end()
    done = len(rows_of(folder))
    assert code == 0 and out.startswith(f"stopped after step {done} of 100000")
    steps = f"train.steps={done + 2}"
    assert Process("sft", folder, steps, "--resume").end()[0] == 0
    found = outcome(folder)
    assert found == undisturbed("sft", steps)
    assert {row["rollout_tokens"] for row in found["metrics"]} == {0}
    assert {row["forwarded_share"] for row in found["metrics"]} == {1.0}
    assert all(0 < row["loss"] < 1 and row["grad_norm"] > 0 for row in found["metrics"])
    kept = [json.loads(line) for line in found["rollouts"].split("\n") if line]
    assert all(row["objective"] == "imitation" and row["response"].splitlines()[-1].startswith("####") for row in kept)


def test_the_pass_before_training_shows_how_far_and_how_fast_it_is(tmp_path) -> None:
    shown = io.StringIO()
    overrides = [*REDUCED, "rollouts.max_rows=64", f"output.folder={tmp_path / 'run'}"]
    start(load_recipe(recipe_file("paced"), overrides), resume=False, progress=PlainProgress(shown, every=0.0))
    lines = shown.getvalue().splitlines()
    phase = [line for line in lines if line.startswith("  measuring pass rates before training: ")]
    assert len(phase) > 5 and f" of {8 * 8 * 48:,} tokens, " in phase[-1]
    assert " tokens/s, at most " in phase[-1] and phase[-1].endswith(" left")
    [message] = [line for line in lines if line.startswith("pass rates of 8 questions before training: ")]
    drawn = json.loads((tmp_path / "run" / "prior_pass_rates.json").read_text())["tokens"]
    assert f": {drawn:,} tokens in " in message
