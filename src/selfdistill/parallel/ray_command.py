"""``selfdistill train --ray``: a run on the workers of a Ray cluster, shown and ended like one of this process.

In: the recipe and how many workers. Out: the run folder, which has to be on storage that all nodes share. Ray Train
starts the workers, and starts them again when one fails; what they go on from are the run folder's own checkpoints.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from selfdistill.errors import SelfDistillError, TrainingError
from selfdistill.parallel.failures import Failure, first_cause, one_line
from selfdistill.parallel.ray_cluster import RayOptions, cluster, require_ray
from selfdistill.parallel.ray_worker import Relay, Replay, relative_paths, train_worker
from selfdistill.signals import SIGNALS

if TYPE_CHECKING:
    from selfdistill.training.progress import Progress
    from selfdistill.training.recipe import Recipe
    from selfdistill.training.run import RunResult

POLL_SECONDS = 0.25
GLOO_MARGIN_SECONDS = 300
"""How much longer torch waits than the run does: the run's own time-out comes first, and says more."""


def train_on_ray(arguments: argparse.Namespace) -> int:
    """``selfdistill train RECIPE --ray``: run, and print the result as ``selfdistill train`` does."""
    from selfdistill.commands import print_result
    from selfdistill.training.progress import make_progress
    from selfdistill.training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    options = RayOptions(
        arguments.workers,
        arguments.address,
        arguments.gpus_per_worker,
        arguments.cpus_per_worker,
        arguments.max_failures,
        arguments.placement,
        arguments.servers,
    )
    with make_progress() as progress:
        result = train_with_ray(
            recipe, options, resume=arguments.resume, auto_resume=arguments.auto_resume, progress=progress
        )
    print_result(recipe, result, _again(arguments))
    return 0


def train_with_ray(
    recipe: Recipe, options: RayOptions, *, resume: bool = False, auto_resume: bool = False, progress: Progress
) -> RunResult:
    """Run a recipe on a cluster. To be called in the main thread, which listens to SIGINT and SIGTERM.

    Args:
        recipe: what to run.
        options: on what.
        resume: go on with the run in the folder.
        auto_resume: go on if there is one.
        progress: where to show it.

    Raises:
        SelfDistillError: what a worker has said, or that Ray is not there.
    """
    require_ray()
    import ray

    folder = Path.cwd()
    with ExitStack() as stack:
        stack.enter_context(cluster(options))
        relay = ray.remote(num_cpus=0)(Relay).remote()
        settings: dict[str, Any] = {
            "recipe": recipe.to_yaml(),
            "overrides": [f"output.folder={_quoted(folder / recipe.folder)}"],
            "folder": str(folder),
            "relative": relative_paths(recipe, folder),
            "resume": resume,
            "automatic": auto_resume,
            "own_servers": options.servers > 0,
            "server_program": options.server_program,
            "secrets": _secrets(recipe),
            "relay": relay,
        }
        if options.servers:
            from selfdistill.parallel.ray_servers import Servers, with_urls

            servers = Servers(
                settings,
                options.servers,
                gpus=_gpus_per_server(recipe, options),
                logs=folder / recipe.folder / "servers",
                say=progress.message,
            )
            stack.enter_context(servers)
            settings["overrides"] = with_urls(settings["overrides"], servers.urls)
        fit = ray.remote(num_cpus=0)(Fit).remote()
        error = _follow(fit.run.remote(_fit_options(recipe, options, folder), settings), relay, options, progress)
        result, failures = ray.get(relay.outcome.remote())
    if error is not None or result is None:
        raise _explained(error, [Failure(**failure) for failure in failures])
    return result  # type: ignore[no-any-return]


