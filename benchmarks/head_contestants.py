"""Who takes part in the head benchmark, what each is compared with, and what keeps it from running here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks import ours, peers
from benchmarks.head_floor import tiled_products, whole_products
from benchmarks.head_inputs import HeadInputs

Head = Callable[[HeadInputs], object]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One row of the table."""

    name: str
    label: str
    run: Head
    library: str = "ours"
    """floor, ours, trl or liger."""
    products: int = 3
    """Size of the floor that it is compared with: how many matrix products it cannot do without."""
    rival: str | None = None
    """Name of ours that does the same."""
    objective: str | None = None
    """Which truth its value and gradient are compared with."""
    trained: bool = False
    memory: bool = False
    """Whether its memory is measured."""
    unavailable: str | None = None


def contestants(device: torch.device, with_peers: bool) -> list[Contestant]:
    """Return everybody, those that cannot run included."""
    return [*_floors(), *_ours(), *(_trl(device) if with_peers else ()), *(_liger(device) if with_peers else ())]


def _floors() -> list[Contestant]:
    kinds = {2: (False, False), 3: (True, False), 4: (True, True)}
    ways = {"tiles": tiled_products, "whole": whole_products}
    return [
        Contestant(
            name=f"floor{products}_{way}",
            label=f"{products} bare products, {'in tiles' if way == 'tiles' else 'whole'}",
            run=partial(function, teacher=teacher, trained=trained),
            library="floor",
            products=products,
        )
        for products, (teacher, trained) in kinds.items()
        for way, function in ways.items()
    ]


def _ours() -> list[Contestant]:
    kl, jsd = partial(ours.divergence, divergence="forward_kl"), partial(ours.divergence, divergence="jsd")
    frozen: list[tuple[str, str, Head, str]] = [
        ("ours_forward_kl", "forward KL", kl, "forward_kl"),
        ("ours_jsd", "JSD", jsd, "jsd"),
        ("ours_jsd_topk", "JSD, student's top k + tail", _topk, "jsd_topk"),
    ]
    trained: list[tuple[str, str, Head, str]] = [
        ("ours_forward_kl_trained", "forward KL, head trained", partial(kl, trained=True), "forward_kl"),
        ("ours_jsd_trained", "JSD, head trained", partial(jsd, trained=True), "jsd"),
    ]
    others: list[tuple[str, str, Head, str, int, str | None]] = [
        ("ours_paint", "PAINT: clip, interpolation", ours.paint, "paint", 3, "ours_forward_kl"),
        ("ours_policy", "policy gradient", ours.policy_gradient, "policy", 2, None),
        (
            "readable_forward_kl",
            "forward KL, readable path",
            partial(kl, readable=True),
            "forward_kl",
            3,
            "ours_forward_kl",
        ),
    ]
    return [
        *(Contestant(name=n, label=text, run=run, objective=truth, memory=True) for n, text, run, truth in frozen),
        *(
            Contestant(name=n, label=text, run=run, objective=truth, products=4, trained=True, memory=True)
            for n, text, run, truth in trained
        ),
        *(
            Contestant(name=n, label=text, run=run, objective=truth, products=count, rival=rival, memory=True)
            for n, text, run, truth, count, rival in others
        ),
    ]


def _topk(inputs: HeadInputs) -> object:
    return ours.divergence(inputs, divergence="jsd", support="student_topk", top_k=inputs.top_k)


def _trl(device: torch.device) -> list[Contestant]:
    chunked, full = peers.trl_chunked_divergence, peers.trl_full_logits
    rows = [
        ("trl_chunked_kl", "chunked kernel, forward KL", partial(chunked, beta=0.0), "forward_kl", "ours_forward_kl"),
        ("trl_chunked_jsd", "chunked kernel, JSD", partial(chunked, beta=0.5), "jsd", "ours_jsd"),
        ("trl_full_kl", "full logits, forward KL", partial(full, alpha=0.0), "forward_kl", "ours_forward_kl"),
        ("trl_full_jsd", "full logits, JSD", partial(full, alpha=0.5), "jsd", "ours_jsd"),
        ("trl_topk_jsd", "full logits, JSD, top k", partial(full, alpha=0.5, top_k=True), "jsd_topk", "ours_jsd_topk"),
    ]
    unavailable = peers.missing("trl", device)
    frozen = [
        Contestant(
            name=name,
            label=label,
            run=run,
            library="trl",
            objective=objective,
            rival=rival,
            memory=name != "trl_topk_jsd",
            unavailable=unavailable,
        )
        for name, label, run, objective, rival in rows
    ]
    trained = Contestant(
        name="trl_chunked_kl_trained",
        label="chunked kernel, forward KL, head trained",
        run=partial(chunked, beta=0.0, trained=True),
        library="trl",
        products=4,
        objective="forward_kl",
        rival="ours_forward_kl_trained",
        trained=True,
        unavailable=unavailable,
    )
    policy = Contestant(
        name="trl_chunked_logprob",
        label="chunked kernel, log-probability",
        run=peers.trl_chunked_logprob,
        library="trl",
        products=2,
        objective="policy",
        rival="ours_policy",
        unavailable=unavailable,
    )
    return [*frozen, trained, policy]


def _liger(device: torch.device) -> list[Contestant]:
    return [
        Contestant(
            name="liger_chunked_jsd",
            label="chunked distillation JSD, head trained",
            run=peers.liger_chunked_jsd,
            library="liger",
            products=4,
            objective="jsd",
            rival="ours_jsd_trained",
            trained=True,
            memory=True,
            unavailable=peers.missing("liger", device),
        ),
        Contestant(
            name="liger_fused_jsd",
            label="fused linear JSD",
            run=peers.liger_fused_jsd,
            library="liger",
            objective="jsd",
            rival="ours_jsd",
            memory=True,
            unavailable=peers.missing("liger", device, triton=True),
        ),
    ]
