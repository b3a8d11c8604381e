"""What a sync costs and whether it is exact: adapters alone against merged weights, 1000 syncs, log-probabilities."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rollouts_speed import SETTLE_SECONDS
from benchmarks.timing import say
from benchmarks.vllm_servers import server
from selfdistill.models.loading import LoraConfig, ModelConfig, Policy, load_policy
from selfdistill.rollouts.config import RolloutsConfig, ServerConfig
from selfdistill.rollouts.control import Served
from selfdistill.rollouts.needs import Needs
from selfdistill.rollouts.sampler import Engine, Sampling
from selfdistill.rollouts.server import ServerEngine
from selfdistill.rollouts.server.control import ServerControl
from selfdistill.rollouts.server.http import addresses
from selfdistill.rollouts.sync import base_folder
from selfdistill.rollouts.sync.handshake import fixed_text
from selfdistill.rollouts.vllm_install import VllmInstall
from selfdistill.teachers.weights import trainable

PUBLISHED = {
    "Qwen3-1.7B": {"layers": 28, "width": 2048, "inner": 6144, "queries": 2048, "keys": 1024, "vocabulary": 151_936},
    "Qwen3-8B": {"layers": 36, "width": 4096, "inner": 12288, "queries": 4096, "keys": 1024, "vocabulary": 151_936},
}
"""Shapes (with tied embeddings for 1.7B) that the papers train with LoRA of rank 64 on all linear layers."""


def lora_policy(path: str, dtype: str, rank: int) -> Policy:
    """Return a policy with adapters that do something."""
    lora = LoraConfig(r=rank, alpha=2 * rank)
    policy = load_policy(ModelConfig.model_validate({"path": path, "dtype": dtype, "lora": lora}), 0)
    disturb(policy, 0.01, 0)
    return policy


def disturb(policy: Policy, size: float, seed: int) -> None:
    """Change what is trained, as a step would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trainable(policy.model).values():
            weight.add_(size * torch.randn(weight.shape, generator=draw).to(weight))


@contextmanager
def engine_on_server(install: VllmInstall, policy: Policy, arguments: Mapping[str, Any]):  # type: ignore[no-untyped-def]
    """Yield our engine and the server that it talks to."""
    lora = policy.config.lora
    rank = {"enable_lora": True, "max_lora_rank": max(16, lora.r), "max_loras": 2} if lora else {}
    targets = {"lora_target_modules": list(lora.targets)} if lora else {}
    sampling = Sampling(max_new_tokens=64)
    common = {"dtype": policy.config.dtype, "generation_config": "vllm", "logprobs_mode": "processed_logprobs"}
    with tempfile.TemporaryDirectory() as folder:
        source = base_folder(policy, Path(folder) / "base")
        with server(install, source, {**common, **rank, **targets, **arguments}) as running:
            config = RolloutsConfig(
                engine="vllm_server", sampling=sampling, server=ServerConfig(urls=(running.url,), sync="folder")
            )
            engine = ServerEngine(policy, config, Needs(64, lora.r if lora else None, sampling), Path(folder) / "sync")
            try:
                yield engine, running, config
            finally:
                engine.close()


