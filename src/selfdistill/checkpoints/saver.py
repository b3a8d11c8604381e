"""Writing checkpoints while training goes on, and finding the newest one that can be used.

:meth:`Saver.save` copies the state to CPU memory, which is all that training waits for; files are written, brought to
disk and renamed in one background thread. What the processes tell each other there goes through a group of its own, so
that it cannot be mistaken for what training exchanges. Every method is called by all processes, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from selfdistill.checkpoints import reading
from selfdistill.checkpoints.folder import Best, CheckpointFolder
from selfdistill.checkpoints.manifest import (
    Manifest,
    check_digests,
    check_sizes,
    manifest_of,
    put_back,
    read_manifest,
)
from selfdistill.checkpoints.reading import UNREADABLE, reason
from selfdistill.checkpoints.shards import Shard, Staging
from selfdistill.checkpoints.state import TrainState, restore, shards, targets
from selfdistill.checkpoints.storage import describe, read_shards, write_shards
from selfdistill.errors import TrainingError
from selfdistill.parallel import ALONE, PeerError, World


class Saver:
    """Keeps the checkpoints of a run.

    Making one removes what a killed run left in ``folder``.

    Args:
        folder: of the checkpoints; made when it is needed.
        world: the processes of the run.
        keep: the newest so many stay, and the best.
        asynchronous: False: :meth:`save` returns when the checkpoint is on disk.
        warn: is told, on the main process, what is wrong and does not end the run.
        timeout_seconds: longest that a process waits for the others while a checkpoint is written.
    """

    def __init__(
        self,
        folder: Path,
        world: World = ALONE,
        *,
        keep: int = 2,
        asynchronous: bool = True,
        warn: Callable[[str], None] = lambda text: None,
        timeout_seconds: float = 1800.0,
    ) -> None:
        self._folder, self._world, self._keep, self._asynchronous = CheckpointFolder(folder), world, keep, asynchronous
        self._warn = warn if world.is_main else lambda text: None
        self._background = world if world.size == 1 else replace(world, group=_own_group(timeout_seconds))
        self._staging = Staging()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._jobs: list[Future[None]] = []
        world.main(self._folder.sweep)
        self._best = world.main(self._folder.best)
        self.newest: int | None = None
        """The step that was last saved, or loaded: what is on disk, or on its way there."""

    def save(self, state: TrainState) -> None:
        """Begin to write ``step-N`` for the state as it is now; wait for the checkpoint before, if it is not done.

        Raises:
            TrainingError: the checkpoint before could not be written (this one, if not ``asynchronous``).
        """
        self.wait()
        manifest = manifest_of(state, self._world.size)
        staged: dict[str, Shard] | Exception
        try:
            staged = self._staging.copy(shards(state)) if self._asynchronous else shards(state)
        except Exception as error:  # on this process alone, perhaps: the others learn of it in the background
            staged = error
        self._submit(lambda: self._write(manifest, staged))
        self.newest = state.step

    def keep_best(self, state: TrainState, score: float) -> bool:
        """Keep a checkpoint of ``state`` until there is a better one, if no score so far was as high.

        It is saved unless that has been done at this step. The main process's ``score`` counts.

        Returns:
            Whether it is the best so far.

        Raises:
            TrainingError: as :meth:`save`.
        """
        score = self._world.main(lambda: score)
        if not math.isfinite(score) or (self._best is not None and score <= self._best.score):
            return False
        if self.newest != state.step:
            self.save(state)
        best = self._best = Best(state.step, score)
        self._submit(lambda: self._mark(best))
        return True

    def wait(self) -> None:
        """Wait until everything that was begun is on disk.

        Raises:
            TrainingError: something could not be written; the checkpoints before are still there.
        """
        jobs, self._jobs = self._jobs, []
        errors = [error for error in [job.exception() for job in jobs] if error is not None]
        if errors:
            self.newest = None
            raise errors[0]

    def close(self) -> None:
        """Wait for what was begun, and end the thread. An error that nobody has waited for becomes a warning."""
        try:
            self.wait()
        except TrainingError as error:
            self._warn(str(error))
        finally:
            self._writer.shutdown()

    def steps(self) -> list[int]:
        """Return the steps whose checkpoints are complete, oldest first."""
        return self._folder.steps()

    @property
    def best(self) -> Best | None:
        """The best checkpoint so far."""
        return self._best

    def load_newest(self, state: TrainState) -> int | None:
        """Put the newest checkpoint that can be used into ``state``, on all processes the same.

        One that cannot is named in a warning, and is renamed once an older one has taken its place.

        Returns:
            Its step; None if there is no checkpoint at all.

        Raises:
            TrainingError: there are checkpoints, and none can be used. ``state`` may then be of no more use.
        """
        self.wait()
        unusable: dict[int, str] = {}
        for step in reversed(self._world.main(self._folder.present)):
            wrong = self._load(state, step)
            if wrong is None:
                self._world.main(lambda: self._set_aside(list(unusable)))
                self.newest = None if self._folder.is_old(step) else step
                return step
            unusable[step] = wrong
            self._warn(f"the checkpoint {str(self._folder.of(step))!r} cannot be used: {wrong}")
        if unusable:
            listed = ", ".join(f"{self._folder.of(step).name} ({wrong})" for step, wrong in unusable.items())
            raise TrainingError(
                f"no checkpoint in {str(self._folder.path)!r} can be used: {listed}; restore one from a copy, remove "
                "them all to start from the beginning, or set output.folder to another place"
            )
        return None

    def _load(self, state: TrainState, step: int) -> str | None:
        """Return None, or why the checkpoint cannot be used; what one process finds decides for all."""
        path, world = self._folder.of(step), self._world
        if world.main(lambda: self._folder.is_old(step)):
            if world.size > 1:
                return "version 0.1.0 wrote it, which one process must read: resume once on one, for a step"
            return _attempt(lambda: reading.load_old(state, path))
        manifest, wrong = world.main(lambda: _inspected(path, step))
        if manifest is None:
            return wrong
        read: list[dict[str, Shard]] = []

        def anywhere(work: Callable[[], object]) -> str | None:
            return next((one for one in world.each(lambda: _attempt(work)) if one is not None), None)

        # Each process reads some of the files: together they are as fast as the file system is.
        wrong = anywhere(lambda: check_digests(path, manifest, world.rank, world.size))
        wrong = wrong or anywhere(lambda: read.append(_read(path, state)))
        if wrong is not None:
            return wrong
        restore(state, read[0])
        put_back(manifest, state)
        return None

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            with suppress(OSError):  # only a matter of order
                place = self._folder.set_aside(step)
                self._warn(f"{self._folder.of(step).name} is now {place.name}: remove it when it is of no more use")
        self._best = self._folder.best()

    def _submit(self, job: Callable[[], None]) -> None:
        self._jobs.append(self._writer.submit(job))
        if not self._asynchronous:
            self.wait()

    def _write(self, manifest: Manifest, staged: dict[str, Shard] | Exception) -> None:
        """Write a checkpoint; all processes succeed, or all raise."""
        world, step = self._background, manifest.step

        def prepare() -> None:
            if isinstance(staged, Exception):
                raise staged
            if world.is_main:
                self._folder.begin(step)

        def finish(files: dict[str, Any]) -> None:
            self._folder.commit(replace(manifest, files=files))
            self._folder.prune(self._keep)

        try:
            world.each(prepare)
            assert not isinstance(staged, Exception)
            files = write_shards(self._folder.partial(step), staged, world)
            world.main(lambda: finish(files))
        except PeerError as error:
            raise PeerError(f"the checkpoint {str(self._folder.of(step))!r} is not written: {error}") from None
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            raise TrainingError(
                f"the checkpoint {str(self._folder.of(step))!r} cannot be written ({reason(error)}); make room, then "
                "go on with --resume from the checkpoint before, if any"
            ) from None
        finally:
            if world.is_main:
                self._folder.abandon(step)

    def _mark(self, best: Best) -> None:
        """Note the best checkpoint, and remove the one that was, if it is not among the newest."""

        def mark() -> None:
            if best.step in self._folder.steps():  # otherwise saving it has failed, and that has been said
                self._folder.mark_best(best)
                self._folder.prune(self._keep)

        try:
            self._background.main(mark)
        except OSError as error:
            raise TrainingError(
                f"the best checkpoint cannot be noted in {str(self._folder.path)!r} ({reason(error)}); make room, then "
                "go on with --resume"
            ) from None


def _own_group(timeout_seconds: float) -> Any:
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))


def _inspected(path: Path, step: int) -> tuple[Manifest | None, str | None]:
    """Return what ``state.json`` says, or what is wrong as far as that shows without reading everything."""
    try:
        manifest = read_manifest(path)
        if manifest.step != step:
            raise ValueError(f"it was made after {manifest.step} steps, not after the {step} that its name says")
        check_sizes(path, manifest)
    except FileNotFoundError as error:
        return None, f"it has no {Path(error.filename or '').name}"
    except UNREADABLE as error:
        return None, reason(error)
    return manifest, None


def _read(path: Path, state: TrainState) -> dict[str, Shard]:
    metadata, described = describe(path)
    parts = targets(state, described)
    read_shards(path, metadata, parts)
    return parts


def _attempt(work: Callable[[], object]) -> str | None:
    """Do ``work`` and return what was wrong, if it is something about the files."""
    try:
        work()
    except UNREADABLE as error:
        return reason(error)
    return None
