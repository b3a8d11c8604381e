"""The plan as text: tables on a terminal, plain lines elsewhere; and as plain data for ``--json``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TextIO

from selfdistill.planning.memory import PARTS, Item
from selfdistill.planning.plan import Plan
from selfdistill.sections import Section, draw

GIB = 2**30
MIB = 2**20


def render(plan: Plan, stream: TextIO | None = None) -> None:
    """Print the plan to ``stream`` (standard output by default): tables on a terminal, else plain lines."""
    stream = sys.stdout if stream is None else stream
    draw(sections(plan), stream)
    stream.write(f"{verdict(plan)}\n")


def sections(plan: Plan) -> Iterator[Section]:
    """Yield everything that is said about a plan but the verdict."""
    yield _model(plan)
    yield _memory(plan)
    yield _tokens(plan)
    yield _time(plan)
    if plan.changes:
        yield _changes(plan)


def verdict(plan: Plan) -> str:
    """Return one line: whether it fits."""
    needed, there = amount(plan.memory.peak), f"{amount(plan.capacity)} ({plan.capacity_source})"
    part = PART_NAMES[plan.memory.peak_part]
    if plan.fits:
        return f"Fits: {needed} of {there}, most of it needed by {part}."
    if plan.changes and plan.changes[-1].peak <= plan.capacity:
        how = "with the changes above it fits"
    else:
        how = "with all changes above it still does not; use a larger GPU or a smaller model"
    return f"Does not fit: {part} needs {needed} of {there}; {how}."


PART_NAMES = {
    "sampling": "sampling",
    "scoring": "the teacher's scoring",
    "update": "the update",
    "optimizer": "the optimizer's step",
}


def amount(size: int) -> str:
    """Return bytes as GiB, or MiB below a tenth of a GiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / MIB:.1f} MiB"


def as_data(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain data: bytes, tokens, seconds."""
    memory = plan.memory
    return {
        "recipe": plan.recipe.name,
        "fits": plan.fits,
        "capacity": plan.capacity,
        "parameters": {"all": plan.setup.parameters, "trained": plan.setup.trained},
        "layout": asdict(plan.setup.layout),
        "lengths": asdict(plan.setup.lengths),
        "memory": {
            "items": [asdict(item) for item in memory.items],
            "parts": {part: memory.at(part) for part in PARTS},
            "peak": memory.peak,
            "host": memory.host,
        },
        "tokens": asdict(plan.tokens),
        "measured": [asdict(batch) for batch in plan.batches],
        "step_seconds": None if plan.step is None else asdict(plan.step) | {"total": plan.step.total},
        "unmeasured": plan.unmeasured,
        "changes": [asdict(change) for change in plan.changes],
    }


def _model(plan: Plan) -> Section:
    setup, shape = plan.setup, plan.setup.shape
    what = f"{shape.model_type}, {shape.layers} layers, hidden {shape.hidden}, vocabulary {shape.vocabulary:,}"
    trained = f"LoRA rank {setup.lora.r}" if setup.lora else "all of them"
    rows = [
        ("parameters", f"{setup.parameters:,}", f"{plan.recipe.model.path}: {what}"),
        ("trained", f"{setup.trained:,}", f"{setup.trained / setup.parameters:.1%}, {trained}"),
    ]
    return Section("model", tuple(rows))


def _memory(plan: Plan) -> Section:
    layout, held = plan.setup.layout, plan.memory
    per = f"memory per GPU, {layout.processes} of them" if layout.is_parallel else "memory"
    rows = [(item.name, amount(item.bytes), _when(item), item.detail) for item in held.items]
    for part in PARTS:
        mark = "the most" if part == held.peak_part else ""
        rows.append((f"sum in {PART_NAMES[part]}", amount(held.at(part)), "", mark))
    if held.host:
        rows.append(("sum in CPU memory", amount(held.host), "", "per process"))
    if not plan.setup.shape.is_plain:
        rows.append(("note", "", "", f"activations are counted as Llama's; {plan.setup.shape.model_type} may differ"))
    return Section(per, tuple(rows))


def _when(item: Item) -> str:
    if item.on_host:
        return "CPU memory"
    return "always" if item.parts == PARTS else " + ".join(item.parts)


def _tokens(plan: Plan) -> Section:
    tokens, lengths, setup = plan.tokens, plan.setup.lengths, plan.setup
    shape = f"{setup.questions} questions x {setup.group_size}, responses of up to {lengths.response:,} tokens"
    rows = [
        ("sampled at most", f"{tokens.sampled:,}", shape if setup.samples else "reference solutions: nothing is drawn"),
        ("scored by the student", f"{tokens.student:,}", f"positions at most; prompts up to {lengths.prompt:,}"),
    ]
    if tokens.teacher:
        text = f"positions at most; privileged prompts up to {lengths.teacher_prompt:,}"
        rows.append(("scored by the teacher", f"{tokens.teacher:,}", text))
    rows += [
        ("forwarded", "", tokens.forwarded),
        ("lengths", "", lengths.source),
    ]
    return Section("tokens per step", tuple(rows))


def _time(plan: Plan) -> Section:
    step = plan.step
    if step is None:
        return Section("time per step", (("not measured", "", plan.unmeasured),))
    measured = plan.batches[-1]
    batch = f"{measured.questions} questions, {measured.rows} rows, {measured.drawn:,} tokens drawn"
    ends = f"budget {measured.new_tokens}, which {measured.cut:.0%} of them used up" if measured.drawn else "references"
    several = f"extrapolated from {len(plan.batches)} batches, of which the largest is above"
    if len(plan.batches) == 1:
        several = "extrapolated from one small batch: far too long, if anything; give it more time with --measure"
    basis = "measured as a whole" if step.is_whole else several
    rows = [
        ("measured", _seconds(measured.seconds), f"{batch} ({ends}); model loaded in {measured.loading:.1f} s"),
        ("  sampling", _seconds(measured.sampling), f"{measured.drawn / max(measured.sampling, 1e-9):,.0f} tokens/s"),
        ("  verifying", _seconds(measured.verifying), "what sampling did not hide"),
        (
            "  update",
            _seconds(measured.update),
            f"{measured.student:,} positions student, {measured.teacher:,} teacher",
        ),
        ("  optimizer", _seconds(measured.optimizer), "clipping, AdamW, the teacher's following"),
        ("a step of the recipe", _seconds(step.total), f"{basis}; one process, without evaluations"),
    ]
    rows += _step_rows(plan)
    if measured.peak is not None:
        rows.append(("device's peak", amount(measured.peak), "while this was measured"))
    return Section("time per step", tuple(rows))


def _step_rows(plan: Plan) -> list[tuple[str, str, str]]:
    step = plan.step
    assert step is not None
    engine = plan.recipe.rollouts.engine
    drawn = "not measured" if step.sampling is None else _seconds(step.sampling)
    by = f"by {engine}" if step.sampling is None else f"{step.tokens_per_response:.0f} tokens per response"
    return [
        ("  sampling", drawn, by),
        ("  verifying", _seconds(step.verifying), ""),
        ("  update", _seconds(step.update), f"if {step.share:.0%} of the rows have signal, as measured"),
        ("  optimizer", _seconds(step.optimizer), ""),
        ("  at most", _seconds(step.at_most), "full-length responses, all with signal"),
    ]


def _changes(plan: Plan) -> Section:
    rows = [
        (one.override, amount(one.saves), f"saved in {PART_NAMES[one.part]}; then {amount(one.peak)} are needed")
        for one in plan.changes
    ]
    return Section("what to change, in this order", tuple(rows))


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"