def adapters_against_weights(
    install: VllmInstall, path: str, dtype: str, rank: int, repeats: int, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return bytes and seconds of a sync by adapter, and of merging and sending everything, for the same policy."""
    policy = lora_policy(path, dtype, rank)
    found: dict[str, Any] = {"rank": rank, "dtype": dtype}
    with engine_on_server(install, policy, arguments) as (engine, _, _):
        found["adapter"] = [_settled_sync(engine, f"step-{index}") for index in range(repeats)]
    merged = _merged(policy)
    with engine_on_server(install, merged, arguments) as (engine, _, _):
        found["weights"] = [_settled_sync(engine, f"step-{index}") for index in range(repeats)]
    for name in ("adapter", "weights"):
        say(f"sync by {name}: {found[name][-1]['bytes'] / 1e6:.1f} MB, {found[name][-1]['seconds']:.2f} s")
    found["times_less_data"] = found["weights"][-1]["bytes"] / found["adapter"][-1]["bytes"]
    return found


def _settled_sync(engine: Engine, version: str) -> dict[str, Any]:
    """Sync an engine that has been idle for a while, as it is after an update."""
    time.sleep(SETTLE_SECONDS)
    report = engine.sync(version)
    assert report is not None
    return asdict(report)


def _merged(policy: Policy) -> Policy:
    """Return a copy with the adapters merged in float32, as all weights of a model."""
    lora = policy.config.lora
    assert lora is not None
    copy = load_policy(policy.config, 0)
    copy.model.load_state_dict(policy.model.state_dict())
    model: Any = copy.model
    plain = model.float().merge_and_unload().to(getattr(torch, policy.config.dtype))
    config = policy.config.model_copy(update={"lora": None})
    return Policy(plain, policy.tokenizer, policy.chat, config, policy.device)


def published_sizes(rank: int = 64) -> dict[str, dict[str, float]]:
    """Return what would travel for the papers' models: float32 adapters, bf16 weights; computed from their shapes."""
    sizes = {}
    for name, shape in PUBLISHED.items():
        width, inner, queries, keys = (shape[key] for key in ("width", "inner", "queries", "keys"))
        pairs = [(width, queries), (queries, width), *[(width, keys)] * 2, *[(width, inner)] * 2, (inner, width)]
        adapter = 4 * rank * shape["layers"] * sum(one + other for one, other in pairs)
        heads = 1 if name == "Qwen3-1.7B" else 2
        weights = 2 * (shape["layers"] * sum(one * other for one, other in pairs) + heads * shape["vocabulary"] * width)
        sizes[name] = {"adapter": adapter, "weights": weights, "times_less_data": weights / adapter}
    return sizes


def many_syncs(install: VllmInstall, count: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Sync ``count`` changed adapters and say how far the base weights have moved, on both sides."""
    policy = lora_policy("embedded", "float32", 8)
    torch.set_num_threads(1)  # the server's worker is never idle here, and two threads would wait for its core
    frozen = {name: p.detach().clone() for name, p in policy.model.named_parameters() if not p.requires_grad}
    with engine_on_server(install, policy, arguments) as (engine, _, config):
        control = ServerControl(addresses(config.server)[0])
        text, base = fixed_text(policy), None
        reports = []
        for index in range(count + 1):
            disturb(policy, 1e-4, index)
            reports.append(engine.sync(f"step-{index}"))
            if index in (0, count):
                drawn = control.draw(text.prefixes, Served(control.version(), None))
                base = drawn if base is None else base
        moved = {name: float((p.detach() - frozen[name]).abs().max()) for name, p in _frozen(policy, frozen)}
        last = [one for _, one in drawn]
        return {
            "syncs": count,
            "trainer_largest_change": max(moved.values()),
            "server_largest_change_nats": max(abs(a - b) for a, (_, b) in zip(last, base or [], strict=True)),
            "server_same_tokens": [token for token, _ in drawn] == [token for token, _ in base or []],
            "mean_difference": statistics.fmean(report.mean_difference for report in reports),
            "max_difference": max(report.max_difference for report in reports),
            "median_seconds": statistics.median(report.seconds for report in reports),
        }


def _frozen(policy: Policy, frozen: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in policy.model.named_parameters() if name in frozen]


def merged_drift(cycles: int) -> dict[str, float]:
    """Return how far bf16 weights drift when adapters are merged into them and taken out again, ``cycles`` times."""
    draw = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(512, 512, generator=draw)).bfloat16()
    start = weight.float().clone()
    for _ in range(cycles):
        delta = (0.002 * torch.randn(512, 512, generator=draw)).bfloat16()
        weight += delta
        weight -= delta
    drift = (weight.float() - start).abs().mean()
    return {"cycles": cycles, "mean_drift_over_mean_weight": float(drift / start.abs().mean())}


def logprob_difference(install: VllmInstall, path: str, dtype: str, arguments: Mapping[str, Any]) -> dict[str, float]:
    """Return how far the engine's log-probabilities of its own responses are from the trainer's."""
    policy = lora_policy(path, dtype, 16)
    questions = ("17+25+38", "what is 12-7?", "name three animals")
    prompts = [list(policy.chat.render([{"role": "user", "content": text}])) for text in questions]
    with engine_on_server(install, policy, arguments) as (engine, _, _):
        engine.sync("once")
        drawn = engine.sample(
            prompts, [[100 * row + column for column in range(8)] for row in range(3)], Sampling(max_new_tokens=64)
        )
    differences = []
    for prompt, completions in zip(prompts, drawn, strict=True):
        for one in completions:
            with torch.no_grad():
                logits = policy.model(torch.tensor([[*prompt, *one.ids]])).logits[0, len(prompt) - 1 : -1]
            own = torch.log_softmax(logits.float(), -1).gather(-1, torch.tensor(one.ids)[:, None]).squeeze(-1)
            differences.append((own - torch.tensor(one.logprobs)).abs())
    flat = torch.cat(differences)
    return {"tokens": flat.numel(), "mean": float(flat.mean()), "max": float(flat.max())}
