"""The journal: responses are written as they finish, so that a fault, an interruption or a kill loses none of them.

In: the completions of a sampler, as they stream by. Out: ``pending-NAME.jsonl`` in the run folder, one file per round
of sampling (a step's batch): a first line that says what it is of, then one line per completion, keyed by its seed.
A round that is sampled again yields what is in its file and asks the sampler for the rest; or for all of it, if that
sampler would draw the rest with other last bits (:func:`selfdistill.rollouts.sampler.draws_whole_rounds`). What does
not fit (another step, other settings, a torn last line, anything malformed) is ignored. The file goes when the round's
work is done.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from selfdistill.errors import TrainingError
from selfdistill.lines import drop_torn_line
from selfdistill.rollouts.sampler import Completion, Place, Sampler, Sampling, draws_whole_rounds

FLUSH_SECONDS = 0.5
"""Between two writes: what a kill can cost."""
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Journals:
    """The journals of a run, of which each process writes its own and reads all."""

    folder: Path
    rank: int = 0

    def of(self, name: str) -> Path:
        """Return the file in which this process keeps the round of sampling called ``name``."""
        return self.folder / (f"pending-{name}.rank-{self.rank:05d}.jsonl" if self.rank else f"pending-{name}.jsonl")

    def all_of(self, name: str) -> list[Path]:
        """Return the files of all processes, also of those that the run had before it was resumed on fewer."""
        return sorted(self.folder.glob(f"pending-{name}.*jsonl"))

    def forget(self, name: str) -> None:
        """Remove the files of a round whose work is done; for the main process."""
        if self.rank == 0:
            for path in self.all_of(name):
                path.unlink(missing_ok=True)

    def of_step(self, step: int) -> Path:
        """Return the file of a step's batch; ``step`` steps are done before it."""
        return self.of(f"{step:06d}")

    def keep_only_step(self, step: int) -> None:
        """Remove the batches of all other steps: a run that goes on at ``step`` will draw those from other weights."""
        if self.rank == 0:
            for path in set(self.folder.glob("pending-[0-9]*.jsonl")) - set(self.all_of(f"{step:06d}")):
                path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Kept:
    """A completion, and the weights that it was drawn from."""

    completion: Completion
    weights: int
    """Steps that had been done."""


@dataclass(slots=True)
class Journaled(Sampler):
    """Draws from ``sampler`` what is not in the journal at ``path``, and writes it there.

    Args:
        sampler: draws.
        path: the journal.
        step: steps that are done before the batch; names the round together with the sampling settings.
        weights: steps that the sampler's weights have taken; completions of older ones than the step before do not fit.
    """

    sampler: Sampler
    path: Path
    step: int
    weights: int
    oldest: int | None = None
    """Of the weights that what has been yielded was drawn from."""
    clock: Callable[[], float] = time.monotonic
    others: Sequence[Path] = ()
    """Journals of the same round that other processes have written: what is in them is not drawn again."""

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        logprobs: bool = True,
        on_tokens: Callable[[int], None] | None = None,
    ) -> Generator[tuple[Place, Completion], None, None]:
        """Yield one completion per seed; see :meth:`selfdistill.rollouts.sampler.Sampler.stream`.

        Raises:
            TrainingError: the journal cannot be written.
        """
        header = _header(self.step, sampling, max(map(len, seeds), default=0))
        fits = range(max(0, self.step - 1), self.step + 1)
        mine = read_journal(self.path, header, fits)
        kept = {seed: one for path in self.others for seed, one in read_journal(path, header, fits).items()} | mine
        if draws_whole_rounds(self.sampler) and any(seed not in kept for own in seeds for seed in own):
            mine, kept = {}, {}
        lacking: list[tuple[int, list[int]]] = []
        for index, own in enumerate(seeds):
            for sibling, seed in enumerate(own):
                if seed in kept:
                    self._note(kept[seed].weights)
                    yield (index, sibling), kept[seed].completion
            missing = [sibling for sibling, seed in enumerate(own) if seed not in kept]
            if missing:
                lacking.append((index, missing))
        if not lacking:
            return
        writer = _Writer(self.path, header, self.clock, fresh=not mine)

        def count(tokens: int) -> None:
            writer.flush_in_time()
            if on_tokens is not None:
                on_tokens(tokens)

        wanted_prompts = [prompts[index] for index, _ in lacking]
        wanted_seeds = [[seeds[index][sibling] for sibling in missing] for index, missing in lacking]
        try:
            for (row, column), done in self.sampler.stream(
                wanted_prompts, wanted_seeds, sampling, logprobs=logprobs, on_tokens=count
            ):
                writer.add(wanted_seeds[row][column], done, self.weights)
                index, missing = lacking[row]
                self._note(self.weights)
                yield (index, missing[column]), done
        finally:
            writer.flush()

    def _note(self, weights: int) -> None:
        self.oldest = weights if self.oldest is None else min(self.oldest, weights)


