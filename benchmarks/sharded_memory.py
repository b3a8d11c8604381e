"""Memory per process of full fine-tuning on one, two and four processes: after set-up, and at the peak of a step.

Measured is what a process has for itself alone (USS: private pages in /proc/self/smaps_rollup), less what it had before
it loaded the model; and what the tensors that stay are exactly, from the parts of them that a process holds. Beside
both: what the arithmetic says. Responses are short, so that weights decide.
"""

from __future__ import annotations

import gc
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.arguments import Settings, parse, setting
from benchmarks.process_group import Answer, ProcessGroup, is_worker, progress, serve
from benchmarks.random_models import open_recipe, write_model
from benchmarks.report import table, write_results

HEADER = (
    "teacher",
    "processes",
    "reshard",
    "tensors that stay, MiB",
    "by arithmetic",
    "after a step, MiB",
    "peak in a step, MiB",
    "by arithmetic",
    "peak to arithmetic",
)
CAPTION = (
    "Full fine-tuning, float32, largest of the processes. With reshard=step the peak holds all weights and all "
    "gradients whole, whatever the number of processes; with layer, one layer's and the embedding's"
)
FLOAT = 4
SECONDS_BETWEEN = 0.01


@dataclass(frozen=True, kw_only=True)
class ShardedMemorySettings(Settings):
    """What is trained, and how it is divided."""

    QUICK: ClassVar[dict[str, Any]] = {"model": "tiny", "processes": "2", "teachers": "initial", "steps": 1}

    threads: int = setting(1, "threads of torch, per process")
    model: str = setting("100M", "of benchmarks.random_models")
    processes: str = setting("1,2,4", "numbers of processes")
    teachers: str = setting("initial,moving_average", "kinds of teacher")
    tokens: int = setting(8, "of a response")
    questions: int = setting(4, "of a step")
    steps: int = setting(2, "the last one is measured")


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs to know of a model."""

    parameters: int
    layer: int
    """Parameters of one layer."""
    rest: int
    """Parameters that are in no layer."""


def expected(shape: Shape, processes: int, reshard: str) -> dict[str, float]:
    """Return the bytes per process that the arithmetic says: what stays, and the most of a step without activations.

    Float32 weights, two moments and a teacher, each 4 N / P; at the peak gradients, 4 N / P as well, and with several
    processes what stands whole of weights and gradients.
    """
    stays = 4 * FLOAT * shape.parameters / processes  # weights, two moments, teacher
    gradients = FLOAT * shape.parameters / processes
    if processes == 1:
        return {"stays": stays, "peak": stays + gradients}
    standing = shape.parameters if reshard == "step" else shape.rest + shape.layer
    return {"stays": stays, "peak": stays + gradients + 2 * FLOAT * standing}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON file."""
    settings, run = parse("sharded_memory", ShardedMemorySettings, __doc__, arguments)
    found: list[Answer] = []
    with tempfile.TemporaryDirectory() as place:
        path = write_model(settings.model, Path(place), settings.seed)
        for teacher, processes, reshard in _cases(settings):
            case: Answer = {"teacher": teacher, "processes": processes, "reshard": reshard}
            folder = Path(place) / "-".join(map(str, case.values()))
            folder.mkdir()
            given = asdict(settings) | {"path": path, "folder": str(folder), **case}
            # A group for each: memory that was given back once is not found again.
            with ProcessGroup("benchmarks.sharded_memory", processes, settings.threads, given, folder) as group:
                answers = group.ask({})
            progress(group, f"{teacher}, {reshard}: peak {max(one['peak'] for one in answers) / 2**20:.0f} MiB")
            shape = Shape(*(answers[0][name] for name in ("parameters", "layer", "rest")))
            found.append({**case, "ranks": answers, "expected": expected(shape, processes, reshard)})
    print(table(CAPTION, HEADER, [_row(one) for one in found]))
    arguments_used = asdict(settings) | {"run": run.as_data()}
    write_results(run.output, "sharded_memory", arguments_used, settings.prepare(), {"cases": found})
    return 0


