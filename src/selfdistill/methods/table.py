"""The methods as a table: what the teacher sees, whose weights it has, what counts, what is minimised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfdistill.methods.method import Method, as_data

COLUMNS = (
    "method",
    "rollouts",
    "teacher sees",
    "teacher's weights",
    "question weights",
    "rows go to",
    "objective",
    "mean over",
)


def method_table(methods: Sequence[Method]) -> str:
    """Return a Markdown table with a line per method."""
    lines = [COLUMNS, tuple("-" * len(column) for column in COLUMNS), *(cells(method) for method in methods)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def cells(method: Method) -> tuple[str, ...]:
    """Return a method's cells."""
    data = as_data(method)
    return (
        method.name,
        "references" if method.source.kind == "reference_solutions" else f"{method.source.group_size} per question",
        _part(data["context"], ("hidden_wrong", "hidden_correct", "demonstration")),
        _part(data["teacher"], ("rate", "every")),
        _part(data["weighting"], ("alpha", "a", "b", "low", "high")),
        "failures -> distillation" if len(method.routing.objectives) > 1 else method.routing.objectives[0],
        " + ".join(_objective(name, data[name]) for name in ("distillation", "policy", "imitation") if data[name]),
        method.reduction.kind.removesuffix("_mean") + ("s" if method.reduction.over == "all" else "s with signal"),
    )


def _part(part: dict[str, Any], shown: Sequence[str]) -> str:
    if part["kind"] in ("none", "uniform"):
        return "-"
    settings = [f"{name}={part[name]}" for name in shown if name in part]
    kind = str(part["kind"]).replace("_", " ")
    return f"{kind} ({', '.join(settings)})" if settings else kind


def _objective(name: str, part: dict[str, Any]) -> str:
    if name == "imitation":
        return "cross-entropy"
    if name == "policy":
        return "policy gradient, " + ("A = (r - mean) / std" if part["normalize"] else "A = r - mean")
    words = [part["divergence"] if part["divergence"] != "jsd" else f"jsd({part['beta']})"]
    words += ["on the sampled token"] if part["estimator"] == "sampled_token" else [_support(part)]
    words += [f"entry clip {part['entry_clip']}"] if part["entry_clip"] else []
    words += [f"token clip {part['token_clip']}"] if part["token_clip"] else []
    words += [f"interpolated at {part['interpolation_fraction']:.0%}"] if part["interpolation_fraction"] else []
    words += [f"ratio <= {part['ratio_cap']:g}"] if part["ratio_cap"] else []
    words += [f"exp(-{part['entropy_weight']:g} H_T)"] if part["entropy_weight"] else []
    return ", ".join(words)


def _support(part: dict[str, Any]) -> str:
    if part["support"] == "full":
        return "full vocabulary"
    tail = " + tail" if part["support"] == "student_topk" and part["tail"] else ""
    return f"{part['support']} {part['top_k']}{tail}"