class Fit:
    """An actor that drives Ray Train: the user's process then only follows, also from outside of the cluster."""

    def run(self, options: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[int, str] | str | None:
        """Run Ray Train; return what went wrong: by worker, or as a whole."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        logging.getLogger("ray.train").setLevel(logging.ERROR)
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=dict(settings),
            torch_config=TorchConfig(backend=options["backend"], timeout_s=options["timeout"]),
            scaling_config=ScalingConfig(**options["scaling"]),
            run_config=RunConfig(
                name="ray",
                storage_path=options["storage"],
                failure_config=FailureConfig(max_failures=options["max_failures"]),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            workers = getattr(error, "worker_failures", None)
            if workers:
                return {rank: f"{type(one).__name__}: {one}" for rank, one in workers.items()}
            return f"{type(error).__name__}: {error}"
        return None


def _follow(fit: Any, relay: Any, options: RayOptions, progress: Progress) -> dict[int, str] | str | None:
    """Show what the workers show until Ray Train has ended, and pass the user's wish to stop on to them."""
    import ray

    replay, signals = Replay(progress), _Signals()
    said = False
    with signals:
        while True:
            done, _ = ray.wait([fit], timeout=POLL_SECONDS)
            events, attempts, hopeless = ray.get(relay.take.remote())
            for event in events:
                if event[0] == "restart":
                    progress.message(_restart_line(event, options))
            replay.show(events)
            if done:
                try:
                    return ray.get(fit)  # type: ignore[no-any-return]
                except ray.exceptions.RayError as error:
                    return f"{type(error).__name__}: {error}"
            if hopeless:  # Ray Train would try again
                return None
            if signals.count > 1 or (signals.count and not attempts):  # nothing has begun that could be kept
                raise KeyboardInterrupt
            if signals.count and not said:
                said = True
                relay.stop.remote()
                progress.message("stopping with a checkpoint; once more to end at once")


class _Signals:
    """Counts SIGINT and SIGTERM inside its block."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def _fit_options(recipe: Recipe, options: RayOptions, folder: Path) -> dict[str, Any]:
    gpus = _gpus_per_worker(recipe, options)
    return {
        "backend": "cpu:gloo,cuda:nccl" if gpus else "gloo",
        "timeout": int(recipe.parallel.timeout_seconds) + GLOO_MARGIN_SECONDS,
        "storage": str(folder / recipe.folder),
        "max_failures": options.max_failures,
        "scaling": {
            "num_workers": options.workers,
            "use_gpu": gpus > 0,
            "resources_per_worker": {"CPU": options.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
            "placement_strategy": options.placement,
        },
    }


def _gpus_per_worker(recipe: Recipe, options: RayOptions) -> float:
    import ray

    if options.gpus_per_worker is not None:
        return options.gpus_per_worker
    wanted = recipe.model.device not in ("cpu",)
    return 1.0 if wanted and ray.cluster_resources().get("GPU", 0) else 0.0


def _gpus_per_server(recipe: Recipe, options: RayOptions) -> float:
    from selfdistill.rollouts.vllm_arguments import devices_per_engine

    if options.server_program is not None or not _gpus_per_worker(recipe, options):
        return 0.0
    return float(devices_per_engine(recipe.rollouts.vllm.options))


def _secrets(recipe: Recipe) -> dict[str, str]:
    """Return the API key of the servers, which the nodes' own environments do not hold."""
    name = recipe.rollouts.server.api_key_variable
    return {name: os.environ[name]} if name and name in os.environ else {}


def _restart_line(event: tuple[Any, ...], options: RayOptions) -> str:
    _, failures, number = event
    cause = first_cause(Failure(**failure) for failure in failures)
    why = f"rank {cause.rank}: {cause.text.splitlines()[-1]}" if cause and cause.kind != "peer" else "a worker is gone"
    return f"{why}; started again from the last checkpoint (failure {number} of at most {options.max_failures})"


def _explained(error: dict[int, str] | str | None, failures: list[Failure]) -> SelfDistillError:
    """Return one error for what the workers, or Ray in their place, have said."""
    cause = first_cause(failures)
    if cause is not None and cause.kind == "bug":
        return TrainingError(f"rank {cause.rank} failed: {cause.text.splitlines()[-1]}\n{cause.text}")
    if cause is not None and cause.kind != "peer":
        return TrainingError(cause.text)
    if isinstance(error, dict):
        told = {failure.rank for failure in failures}
        gone = {rank: text for rank, text in error.items() if rank not in told} or error
        rank, text = next(iter(sorted(gone.items())))
        return TrainingError(
            f"the worker of rank {rank} is gone ({one_line(text)[:160]}): killed, or out of memory; what is done is "
            "kept, go on with --resume, or let --max-failures K start it again"
        )
    return TrainingError(f"Ray could not run the workers: {one_line(str(error))[:400]}")


def _again(arguments: argparse.Namespace) -> str:
    words = ["selfdistill", "train", arguments.recipe, *arguments.overrides, "--resume", "--ray"]
    defaults = RayOptions()
    for name in ("workers", "address", "gpus_per_worker", "cpus_per_worker", "max_failures", "placement", "servers"):
        value = getattr(arguments, name)
        if value != getattr(defaults, name):
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def _quoted(path: Path) -> str:
    """Return a path as YAML: a name may look like a number, or hold a colon."""
    import json

    return json.dumps(str(path), ensure_ascii=False)
