"""Sampling with vLLM in a process of its own, in the environment that has vLLM: bare, and through our engine.

Started by :mod:`benchmarks.rollouts`. In: one JSON line with the settings, then one per round on standard input. Out:
one JSON line each on the real standard output (what vLLM prints goes to standard error).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEEDS = {"bare": (), "seeds": ("seeds",), "log-probs": ("log-probs",), "both": ("seeds", "log-probs")}
"""What the requests of a kind ask for besides tokens."""

Round = Callable[[], int]
"""Draws everything once and returns the number of tokens."""


def main() -> None:
    """Build the engine, say ``ready``, then run a round for every line until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    draw = (ours if job["kind"] == "ours" else bare)(job)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        tokens = draw()
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - started}), file=answers, flush=True)


def bare(job: dict[str, Any]) -> Round:
    """Return ``LLM.generate`` on the prompts, as fast as it goes, or with what training needs: ``NEEDS[kind]``."""
    from vllm import LLM, SamplingParams

    llm = LLM(**job["engine"])
    needs = NEEDS[job["kind"]]
    shared = {"max_tokens": job["new_tokens"], "temperature": 1.0, "detokenize": False, "stop_token_ids": job["ends"]}
    params = [
        SamplingParams(
            n=len(seeds),
            **shared,
            seed=seeds[0] if "seeds" in needs else None,
            logprobs=0 if "log-probs" in needs else None,
        )
        for seeds in job["seeds"]
    ]
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]

    def draw() -> int:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        llm.reset_prefix_cache()
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)

    return draw


def ours(job: dict[str, Any]) -> Round:
    """Return our engine in process."""
    from selfdistill.models.loading import ModelConfig, load_policy
    from selfdistill.rollouts.config import RolloutsConfig, VllmConfig
    from selfdistill.rollouts.needs import Needs
    from selfdistill.rollouts.sampler import Sampling
    from selfdistill.rollouts.vllm_engine import VllmEngine

    sampling = Sampling(max_new_tokens=job["new_tokens"])
    config = RolloutsConfig(
        engine="vllm",
        sampling=sampling,
        max_rows=job["engine"]["max_num_seqs"],
        vllm=VllmConfig(options=job["options"]),
    )
    policy = load_policy(ModelConfig(path=job["path"], dtype=job["dtype"], device="auto"), 0)
    folder = tempfile.TemporaryDirectory(prefix="selfdistill-bench-")
    engine = VllmEngine(policy, config, Needs(job["new_tokens"], None, sampling), Path(folder.name))
    engine.sync("bench")

    def draw() -> int:
        completions = engine.sample(job["prompts"], job["seeds"], sampling)
        return sum(len(one.ids) for own in completions for one in own)

    return draw


if __name__ == "__main__":
    main()
