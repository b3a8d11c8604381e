"""Tokens per second of everybody who can sample, on the same prompts and seeds, in turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import Run
from benchmarks.timing import say, seconds_of
from benchmarks.vllm_servers import Worker, server
from selfdistill.models.loading import ModelConfig, Policy, load_policy
from selfdistill.rollouts.config import RolloutsConfig, ServerConfig
from selfdistill.rollouts.needs import Needs
from selfdistill.rollouts.sampler import Engine, Sampling
from selfdistill.rollouts.vllm_install import VllmInstall

TOPICS = ("the sea", "a clock", "an old bridge", "winter", "a fox", "the moon", "a train", "bread")
WORKERS = {
    "vLLM, bare": "bare",
    "vLLM, seeds": "seeds",
    "vLLM, log-probs": "log-probs",
    "vLLM, seeds and log-probs": "both",
    "ours, in process": "ours",
}
"""Contestants that run in the environment that has vLLM, and what they are there."""
ASKED_FOR = ("vLLM, seeds", "vLLM, log-probs")
"""Only where ``--only`` names them: they say what seeds and log-probabilities cost the engine."""

SETTLE_SECONDS = 2.5
"""Before each turn: vLLM's workers keep a core busy for a second after their last request, in the next one's time."""

Draw = Callable[[], int]
"""Draws everything once and returns the number of tokens."""


@dataclass(frozen=True)
class Job:
    """What everybody draws."""

    policy: Policy
    prompts: list[list[int]]
    seeds: list[list[int]]
    sampling: Sampling
    options: Mapping[str, Any]
    """Engine arguments that all vLLM engines have in common."""

    @property
    def rows(self) -> int:
        """Responses side by side."""
        return sum(map(len, self.seeds))

    def data(self, kind: str, folder: str) -> dict[str, Any]:
        """Return the job as a worker reads it."""
        engine = {"model": folder, "dtype": self.policy.config.dtype, "max_num_seqs": self.rows, **self.options}
        return {
            "kind": kind,
            "prompts": self.prompts,
            "seeds": self.seeds,
            "new_tokens": self.sampling.max_new_tokens,
            "ends": list(self.policy.chat.end_of_turn_ids),
            "path": self.policy.config.path,
            "dtype": self.policy.config.dtype,
            "options": dict(self.options),
            "engine": engine,
        }


def make_job(path: str, dtype: str, rows: int, new_tokens: int, options: Mapping[str, Any]) -> Job:
    """Return prompts that ask for more than fits, so that nearly all responses have the same length."""
    policy = load_policy(ModelConfig.model_validate({"path": path, "dtype": dtype}), 0)
    questions = [f"Write a very long story about {topic}. Describe everything in detail." for topic in TOPICS]
    prompts = [list(policy.chat.render([{"role": "user", "content": text}])) for text in questions]
    each = max(1, rows // len(prompts))
    seeds = [[1000 * index + sibling for sibling in range(each)] for index in range(len(prompts))]
    return Job(policy, prompts, seeds, Sampling(max_new_tokens=new_tokens), options)


def measure(job: Job, run: Run, install: VllmInstall, engine_folder: Path) -> dict[str, list[dict[str, float]]]:
    """Return tokens and seconds of every contestant and round."""
    results: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        contestants = {name: rounds for name, rounds in _contestants(job, run, install, engine_folder, stack)}
        for index in range(-run.warmup, run.repeats):
            for name, once in contestants.items():
                time.sleep(SETTLE_SECONDS)
                figures = once()
                say(f"{'warm-up' if index < 0 else f'round {index + 1}'}: {name} {_speed(figures):.0f} tokens/s")
                if index >= 0:
                    results.setdefault(name, []).append(figures)
    return results


def _contestants(
    job: Job, run: Run, install: VllmInstall, folder: Path, stack: ExitStack
) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    for name, kind in WORKERS.items():
        if run.wants(name) and (run.only or name not in ASKED_FOR):
            worker = Worker(install, job.data(kind, str(folder)))
            stack.callback(worker.close)
            yield name, worker.round
    if run.wants("ours, server"):
        engine = stack.enter_context(_served(job, install, folder))
        yield "ours, server", lambda: _timed(lambda: _drawn(engine, job))
    if run.wants("transformers, generate"):
        yield "transformers, generate", lambda: _timed(lambda: _generated(job))
    if run.wants("ours, transformers"):
        from selfdistill.rollouts.transformers_sampler import TransformersSampler

        sampler = TransformersSampler(job.policy.model, job.policy.chat)
        yield "ours, transformers", lambda: _timed(lambda: _drawn(sampler, job))


@contextmanager
def _served(job: Job, install: VllmInstall, folder: Path) -> Iterator[Engine]:
    """Return our engine on a server of its own, with full weights given to it once."""
    from selfdistill.rollouts.server import ServerEngine

    needs = Needs(job.sampling.max_new_tokens, None, job.sampling)
    arguments = {
        "dtype": job.policy.config.dtype,
        "max_num_seqs": job.rows,
        "generation_config": "vllm",
        "logprobs_mode": needs.logprobs_mode,
        **job.options,
    }
    with server(install, folder, arguments) as running, tempfile.TemporaryDirectory() as sync:
        config = RolloutsConfig(
            engine="vllm_server", sampling=job.sampling, server=ServerConfig(urls=(running.url,), sync="folder")
        )
        engine = ServerEngine(job.policy, config, needs, Path(sync))
        try:
            engine.sync("bench")
            yield engine
        finally:
            engine.close()


def _drawn(engine: Engine, job: Job) -> int:
    completions = engine.sample(job.prompts, job.seeds, job.sampling)
    return sum(len(one.ids) for own in completions for one in own)


@torch.no_grad()
def _generated(job: Job) -> int:
    """Use transformers' own generate: one left-padded batch, until the last row ends."""
    from selfdistill.rollouts.requests import left_padded

    chat = job.policy.chat
    rows = [prompt for prompt, own in zip(job.prompts, job.seeds, strict=True) for _ in own]
    ids, mask = left_padded(rows, chat.pad_id)
    model: Any = job.policy.model
    drawn = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=job.sampling.max_new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=list(chat.end_of_turn_ids),
        pad_token_id=chat.pad_id,
    )
    return sum(_length(row, chat.end_of_turn_ids) for row in drawn[:, ids.shape[1] :].tolist())


def _length(row: list[int], ends: tuple[int, ...]) -> int:
    return next((index + 1 for index, token in enumerate(row) if token in ends), len(row))


def _timed(draw: Draw) -> dict[str, float]:
    drawn: list[int] = []
    taken = seconds_of(lambda: drawn.append(draw()), torch.device("cpu"))
    return {"tokens": drawn[0], "seconds": taken}


def _speed(figures: Mapping[str, float]) -> float:
    return figures["tokens"] / figures["seconds"]
