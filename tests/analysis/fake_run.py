"""Run folders made of simple numbers, as a training would write them; no model is needed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfdistill.evaluation.generations import Generation, append_generations
from selfdistill.evaluation.result import summarise
from selfdistill.training.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes" / "embedded"
GROUP = 4
QUESTIONS = 6
SAMPLES = 3


def make(
    folder: Path,
    *,
    recipe: str = "sc_sdpo",
    steps: int = 12,
    seed: int = 0,
    evaluate_every: int = 6,
    finished: bool = True,
    overrides: Iterable[str] = (),
    extra: Mapping[int, Mapping[str, Any]] | None = None,
    without: Iterable[str] = (),
    response: str = "1+1=2",
) -> Path:
    """Write a run folder.

    Args:
        folder: the run's.
        recipe: an embedded one.
        steps: taken so far.
        seed: the training's.
        evaluate_every: also evaluated at step 0; 0: never.
        finished: whether there is a result.json.
        overrides: settings of the recipe.
        extra: by step, metrics that replace or join the others.
        without: metrics that are not logged.
        response: what the model writes.
    """
    folder.mkdir(parents=True)
    own = [f"train.seed={seed}", f"output.folder={json.dumps(str(folder))}", *overrides]
    (folder / "recipe.yaml").write_text(load_recipe(RECIPES / f"{recipe}.yaml", own).to_yaml(), encoding="utf-8")
    environment = {"python": "3.11", "platform": "Linux", "packages": {"torch": "2.13.0"}, "git": None}
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    rows = [step_metrics(step, seed) | dict((extra or {}).get(step, {})) for step in range(1, steps + 1)]
    rows = [{name: value for name, value in row.items() if name not in without} for row in rows]
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(
        folder / "rollouts.jsonl", [rollout(step, k, response) for step in range(1, steps + 1) for k in range(GROUP)]
    )
    if evaluate_every:
        for step in range(0, steps + 1, evaluate_every):
            evaluation(folder, step, seed, response)
    if finished:
        (folder / "result.json").write_text(json.dumps({"finished": True, "step": steps}), encoding="utf-8")
    return folder


def step_metrics(step: int, seed: int = 0) -> dict[str, Any]:
    """Return what a step logs; all of it can be worked out by hand."""
    right = min(GROUP, step // 4)
    histogram = [0] * (GROUP + 1)
    histogram[right] = 8
    return {
        "step": step,
        "rollout_tokens": 100 * step,
        "rollouts": 32,
        "response_length": 20.0 + step + seed,
        "truncated_share": 0.1,
        "unparseable_share": 0.0,
        "leak_rate": 0.01 * step,
        "pass_rate": right / GROUP,
        "pass_rate_histogram": histogram,
        "informative_share": float(0 < right < GROUP),
        "weight_sum": 8.0,
        "weight_max": 1.5,
        "weighted_share": 0.5,
        "reprompted_share": 0.75,
        "divergence": 0.5 / step,
        "student_entropy": 1.0 / step,
        "teacher_entropy": 0.5 / step,
        "agreement": 0.9,
        "clip_fraction": 0.02,
        "captured_mass": 0.99,
        "sampler_mismatch": 1e-4,
        "sampler_mismatch_max": 1e-2,
        "loss": 1.0 / step,
        "grad_norm": 2.0 / step + seed,
        "seconds/sampling": 2.0,
        "seconds/verifying": 0.5,
        "seconds/update": 1.5,
        "seconds/verifying_hidden": 0.1,
        "tokens_per_second/sampling": 1000.0,
        "tokens_per_second/update": 500.0,
        "seconds/step": 4.0,
    }


def rollout(step: int, sibling: int, response: str) -> dict[str, Any]:
    """Return a line of rollouts.jsonl."""
    return {
        "step": step,
        "question": f"train:{step}",
        "sibling": sibling,
        "prompt": f"What is {step}+1?",
        "response": response,
        "finish_reason": "stop",
        "success": sibling == 0,
        "answer": "2",
    }


def evaluation(folder: Path, step: int, seed: int = 0, response: str = "1+1=2", questions: int = QUESTIONS) -> None:
    """Write an evaluation in which the share of right responses rises with the steps."""
    place = folder / "evaluations" / f"step-{step:06d}"
    place.mkdir(parents=True)
    evaluate(place, step, seed, response, questions)


def evaluate(place: Path, step: int, seed: int = 0, response: str = "1+1=2", questions: int = QUESTIONS) -> None:
    """Write generations and result into a folder."""
    generations = [
        Generation(
            question_id=f"held-out:{question}",
            sibling=sibling,
            messages=({"role": "user", "content": f"What is {question}+1?"},),
            response=response,
            tokens=5,
            finish_reason="stop",
            answer="2",
            reward=0.0,
            success=(question + sibling) % 6 < 1 + step // 3 + seed % 2,
            seed=0,
            settings={},
        )
        for question in range(questions)
        for sibling in range(SAMPLES)
    ]
    generations = [replace(one, reward=float(one.success)) for one in generations]
    append_generations(place / "generations.jsonl", generations)
    (place / "result.json").write_text(json.dumps(summarise(generations).to_json()), encoding="utf-8")


def warn(folder: Path, step: int, name: str = "leak_rate") -> None:
    """Add a warning."""
    row = {
        "step": step,
        "name": name,
        "measure": "leak_rate",
        "value": 0.08,
        "threshold": 0.05,
        "text": "8% of rollouts mention a reference that they cannot see.",
        "remedy": "mask more: method.context.hidden_wrong=0.5",
    }
    with (folder / "warnings.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def teach(folder: Path, step: int, student: float = 0.4, teacher: float = 0.7) -> None:
    """Write a teacher.json."""
    sides = {"student": student, "teacher": teacher, "gap": teacher - student}
    spread = {name: {"mean": mean, "low": mean - 0.05, "high": mean + 0.05} for name, mean in sides.items()}
    place = folder / "evaluations" / f"step-{step:06d}" / "teacher.json"
    place.write_text(json.dumps({"questions": 6, "samples": 3, **spread}), encoding="utf-8")


def diverge(folder: Path, step: int = 12) -> None:
    """Write divergences of 32 rollouts and histograms of their tokens."""
    draws = random.Random(0)
    names = ("reverse_kl", "jsd", "log_ratio", "contrast")
    rollouts = [
        {
            "question": f"q{question}",
            "sibling": sibling,
            "pass_rate": question / 8,
            "success": sibling < question,
            "tokens": 20,
            **{name: question / 8 + 0.1 * sibling for name in names},
        }
        for question in range(0, 9, 2)
        for sibling in range(8)
    ]
    edges = [round(-1 + 0.1 * place, 3) for place in range(31)]
    histograms = {
        name: {
            "edges": edges,
            "correct": [draws.randrange(3, 20) + (40 if place < 12 else 0) for place in range(30)],
            "wrong": [draws.randrange(3, 20) + (30 if place > 9 else 0) for place in range(30)],
        }
        for name in names
    }
    (folder / "analysis").mkdir()
    data = {"step": step, "weights": "final", "questions": 5, "support": 100, "temperature": 1.0}
    found = {**data, "rollouts": rollouts, "histograms": histograms}
    (folder / "analysis" / "divergences.json").write_text(json.dumps(found), encoding="utf-8")


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def study(folder: Path, rows: Mapping[str, Iterable[str]], *, seeds: int = 1) -> Path:
    """Write a study of PAINT rows with its table; row ``i`` has 50 + i percent."""
    table = [{"run": "base", "seeds": 1, "avg": interval(0.4), "against_base": None, "published": {}}]
    (folder / "base").mkdir(parents=True)
    evaluate(folder / "base", 0)
    (folder / "base" / "recipe.yaml").write_text(load_recipe(RECIPES / "paint.yaml").to_yaml(), encoding="utf-8")
    for place, (name, overrides) in enumerate(rows.items()):
        for seed in range(seeds):
            make(
                folder / f"{name}-seed{seed}",
                recipe="paint",
                seed=seed,
                overrides=[f"name={name}", "train.evaluate_first=false", *overrides],
            )
        mean = 0.5 + 0.01 * place
        table.append(
            {
                "run": name,
                "seeds": seeds,
                "avg": interval(mean),
                "against_base": {"avg": interval(mean - 0.4), "maj": interval(0.0)},
                "published": {"Avg@12": 57.2},
            }
        )
    (folder / "table.json").write_text(json.dumps(table), encoding="utf-8")
    return folder


def interval(mean: float, width: float = 0.03) -> dict[str, float]:
    """Return an interval around a mean."""
    return {"mean": mean, "low": mean - width, "high": mean + width}
