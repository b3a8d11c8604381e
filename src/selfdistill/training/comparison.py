"""Comparing recipes: every recipe with every seed as a run of its own, then one table with intervals.

Finished runs are kept, interrupted ones go on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfdistill.errors import RecipeError
from selfdistill.evaluation.bootstrap import Interval
from selfdistill.evaluation.compare import Comparison, Metric, compare_results, pooled
from selfdistill.evaluation.result import EvaluationResult, percent
from selfdistill.training.jobs import Job, run_jobs
from selfdistill.training.progress import Progress
from selfdistill.training.recipe import Recipe, describe_changes, differing_settings, load_recipe
from selfdistill.training.run_folder import replace_text, write_json

SHARED = ("model.path", "model.revision", "model.dtype", "data.", "evaluation.")
"""What recipes must have in common so that their results can be compared."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table."""

    label: str
    results: tuple[EvaluationResult, ...]
    """One per seed."""
    against_base: Comparison | None
    steps: int
    seconds_per_step: float | None
    """Mean over steps and seeds, on this machine with what else ran on it; None for the base."""
    folders: tuple[Path, ...]

    @property
    def level(self) -> float:
        """Of the intervals, as the recipe's evaluation section says."""
        return float(self.results[0].settings.get("level", 0.95))

    def interval(self, metric: Metric) -> Interval:
        """Return the mean of a metric over the seeds, with an interval over problems and seeds."""
        return pooled(self.results, metric, level=self.level)


def compare(
    recipe_paths: Sequence[str], overrides: Sequence[str], *, seeds: int, jobs: int, out: Path, progress: Progress
) -> list[Line]:
    """Run every recipe with seeds 0 .. ``seeds`` - 1, ``jobs`` at a time, below ``out``; write table.md and table.json.

    Raises:
        SelfDistillError: a recipe is wrong, recipes evaluate on different questions, ``out`` holds runs of other
            settings, or a run failed (its log is named; the other runs are kept).
    """
    _check_overrides(overrides)
    recipes = {path: load_recipe(path, overrides) for path in recipe_paths}
    _check_comparable(recipes)
    base = _base_job(recipe_paths[0], recipes[recipe_paths[0]], overrides, out)
    matrix = {
        path: [_run_job(path, own, overrides, seed, out) for seed in range(seeds)] for path, own in recipes.items()
    }
    every_job = [base, *(job for own in matrix.values() for job in own)]
    for job in every_job:
        job.check_folder(SHARED)
    run_jobs(every_job, jobs, progress)
    lines = _lines(base, [(recipes[path], own) for path, own in matrix.items()])
    replace_text(out / "table.md", table(lines))
    write_json(out / "table.json", [as_json(line) for line in lines])
    return lines


def table(lines: Sequence[Line]) -> str:
    """Return the comparison as a Markdown table."""
    first = lines[0].results[0]
    most = max(first.pass_at)
    scores = [f"avg@{first.samples}, %", f"maj@{first.samples}, %", f"pass@{most}, %", "avg against base, points"]
    columns = ["run", *scores, "seeds", "steps", "seconds per step", "tokens per response"]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    rows += [f"| {' | '.join(_cells(line, most))} |" for line in lines]
    one_seed = any(len(line.results) == 1 for line in lines[1:])
    over = (
        "problems only: with one seed they lack the variation between trainings" if one_seed else "problems and seeds"
    )
    level = f"{100 * lines[0].level:.0f}%"
    rows.append(f"\n{first.problems} held-out problems; brackets are {level} bootstrap intervals over {over}.")
    return "\n".join(rows) + "\n"


def as_json(line: Line) -> dict[str, Any]:
    """Return a line without its per-problem outcomes, which stay in the run folders."""
    return {
        "run": line.label,
        "steps": line.steps,
        "seconds_per_step": line.seconds_per_step,
        "seeds": len(line.results),
        "level": line.level,
        "avg": asdict(line.interval("avg")),
        "maj": asdict(line.interval("maj")),
        "per_seed_avg": [result.avg.mean for result in line.results],
        "against_base": line.against_base.to_json() if line.against_base else None,
        "folders": [str(folder) for folder in line.folders],
    }


def _lines(base: Job, runs: Sequence[tuple[Recipe, list[Job]]]) -> list[Line]:
    base_result = base.result()
    lines = [Line("base", (base_result,), None, 0, None, (base.folder,))]
    for recipe, own in runs:
        results = tuple(job.result() for job in own)
        gain = compare_results(base_result, results, level=recipe.evaluation.level)
        pace = sum(job.seconds_per_step() for job in own) / len(own)
        lines.append(Line(recipe.name, results, gain, recipe.train.steps, pace, tuple(job.folder for job in own)))
    return lines


def _cells(line: Line, most: int) -> list[str]:
    gain = line.against_base.avg if line.against_base else None
    length = sum(result.mean_length for result in line.results) / len(line.results)
    reached = sum(result.pass_at[most].mean for result in line.results) / len(line.results)
    return [
        line.label,
        percent(line.interval("avg")),
        percent(line.interval("maj")),
        f"{100 * reached:.1f}",
        f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]" if gain else "",
        str(len(line.results)) if gain else "",
        str(line.steps),
        f"{line.seconds_per_step:.2f}" if line.seconds_per_step is not None else "",
        f"{length:.1f}",
    ]


def _base_job(path: str, recipe: Recipe, overrides: Sequence[str], out: Path) -> Job:
    return Job("base", out / "base", path, tuple(overrides), recipe, steps=0)


def _run_job(path: str, recipe: Recipe, overrides: Sequence[str], seed: int, out: Path) -> Job:
    folder = out / f"{recipe.name}-seed{seed}"
    own = (*overrides, f"train.seed={seed}", "train.evaluate_first=false", f"output.folder={json.dumps(str(folder))}")
    return Job(f"{recipe.name} seed {seed}", folder, path, own, load_recipe(path, own), recipe.train.steps)


def _check_overrides(overrides: Sequence[str]) -> None:
    """Refuse settings that the comparison makes itself, and would overrule."""
    own = {"train.seed": "--seeds", "output.folder": "--out", "train.evaluate_first": "the base evaluation"}
    for override in overrides:
        key = override.partition("=")[0]
        if key in own:
            raise RecipeError(f"{override!r} has no effect in a comparison, which sets {key} itself ({own[key]})")


def _check_comparable(recipes: dict[str, Recipe]) -> None:
    names: dict[str, str] = {}
    for path, recipe in recipes.items():
        if recipe.name in names:
            raise RecipeError(
                f"{names[recipe.name]} and {path} are both named {recipe.name!r}; give one another `name:`"
            )
        names[recipe.name] = path
    first_path, first = next(iter(recipes.items()))
    for path, recipe in recipes.items():
        differing = {name: both for name, both in differing_settings(first, recipe).items() if name.startswith(SHARED)}
        if differing:
            raise RecipeError(
                f"{first_path} and {path} cannot be compared, because they differ in {describe_changes(differing)}; "
                "make those settings equal"
            )
