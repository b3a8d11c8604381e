"""Sample rollouts of a run: the same held-out questions after each evaluated step, and rollouts from training.

In: runs. Out: records for the page, few and short enough to be embedded, with a sentence on what was left out. The text
is what a model wrote and is never markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.analysis.grouping import Series
from selfdistill.analysis.run_data import RunData
from selfdistill.evaluation.result import EvaluationResult

CHARACTERS = 600_000
"""Of text in a page, for all series together."""
LONGEST = 6_000
"""Characters of one response; the middle of a longer one is left out."""
QUESTIONS = 12
"""Held-out questions of a series."""
SIBLINGS = 2
"""Responses to a held-out question per step."""
STEPS = 12
"""Most steps that samples are taken from, evenly spread."""
GROUP = 4
"""Rollouts of a training question."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Samples:
    """What the page shows."""

    records: tuple[Record, ...]
    note: str


def samples(series: Sequence[Series]) -> Samples:
    """Return samples of the first run of each series."""
    share = CHARACTERS // max(1, len(series))
    records: list[Record] = []
    dropped = cut = 0
    for one in series:
        room = {"held-out": 2 * share // 3, "training": share // 3}
        for record in (*_held_out(one.runs[0]), *_training(one.runs[0])):
            size = len(record["response"]) + len(record["prompt"])
            if size > room[record["source"]]:
                dropped += 1
                continue
            room[record["source"]] -= size
            cut += record["cut"] > 0
            records.append(record | {"series": one.index})
    return Samples(tuple(records), _note(series, records, dropped, cut))


def _held_out(run: RunData) -> Iterator[Record]:
    """Yield the first responses to a few questions after each of a few evaluations, question by question."""
    steps = _spread(sorted(run.evaluations))
    if not steps:
        return
    questions = _telling(run.evaluations[steps[0]], run.evaluations[steps[-1]])
    found: dict[str, list[Record]] = {name: [] for name in questions}
    for step in steps:
        kept: list[dict[str, Any]] = [
            row for row in run.generations(step, questions) if row.get("sibling", 0) < SIBLINGS
        ]
        for row in sorted(kept, key=lambda row: int(row.get("sibling", 0))):
            name = str(row["question_id"])
            prompt = (row.get("messages") or [{}])[-1].get("content", "")
            found[name].append(_record("held-out", name, step, prompt, row))
    for name in questions:
        yield from found[name]


def _training(run: RunData) -> Iterator[Record]:
    """Yield the first rollouts of each question that a few of the steps have saved."""
    last = run.steps
    steps = set(_spread(list(range(1, last + 1))))
    for row in run.rollouts():
        if row.get("step") in steps and int(row.get("sibling", 0)) < GROUP:
            yield _record("training", str(row.get("question")), int(row["step"]), row.get("prompt", ""), row)


def _record(source: str, question: str, step: int, prompt: object, row: dict[str, Any]) -> Record:
    response, cut = _shortened(str(row.get("response", "")))
    prompt, _ = _shortened(str(prompt))
    return {
        "source": source,
        "question": question,
        "step": step,
        "sibling": row.get("sibling", 0),
        "prompt": prompt,
        "response": response,
        "cut": cut,
        "success": bool(row.get("success")),
        "answer": None if row.get("answer") is None else str(row["answer"])[:200],
        "truncated": row.get("finish_reason") == "length",
    }


def _telling(first: EvaluationResult, last: EvaluationResult) -> list[str]:
    """Return the questions whose pass rate rose most, those where it fell most, and others, in equal parts."""
    shared = [name for name in first.outcomes if name in last.outcomes]
    change = {name: last.outcomes[name].pass_rate - first.outcomes[name].pass_rate for name in shared}
    ordered = sorted(shared, key=lambda name: -change[name])
    third = QUESTIONS // 3
    chosen = dict.fromkeys([*ordered[:third], *reversed(ordered[-third:]), *shared])
    return list(chosen)[:QUESTIONS]


def _spread(steps: Sequence[int]) -> list[int]:
    if len(steps) <= STEPS:
        return list(steps)
    return sorted({steps[round(place * (len(steps) - 1) / (STEPS - 1))] for place in range(STEPS)})


def _shortened(text: str) -> tuple[str, int]:
    """Return a text of at most so many characters, and how many were left out of its middle."""
    cut = len(text) - LONGEST
    if cut <= 0:
        return text, 0
    half = LONGEST // 2
    return f"{text[:half]}\n[... {cut:,} characters left out ...]\n{text[-half:]}", cut


def _note(series: Sequence[Series], records: Sequence[Record], dropped: int, cut: int) -> str:
    """Say what the samples are, and what is not among them."""
    if not records:
        return "There are no samples: no generations.jsonl and no rollouts.jsonl with whole lines."
    whose = "Of the first seed of each run" if any(len(one.runs) > 1 for one in series) else "Of each run"
    parts = [
        f"{whose}: up to {QUESTIONS} held-out questions (a third where the pass rate rose most from the "
        f"first to the last evaluation, a third where it fell most or rose least, then in order), {SIBLINGS} "
        f"responses each after up to {STEPS} evaluations; and saved training rollouts of up to {STEPS} steps, {GROUP} "
        "per question."
    ]
    if dropped:
        parts.append(f"{dropped:,} more did not fit into the page and were left out.")
    if cut:
        parts.append(f"{cut:,} long responses lack their middle.")
    return " ".join([*parts, "The run folder has them all."])
