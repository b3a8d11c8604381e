"""Trackers: a step's metrics and the evaluations, shown in TensorBoard, Weights & Biases or trackio as the run goes on.

In: the dictionaries that metrics.jsonl gets, under the same names, and evaluation results. Out: scalars and histograms
in the trackers that ``output.trackers`` names. They are for looking on, and metrics.jsonl has everything: a tracker
that fails (no network, a full disk) is dropped with one warning, and the run goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from selfdistill.errors import RecipeError
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.training.config import TrackerName

PROJECT = "selfdistill"
"""What wandb and trackio file a run under, unless WANDB_PROJECT says otherwise (wandb)."""
FINISH_SECONDS = 60.0
"""How long wandb may go on uploading at the end; without a network it would wait for ever."""
STEP = "step"

Histogram = tuple[list[float], list[float]]
"""Counts, and the edges between which they were counted: one more."""


class Tracker(Protocol):
    """Where the metrics of one run are shown. Any method may raise; the caller then drops the tracker."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Show what is a number or a list of counts; ``step`` steps are done. A step may be shown several times."""
        ...

    def run_id(self) -> str | None:
        """Return what lets a resumed run go on in the same place; None: nothing is needed."""
        ...

    def close(self) -> None:
        """Write or send what has not been yet."""
        ...


