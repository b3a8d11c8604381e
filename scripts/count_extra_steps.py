"""Count how often wrong answers of the embedded task go one step too far: the mistake that docs/papers.md describes.

In: run folders of embedded recipes. Out: per run, wrong answers to two-term questions, and those with a step too many.
``.venv/bin/python scripts/count_extra_steps.py runs/compare/sdpo-seed0 runs/compare/grpo-seed0``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def count(run: Path) -> tuple[int, int]:
    """Return (wrong answers to two-term questions, those with more steps than operators) of the last evaluation."""
    last = max(run.glob("evaluations/step-*/generations.jsonl"))
    wrong = extra = 0
    for line in last.read_text(encoding="utf-8").splitlines():
        generation = json.loads(line)
        operators = sum(character in "+-" for character in generation["messages"][-1]["content"])
        if operators == 1 and not generation["success"]:
            wrong += 1
            extra += sum("=" in step for step in generation["response"].split("\n")) > operators
    return wrong, extra


if __name__ == "__main__":
    for name in sys.argv[1:]:
        wrong, extra = count(Path(name))
        print(f"{name}: {wrong} wrong answers to two-term questions, {extra} with a step too many")