def read_journal(path: Path, header: Mapping[str, Any], weights: Sequence[int]) -> dict[int, Kept]:
    """Return what the journal holds of the round that ``header`` describes, by seed.

    Args:
        path: the journal; one that is not there, or is another round's, holds nothing.
        header: what the first line has to say.
        weights: those that completions may have been drawn from.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was cut off while it was written
    except OSError:
        return {}
    if not lines or _parsed(lines[0]) != header:
        return {}
    kept: dict[int, Kept] = {}
    for line in lines[1:]:
        row = _parsed(line)
        completion = _completion(row, header["sampling"]["max_new_tokens"])
        if row is None or completion is None or not _is_count(row.get("seed")) or row.get("weights") not in weights:
            continue
        kept[row["seed"]] = Kept(completion, row["weights"])
    return kept


class _Writer:
    """Appends lines, several at a time: at most every :data:`FLUSH_SECONDS`, and at the end."""

    def __init__(self, path: Path, header: Mapping[str, Any], clock: Callable[[], float], *, fresh: bool) -> None:
        self._path, self._clock, self._fresh = path, clock, fresh
        self._lines = [_line(header)] if fresh else []
        self._flushed = clock()

    def add(self, seed: int, completion: Completion, weights: int) -> None:
        """Take in one completion."""
        self._lines.append(
            _line(
                {
                    "seed": seed,
                    "weights": weights,
                    "finish_reason": completion.finish_reason,
                    "ids": completion.ids,
                    "logprobs": completion.logprobs,
                }
            )
        )
        self.flush_in_time()

    def flush_in_time(self) -> None:
        """Write if the last time is long enough ago."""
        if self._lines and self._clock() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has been taken in."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            if not self._fresh:
                drop_torn_line(self._path)
            with self._path.open("wb" if self._fresh else "ab") as file:
                file.write("".join(lines).encode())
        except OSError as error:
            raise TrainingError(
                f"the finished responses cannot be written to {str(self._path)!r} ({error.strerror or error}); "
                "make room, then go on with --resume"
            ) from None
        self._fresh, self._flushed = False, self._clock()


def _header(step: int, sampling: Sampling, siblings: int) -> dict[str, Any]:
    settings = TypeAdapter(Sampling).dump_python(sampling, mode="json")
    return {"format": _FORMAT, "step": step, "group_size": siblings, "sampling": settings}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _completion(row: Mapping[str, Any] | None, longest: int) -> Completion | None:
    """Return the completion of a line, or None if the line does not describe one."""
    if row is None:
        return None
    ids, logprobs, reason = row.get("ids"), row.get("logprobs"), row.get("finish_reason")
    if reason not in ("stop", "length") or not isinstance(ids, list) or not 0 < len(ids) <= longest:
        return None
    if not all(_is_count(one) and one < 2**31 for one in ids):
        return None
    if logprobs is not None:
        if not isinstance(logprobs, list) or len(logprobs) != len(ids):
            return None
        if not all(isinstance(one, float) and math.isfinite(one) for one in logprobs):
            return None
        logprobs = tuple(logprobs)
    return Completion(tuple(ids), logprobs, reason)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