def _cases(settings: ShardedMemorySettings) -> Iterator[tuple[str, int, str]]:
    for teacher in settings.teachers.split(","):
        for processes in map(int, settings.processes.split(",")):
            for reshard in ("step", "layer") if processes > 1 else ("step",):
                yield teacher, processes, reshard


def _row(case: Mapping[str, Any]) -> list[str]:
    def mib(value: float) -> str:
        return f"{value / 2**20:.0f}"

    ranks, arithmetic = case["ranks"], case["expected"]
    largest = {name: max(one[name] for one in ranks) for name in ("after", "peak")}
    stays = max(sum(one["exact"][name] for name in ("weights", "moments", "teacher")) for one in ranks)
    return [
        case["teacher"].replace("_", " "),
        str(case["processes"]),
        case["reshard"] if case["processes"] > 1 else "",
        mib(stays),
        mib(arithmetic["stays"]),
        mib(largest["after"]),
        mib(largest["peak"]),
        mib(arithmetic["peak"]),
        f"{largest['peak'] / arithmetic['peak']:.2f}x",
    ]


def worker(given: Answer, world: Any) -> Callable[[Answer], Answer]:
    """Return what sets up, takes the steps and says what they needed, as one of the processes."""
    from transformers import Qwen3ForCausalLM  # noqa: F401  # imported before the memory of imports is taken

    from selfdistill.training.progress import NullProgress
    from selfdistill.training.start import start

    def handle(request: Answer) -> Answer:
        del request  # the settings say it all
        overrides = [
            f"method.teacher={{kind: {given['teacher']}}}",
            f"parallel.reshard={given['reshard']}",
            f"train.questions_per_step={given['questions']}",
            f"rollouts.sampling.max_new_tokens={given['tokens']}",
        ]
        recipe = open_recipe("paint", given["path"], Path(given["folder"]) / "run", overrides)
        before = own_bytes()
        run = start(recipe, resume=False, progress=NullProgress(), world=world)
        gc.collect()
        set_up = own_bytes() - before
        exact: dict[str, int] = {}
        run.state.optimizer.register_step_pre_hook(lambda *_: exact.update(gradients=_gradients(run)))
        for _ in range(given["steps"]):
            with peak() as most:
                run.trainer.step(run.state)
        gc.collect()
        exact |= _exact(run)
        after = own_bytes() - before
        return {"set_up": set_up, "after": after, "peak": most[0] - before, "exact": exact, **_shape(given["path"])}

    return handle


def own_bytes() -> int:
    """Return the bytes that this process has for itself alone (USS)."""
    total = 0
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) * 1024
    return total


@contextmanager
def peak() -> Iterator[list[int]]:
    """Look at :func:`own_bytes` all the time inside the block; yield a list whose one element is the most so far."""
    most, ended = [own_bytes()], threading.Event()

    def look() -> None:
        while not ended.wait(SECONDS_BETWEEN):
            most[0] = max(most[0], own_bytes())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def _gradients(run: Any) -> int:
    gradients = (one.grad for one in run.trainer.policy.model.parameters())
    return sum(_bytes(one) for one in gradients if one is not None)


def _exact(run: Any) -> dict[str, int]:
    state = run.state
    moments = [value for held in state.optimizer.state.values() for value in held.values() if value.numel() > 1]
    return {
        "weights": sum(map(_bytes, run.trainer.policy.model.parameters())),
        "moments": sum(map(_bytes, moments)),
        "teacher": sum(map(_bytes, state.teacher.weights.values())) if state.teacher else 0,
    }


def _bytes(tensor: Any) -> int:
    from selfdistill.teachers.weights import local

    own = local(tensor)
    return int(own.numel() * own.element_size())


def _shape(path: str) -> dict[str, int]:
    """Return the numbers of parameters of the whole model, of a layer, and of all that is in no layer."""
    from selfdistill.models.loading import ModelConfig
    from selfdistill.planning.shape import read_shape

    shape = read_shape(ModelConfig(path=path))
    layers = shape.layers * shape.layer_parameters
    return {"parameters": shape.parameters, "layer": shape.layer_parameters, "rest": shape.parameters - layers}


if __name__ == "__main__":
    if is_worker():
        serve(worker)
    else:
        raise SystemExit(main())
