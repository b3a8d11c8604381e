"""What the cost model is fitted to: steps of several sizes on one and two processes, exchanges, and writing weights."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.process_group import Answer, ProcessGroup, is_worker, progress, serve
from benchmarks.random_models import open_recipe, write_model

EXCHANGED = (2**10, 2**14, 2**18, 2**22, 2**25)
"""Bytes per process."""
WRITTEN = (2**20, 2**22, 2**24, 2**26, 2**27)
"""Bytes of weights."""


def measured_steps(
    models: Sequence[str], shares: Sequence[tuple[int, int]], grid: Sequence[tuple[int, int]], repeats: int, seed: int
) -> tuple[list[Answer], list[Answer]]:
    """Return the fastest seconds per model, (processes, threads) and (questions, tokens); and those of exchanges."""
    steps: list[Answer] = []
    exchanges: list[Answer] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = {name: write_model(name, folder, seed) for name in models}
        for processes, threads in shares:
            given = {"paths": paths, "folder": str(folder)}
            with ProcessGroup("benchmarks.cost_measure", processes, threads, given, folder) as group:
                for model in models:
                    for number, (questions, tokens) in enumerate(grid):
                        request = {"model": model, "questions": questions, "tokens": tokens}
                        request |= {"steps": repeats + (number == 0), "skipped": int(number == 0)}
                        answers = group.ask(request)
                        steps.append({"model": model, "processes": processes, **_slowest(answers)})
                        progress(group, f"{model}, {questions} x {tokens}: {steps[-1]['sampling']:.2f} s of sampling")
                if processes > 1:
                    exchanges += group.ask({"exchange": EXCHANGED})[0]["exchanges"]
    return steps, exchanges


def measured_writes(sizes: Sequence[int] = WRITTEN, repeats: int = 5) -> list[Answer]:
    """Return the fastest seconds in which weights are written to a folder (until they are on the disk) and read."""
    from safetensors.torch import load_file, save_file

    found: list[Answer] = []
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "weights.safetensors"
        for size in sizes:
            weights = {"w": torch.randn(size // 4)}
            seconds = []
            for _ in range(repeats):
                started = time.perf_counter()
                save_file(weights, path)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                load_file(path)["w"].clone()
                seconds.append(time.perf_counter() - started)
            found.append({"bytes": size, "seconds": min(seconds)})
    return found


def _slowest(answers: Sequence[Answer]) -> Answer:
    """Return the first process's entry with the seconds of the slowest, for each phase the fastest step."""
    phases = ("sampling", "scoring", "update")
    steps = zip(*(one["seconds"] for one in answers), strict=True)
    slowest = [{name: max(own[name] for own in step) for name in phases} for step in steps]
    size: Answer = answers[0]["size"]
    return size | {name: min(step[name] for step in slowest) for name in phases}


def worker(given: Answer, world: Any) -> Callable[[Answer], Answer]:
    """Return what takes a step of the size that is asked for, as one of the processes."""
    from selfdistill.training.progress import NullProgress
    from selfdistill.training.start import start
    from selfdistill.training.update import _Passes

    scoring = [0.0]
    teach = _Passes.teach

    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        teach(*arguments)
        scoring[0] += time.perf_counter() - started

    setattr(_Passes, "teach", timed)  # noqa: B010  # of the class, for this process
    runs: dict[str, Any] = {}

    def handle(request: Answer) -> Answer:
        if "exchange" in request:
            return {"exchanges": _exchanges(request["exchange"], world)}
        name = request["model"]
        if name not in runs:
            recipe = open_recipe("paint", given["paths"][name], Path(given["folder"]) / f"{name}-{world.size}", [])
            runs[name] = start(recipe, resume=False, progress=NullProgress(), world=world)
        run = runs[name]
        run.trainer = _resized(run.trainer, request["questions"], request["tokens"])
        found, size = [], {}
        for number in range(request["steps"]):
            scoring[0] = 0.0
            metrics, plan = run.trainer.step(run.state)
            if number >= request["skipped"]:
                update = metrics["seconds/update"] - scoring[0]
                found.append({"sampling": metrics["seconds/sampling"], "scoring": scoring[0], "update": update})
                size = _size(run, plan)
        return {"seconds": found, "size": size | {"questions": request["questions"], "tokens": request["tokens"]}}

    return handle


def _resized(trainer: Any, questions: int, tokens: int) -> Any:
    recipe = trainer.recipe
    sampling = replace(recipe.rollouts.sampling, max_new_tokens=tokens)
    changed = {
        "train": recipe.train.model_copy(update={"questions_per_step": questions}),
        "rollouts": recipe.rollouts.model_copy(update={"sampling": sampling}),
    }
    return replace(trainer, recipe=recipe.model_copy(update=changed))


def _size(run: Any, plan: Any) -> Answer:
    """Return the numbers that the cost of a step is computed from."""
    rollouts = [row.rollout for row in plan.rows]
    model = run.trainer.policy.model
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "longest": max(len(one.response_ids) for one in rollouts),
        "sampled": sum(len(one.prompt_ids) + len(one.response_ids) for one in rollouts),
        "student": sum(len(row.rollout.prompt_ids) + len(row.rollout.response_ids) for row in plan.rows),
        "teacher": sum(len(row.prompt.token_ids) + len(row.rollout.response_ids) for row in plan.rows if row.prompt),
    }


def _exchanges(sizes: Sequence[int], world: Any) -> list[Answer]:
    """Return the median seconds of an all-gather of so many bytes from each process."""
    found: list[Answer] = []
    for size in sizes:
        mine = torch.zeros(size, dtype=torch.uint8)
        everybody = [torch.empty_like(mine) for _ in range(world.size)]
        seconds = []
        for _ in range(9):
            world.gather(None)
            started = time.perf_counter()
            torch.distributed.all_gather(everybody, mine)
            seconds.append(time.perf_counter() - started)
        found.append({"bytes": size, "seconds": sorted(seconds)[len(seconds) // 2]})
    return found


if __name__ == "__main__" and is_worker():
    serve(worker)
