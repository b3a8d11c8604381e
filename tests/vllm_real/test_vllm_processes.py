"""Two processes of a run and one vLLM server: the first process speaks with it, both train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_draw_from_a_server_that_has_the_weights_of_both(full_server, tmp_path) -> None:
    overrides = [
        "rollouts.engine=vllm_server",
        f"rollouts.server.urls={full_server.command.url}",
        "rollouts.sampling.max_new_tokens=16",
        "evaluation.sampling.max_new_tokens=16",
        "evaluation.samples=1",
        "data.eval_limit=2",
        "train.steps=2",
        "train.questions_per_step=4",
        "train.learning_rate=1e-4",
        "output.save_rollouts=all",
        f"output.folder={tmp_path / 'run'}",
    ]
    own = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "SELFDISTILL_STORE": str(tmp_path / "store")}
    own |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    jobs = json.dumps([[str(ROOT / "recipes" / "embedded" / "sc_sdpo.yaml"), overrides, {}]])
    started = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "parallel" / "parity_process.py"), jobs],
            env=os.environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [one.communicate(timeout=300)[0] for one in started]
    assert [one.returncode for one in started] == [0, 0], "\n".join(said)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # Each sync is proven by log-probabilities of a text; so are the responses, by those that the trainer gives them.
    mismatches = [step["sampler_mismatch"] for step in steps if "sampler_mismatch" in step]
    assert mismatches and max(mismatches) < 0.05
    assert [step["sync/max_difference"] < 0.1 for step in steps] == [True, True]
    drawn = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert len({(one["step"], one["question"], one["sibling"]) for one in drawn}) == len(drawn) == 2 * 4 * 8
    (result,) = (tmp_path / "run" / "evaluations" / "step-000002").glob("result.json")
    assert json.loads(result.read_text())