class TensorBoard:
    """Event files in ``folder/tensorboard``.

    Args:
        folder: the run folder.
        config: the resolved recipe, shown as text.
        step: steps done; what an earlier start has logged of later ones is replaced.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._writer.add_text("recipe", f"```json\n{json.dumps(config, indent=2, default=str)}\n```", step)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """See :meth:`Tracker.log`."""
        for name, value in scalars(metrics).items():
            self._writer.add_scalar(name, value, step)
        for name, (counts, edges) in histograms(metrics).items():
            middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
            weighed = list(zip(counts, middles, strict=True))
            self._writer.add_histogram_raw(
                name,
                min=edges[0],
                max=edges[-1],
                num=sum(counts),
                sum=sum(count * middle for count, middle in weighed),
                sum_squares=sum(count * middle**2 for count, middle in weighed),
                bucket_limits=edges[1:],
                bucket_counts=counts,
                global_step=step,
            )

    def run_id(self) -> str | None:
        """See :meth:`Tracker.run_id`."""
        return None

    def close(self) -> None:
        """See :meth:`Tracker.close`."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; its files are in ``folder/wandb``. WANDB_MODE and the other variables are wandb's own.

    Args:
        folder: the run folder.
        name: of the run.
        config: the resolved recipe.
        run_id: of the run to go on with.
    """

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], run_id: str | None) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)  # else wandb writes to the system's temporary folder
        # The console is the progress display's: wandb would take it over to keep a copy.
        settings = wandb.Settings(console="off", finish_timeout=FINISH_SECONDS)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._wandb: Any = wandb
        self._run = wandb.init(
            project=project,
            name=name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            settings=settings,
        )
        # wandb drops what is not later than its own step: a resumed run's first steps, and evaluations made again.
        self._run.define_metric("*", step_metric=STEP)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """See :meth:`Tracker.log`."""
        counted = {name: self._wandb.Histogram(np_histogram=own) for name, own in histograms(metrics).items()}
        self._run.log({**scalars(metrics), **counted, STEP: step})

    def run_id(self) -> str | None:
        """See :meth:`Tracker.run_id`."""
        return str(self._run.id)

    def close(self) -> None:
        """See :meth:`Tracker.close`."""
        self._run.finish()


class Trackio:
    """A run of trackio, on this machine unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says otherwise.

    Args:
        name: of the run; trackio tells runs apart by name, so a new one gets an ending of its own.
        config: the resolved recipe.
        run_id: name of the run to go on with.
    """

    def __init__(self, name: str, config: Mapping[str, Any], run_id: str | None) -> None:
        import trackio

        self._trackio: Any = trackio
        self._name = run_id or f"{name}-{secrets.token_hex(3)}"
        with _no_chatter():
            self._run = trackio.init(PROJECT, name=self._name, config=dict(config), resume="allow", embed=False)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """See :meth:`Tracker.log`."""
        counted = {name: self._trackio.Histogram(np_histogram=own) for name, own in histograms(metrics).items()}
        self._run.log({**scalars(metrics), **counted}, step=step)

    def run_id(self) -> str | None:
        """See :meth:`Tracker.run_id`."""
        return self._name

    def close(self) -> None:
        """See :meth:`Tracker.close`."""
        with _no_chatter():
            self._trackio.finish()  # the run's own method would be called, and print, once more at the very end


class Trackers:
    """All trackers of a run. No method raises: a tracker that fails is dropped, with one warning.

    Args:
        starts: how to start each, by name.
        run_ids: those that a checkpoint has kept.
        warn: shows a line that stays (:meth:`~selfdistill.training.progress.Progress.message`).
    """

    def __init__(
        self, starts: Mapping[str, Callable[[], Tracker]], run_ids: Mapping[str, str], warn: Callable[[str], None]
    ) -> None:
        self._warn = warn
        self._run_ids = dict(run_ids)
        self._live: dict[str, Tracker] = {}
        for name, start in starts.items():
            with self._dropping(name):
                self._live[name] = start()
                found = self._live[name].run_id()
                if found is not None:
                    self._run_ids[name] = found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Show the metrics of the step that made it ``step`` steps."""
        for name, tracker in list(self._live.items()):
            with self._dropping(name):
                tracker.log(metrics, step)

    def log_evaluation(self, result: EvaluationResult, step: int) -> None:
        """Show the evaluation of the weights after ``step`` steps, under ``evaluation/``."""
        self.log(evaluation_metrics(result), step)

    def run_ids(self) -> dict[str, str]:
        """Return what belongs into a checkpoint; those of trackers that were dropped, or are not asked for, stay."""
        return dict(self._run_ids)

    def close(self) -> None:
        """Have every tracker write or send what it has; a second call does nothing."""
        for name, tracker in list(self._live.items()):
            with self._dropping(name):
                tracker.close()
        self._live.clear()

    @contextlib.contextmanager
    def _dropping(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is: nobody's training is to end for a picture of it
            self._live.pop(name, None)
            said = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
            self._warn(
                f"the tracker {name} has failed and is left out from now on ({said[:200]}); "
                "metrics.jsonl goes on to have everything"
            )


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Refuse a tracker whose package is not installed. Loads nothing: call it first.

    Raises:
        RecipeError: naming the setting, the value and the remedy.
    """
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # without origin: a folder that is named like it, such as ./wandb
            raise RecipeError(
                f"output.trackers has {name!r}, but the package {name} is not installed; "
                f"`pip install selfdistill[trackers]`, or take {name!r} out of output.trackers"
            )


def start_trackers(
    names: Sequence[TrackerName],
    folder: Path,
    run_name: str,
    config: Mapping[str, Any],
    run_ids: Mapping[str, str],
    *,
    step: int = 0,
    warn: Callable[[str], None],
) -> Trackers:
    """Start the trackers of a run, or go on with those of a resumed one.

    Args:
        names: ``output.trackers``, which :func:`check_trackers` has accepted.
        folder: the run folder.
        run_name: how the run is called there.
        config: the resolved recipe, as plain data.
        run_ids: :meth:`Trackers.run_ids` of the checkpoint; empty for a new run.
        step: steps done.
        warn: shows a line that stays.
    """
    starts: dict[TrackerName, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder, config, step),
        "wandb": lambda: Wandb(folder, run_name, config, run_ids.get("wandb")),
        "trackio": lambda: Trackio(run_name, config, run_ids.get("trackio")),
    }
    return Trackers({name: starts[name] for name in names}, run_ids, warn)


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers; the step itself, which every tracker has as its axis, is none of them."""
    return {name: float(value) for name, value in metrics.items() if name != STEP and _is_finite(value)}


def histograms(metrics: Mapping[str, Any]) -> dict[str, Histogram]:
    """Return the lists of counts, each with a bucket of width 1 around its index: 0, 1, ... successes in a group."""
    return {
        name: ([float(count) for count in value], [index - 0.5 for index in range(len(value) + 1)])
        for name, value in metrics.items()
        if isinstance(value, list | tuple) and value and all(map(_is_finite, value))
    }


def evaluation_metrics(result: EvaluationResult) -> dict[str, float | None]:
    """Return an evaluation as metrics; shares in [0, 1], as in ``result.json``, whose intervals they leave out."""
    return {
        f"evaluation/avg@{result.samples}": result.avg.mean,
        f"evaluation/maj@{result.samples}": result.maj.mean,
        **{f"evaluation/pass@{count}": interval.mean for count, interval in result.pass_at.items()},
        "evaluation/truncated": result.truncated,
        "evaluation/unparseable": result.unparseable,
        "evaluation/mean_length": result.mean_length,
        "evaluation/in_form": result.in_form,
        "evaluation/well_formed": result.well_formed,
        "evaluation/passed": result.passed,
    }


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _no_chatter() -> contextlib.redirect_stdout[Any]:
    """Have what trackio prints go to standard error, as all that is not a command's result."""
    return contextlib.redirect_stdout(sys.stderr)
