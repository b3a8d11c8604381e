"""Time and memory of the whole update phase: teacher scoring, student forward, loss, backward; no optimiser step.

Ours against TRL's SDPOTrainer, generation replaced by fixed ids: the same weights, rollouts, rewards and teacher
prompts. Where both define the same loss, value and gradient are compared before anything is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import ours_training, peers, trl_update
from benchmarks.arguments import parse
from benchmarks.head_reference import cosine
from benchmarks.memory import MemoryProbeError, MemoryProbes
from benchmarks.report import NOTHING, gibibytes, seconds, table, times, write_results
from benchmarks.timing import alternate, ratio, say, spread
from benchmarks.update_batch import Signal, UpdateBatch, UpdateSettings, make_batch, make_policy, save_model

HEADER = ("who", "what", "rows with signal", "seconds", "TRL / ours", "extra memory", "loss", "gradient against TRL")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One row of the table."""

    name: str
    label: str
    library: str
    mode: str
    """topk or full."""
    signal: Signal
    peer: str | None = None
    """Whose update is the same step."""
    readable: bool = False
    checkpointing: bool = False
    timed: bool = True


def contestants() -> list[Contestant]:
    """Return everybody."""
    labels = {"topk": "JSD, student's top k + tail", "full": "JSD, full vocabulary"}
    trl, own = [], []
    for mode, signal in (("topk", "all"), ("full", "all"), ("topk", "half")):
        name = f"{mode}_{signal}"
        shared: dict[str, Any] = {"mode": mode, "signal": signal}
        trl.append(Contestant(name=f"trl_{name}", label=labels[mode], library="trl", **shared))
        own.append(Contestant(name=f"ours_{name}", label=labels[mode], library="ours", peer=f"trl_{name}", **shared))
    shared = {"mode": "topk", "signal": "all"}
    readable = Contestant(
        name="readable_topk_all",
        label="readable path",
        library="ours",
        peer="trl_topk_all",
        readable=True,
        **shared,
    )
    checkpointed = Contestant(
        name="trl_topk_all_checkpointed",
        label="activation checkpointing",
        library="trl",
        checkpointing=True,
        timed=False,
        **shared,
    )
    return [*own, readable, *trl, checkpointed]


@dataclass
class Update:
    """A contestant, ready to run."""

    run: Callable[[], float]
    parameters: Callable[[], list[Tensor]]
    trainer: Any = None
    batch: UpdateBatch | None = None

    def gradient(self) -> Tensor:
        """Return the gradient that the last run left, as one vector."""
        return torch.cat([one.grad.flatten() for one in self.parameters() if one.grad is not None])


@dataclass
class UpdateResults:
    """All figures, by contestant."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    probes: list[dict[str, Any]] = field(default_factory=list)
    """What every memory process answered."""
    equality: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


def build(one: Contestant, settings: UpdateSettings, folder: Path) -> Update:
    """Load the model for a contestant and return its update phase."""
    batch = make_batch(settings, one.signal)
    if one.library == "trl":
        mode: trl_update.Mode = "topk_logits" if one.mode == "topk" else "full_logits"
        trainer = trl_update.make_trainer(batch, folder, mode, checkpointing=one.checkpointing)
        run = lambda: trl_update.update_phase(trainer, batch)  # noqa: E731
        return Update(run, lambda: list(trainer.model.parameters()), trainer, batch)
    policy = make_policy(folder, settings)
    step = ours_training.Update(batch, policy, full=one.mode == "full", readable=one.readable)
    return Update(step, lambda: list(policy.model.parameters()), batch=batch)


def prepare(contestant: str, settings: Mapping[str, Any]) -> Callable[[], object]:
    """Build one contestant (for :mod:`benchmarks.memory_probe`)."""
    chosen = UpdateSettings(**settings)
    chosen.prepare()
    (one,) = (each for each in contestants() if each.name == contestant)
    with saved_model(chosen) as folder:
        return build(one, chosen, folder).run


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    settings, run = parse("update", UpdateSettings, __doc__, arguments)
    device = settings.prepare()
    absent = peers.missing("trl", device)
    wanted = [one for one in contestants() if run.wants(one.name) and (run.peers or one.library == "ours")]
    able = [one for one in wanted if one.library == "ours" or absent is None]
    results = UpdateResults()
    with saved_model(settings) as folder:
        built = {one.name: build(one, settings, folder) for one in able if one.timed}
        results.tokens = {name: update.batch.tokens for name, update in built.items() if update.batch}
        work = {name: update.run for name, update in built.items()}
        check_equality(able, built, results)
        results.seconds = alternate(work, repeats=run.repeats, warmup=max(0, run.warmup - 1), device=device)
    del built, work
    measure_memory(run.probes([one.name for one in able]), settings, results)
    rows = [row(one, results, absent if one.library == "trl" else None) for one in wanted]
    print(table(_title(settings, results), HEADER, rows))
    print(
        "\nTRL / ours: how many times longer TRL's step takes, in the same round. Memory is above the loaded weights."
    )
    figures = {"contestants": {one.name: asdict(one) for one in wanted}, "summary": summary(wanted, results)}
    write_results(run.output, "update", asdict(settings) | {"run": run.as_data()}, device, figures | asdict(results))


def check_equality(able: Sequence[Contestant], built: Mapping[str, Update], results: UpdateResults) -> None:
    """Run everybody once, which also warms up, and compare losses and gradients where the mathematics is the same.

    With half of the questions all right or all wrong it is not: SC-SDPO leaves those out, TRL's SDPO trains on the
    all-right ones and multiplies the others by zero.
    """
    gradients: dict[str, Tensor] = {}
    for one in sorted(able, key=lambda each: each.library, reverse=True):  # TRL first
        if one.name not in built:
            continue
        update = built[one.name]
        found: dict[str, Any] = {"loss": update.run()}
        say(f"equality: {one.name}, loss {found['loss']:.6g}")
        if one.signal == "all":
            gradients[one.name] = update.gradient()
        if update.trainer is not None and update.batch is not None:
            found["same_teacher_prompts"] = trl_update.same_teacher_prompts(update.trainer, update.batch)
        if one.peer in gradients and one.signal == "all":
            found["gradient_cosine"] = cosine(gradients[one.name], gradients[one.peer])
            found["norm_ratio"] = float(gradients[one.name].norm() / gradients[one.peer].norm())
        results.equality[one.name] = found


def measure_memory(names: Sequence[str], settings: UpdateSettings, results: UpdateResults) -> None:
    """Fill in the peak memory above the loaded weights."""
    probes = MemoryProbes("benchmarks.update", results.probes)
    for name in names:
        try:
            results.memory[name] = probes.extra_peak(name, asdict(settings), idle_group=name)
        except MemoryProbeError as error:
            say(f"no figure: {error}")
            results.memory[name] = str(error)


def summary(wanted: Sequence[Contestant], results: UpdateResults) -> dict[str, Any]:
    """Return medians and ratios by contestant."""
    timed = results.seconds
    return {
        one.name: {
            "seconds": spread(timed[one.name])._asdict(),
            "trl_to_ours": ratio(timed[one.peer], timed[one.name])._asdict() if one.peer in timed else None,
        }
        for one in wanted
        if one.name in timed
    }


def row(one: Contestant, results: UpdateResults, absent: str | None) -> list[str]:
    """Return one line of the table."""
    who = "TRL" if one.library == "trl" else "ours"
    signal = "every row" if one.signal == "all" else "half of the questions"
    if absent is not None:
        return [who, one.label, signal, absent, *[NOTHING] * 4]
    timed, memory, equal = results.seconds, results.memory.get(one.name), results.equality.get(one.name, {})
    return [
        who,
        one.label,
        signal,
        seconds(spread(timed[one.name]) if one.name in timed else None),
        times(ratio(timed[one.peer], timed[one.name]) if one.peer in timed and one.name in timed else None),
        memory if isinstance(memory, str) else gibibytes(memory),
        f"{equal['loss']:.6g}" if equal else NOTHING,
        f"{equal['gradient_cosine']:.6f}" if "gradient_cosine" in equal else NOTHING,
    ]


@contextmanager
def saved_model(settings: UpdateSettings) -> Iterator[Path]:
    """Write the random model into a folder that lasts as long as the block."""
    with tempfile.TemporaryDirectory(prefix="selfdistill-bench-") as folder:
        save_model(settings, Path(folder))
        yield Path(folder)


def _title(settings: UpdateSettings, results: UpdateResults) -> str:
    model = f"Qwen3 of {settings.layers} layers x {settings.width}, V={settings.vocabulary:,}, {settings.dtype}"
    tokens = next(iter(results.tokens.values()), 0)
    batch = (
        f"{settings.questions} questions x {settings.rollouts} rollouts, {tokens} tokens, longest {settings.longest}"
    )
    return f"Update phase, {model}, {batch}, micro-batch {settings.micro_batch}, {settings.device}"


if __name__ == "__main__":
    main()
