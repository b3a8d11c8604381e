"""`selfdistill`'s command line, which notes what it is doing and can kill itself in the middle of it.

    python -m benchmarks.kill_points train RECIPE [key=value ...] [--auto-resume]

In: environment variables. ``SELFDISTILL_DIARY`` is a file whose beginning always says which phase the process is in;
at a regular end ``DIARY.ticks`` says how many places each phase of each step had. ``SELFDISTILL_KILL`` is a JSON list
[phase, step, tick]: there the process sends SIGKILL to itself, so that nothing can be tidied up. With
``SELFDISTILL_SIGNAL`` it is that signal instead, and ``DIARY.sent`` says when it came. The journal is written with
every response, not every half second: otherwise a small run's sampling is over before anything is in it.

Nothing here changes what is computed: functions are wrapped, and the layers' hooks return nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

DIARY, KILL, SIGNAL = "SELFDISTILL_DIARY", "SELFDISTILL_KILL", "SELFDISTILL_SIGNAL"
PHASES = (
    "sampling",
    "verifying",
    "journal",
    "scoring",
    "update",
    "optimizer",
    "records",
    "staging",
    "writing",
    "commit",
    "evaluation",
    "answers",
    "export",
)
"""What a run does, in the order in which it does it first."""
BY_THE_CLOCK = ("verifying", "journal", "answers")
"""How often these are done in a step depends on time: only their first time is sure to come."""
_LINE = 64


class Diary:
    """Counts the places at which a process can be killed, and kills it at one of them."""

    def __init__(self, path: Path, aim: tuple[str, int, int] | None) -> None:
        self._path, self._aim = path, aim
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._counts: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()
        self.phase = "start"
        """Of the main thread."""
        self.step = 0
        """The one that is being taken, counted from 0."""
        self.saved = 0
        """The one whose checkpoint is being written."""

    def tick(self, phase: str, step: int, before: Callable[[], object] = lambda: None) -> None:
        """Note a place; at the one that is aimed at, do ``before`` and die."""
        with self._lock:
            self._counts[phase, step] += 1
            count = self._counts[phase, step]
            row = 0 if threading.current_thread() is threading.main_thread() else 1
            os.pwrite(self._file, f"{phase} {step} {count}".ljust(_LINE - 1).encode() + b"\n", row * _LINE)
            if (phase, step, count) == self._aim:
                self._end(before)

    def _end(self, before: Callable[[], object]) -> None:
        number = signal.Signals[os.environ.get(SIGNAL, "SIGKILL")]
        if number == signal.SIGKILL:
            before()
        else:
            self._path.with_name(f"{self._path.name}.sent").write_text(str(time.monotonic()), encoding="utf-8")
        os.kill(os.getpid(), number)

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Be in a phase for the length of a block."""
        previous, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = previous

    def close(self) -> None:
        """Write how many places there were."""
        counts = [[phase, step, count] for (phase, step), count in sorted(self._counts.items())]
        self._path.with_name(f"{self._path.name}.ticks").write_text(json.dumps(counts), encoding="utf-8")


def last_place(diary: Path) -> str:
    """Return where a process was when it ended: the phase of its main thread, and the last of another thread."""
    lines = diary.read_bytes().replace(b"\0", b" ").decode().splitlines() if diary.exists() else []
    return " | ".join(" ".join(line.split()[:2]) for line in lines if line.strip()) or "start 0"


def wrap(owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace an attribute by what ``around`` makes of it."""
    setattr(owner, name, around(getattr(owner, name)))


def watch_step(diary: Diary) -> None:
    """Note sampling, verifying and the journal."""
    from selfdistill.rollouts import journal, verifying
    from selfdistill.training import loop

    def stepping(step: Any) -> Any:
        def taken(trainer: Any, state: Any) -> Any:
            diary.step = state.step
            return step(trainer, state)

        return taken

    def phased(phase: Any) -> Any:
        @contextmanager
        def inside(clock: Any, name: str, total: int | None) -> Iterator[Any]:
            with phase(clock, name, total) as count, diary.within(name):

                def counted(tokens: int) -> None:
                    if name == "sampling":
                        diary.tick("sampling", diary.step)
                    count(tokens)

                yield counted

        return inside

    def verified(verify: Any) -> Any:
        def verdicts(rollouts: Any, verifier: Any) -> Any:
            if diary.phase != "evaluation":
                diary.tick("verifying", diary.step)
            return verify(rollouts, verifier)

        return verdicts

    def flushed(flush: Any) -> Any:
        def torn(writer: Any) -> None:
            text = "".join(writer._lines).encode()
            if text:
                mode = "wb" if writer._fresh else "ab"
                diary.tick("journal", diary.step, lambda: _write_half(writer._path, mode, text))
            flush(writer)

        return torn

    wrap(loop.Trainer, "step", stepping)
    wrap(loop.Clock, "phase", phased)
    wrap(verifying, "verify", verified)
    wrap(journal._Writer, "flush", flushed)
    journal.FLUSH_SECONDS = 0.0


def _write_half(path: Path, mode: str, content: bytes) -> None:
    """Leave what a kill leaves in the middle of a write."""
    with path.open(mode) as stream:
        stream.write(content[: len(content) // 2 or 1])


def watch_update(diary: Diary) -> None:
    """Note every layer of the teacher's and the student's passes, there and back, and the optimizer's step."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    from selfdistill.teachers.self_teacher import SelfTeacher
    from selfdistill.training import start, update

    def passed(module: Any, inputs: Any, output: Any) -> None:
        if diary.phase not in ("scoring", "student"):
            return
        phase = "scoring" if diary.phase == "scoring" else "update"
        diary.tick(phase, diary.step)
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(states, torch.Tensor) and states.requires_grad:
            states.register_hook(lambda gradient: diary.tick(phase, diary.step))

    def hooked(load: Any) -> Any:
        def loaded(*arguments: Any, **named: Any) -> Any:
            policy = load(*arguments, **named)
            for module in policy.model.modules():
                if isinstance(module, torch.nn.ModuleList):
                    for layer in module:
                        layer.register_forward_hook(passed)
            return policy

        return loaded

    def inside(phase: str) -> Any:
        def around(work: Any) -> Any:
            def done(*arguments: Any, **named: Any) -> Any:
                with diary.within(phase):
                    return work(*arguments, **named)

            return done

        return around

    wrap(start, "load_policy", hooked)
    wrap(SelfTeacher, "score", inside("scoring"))
    wrap(update._Passes, "learn", inside("student"))
    register_optimizer_step_pre_hook(lambda *_: diary.tick("optimizer", diary.step))
    register_optimizer_step_post_hook(lambda *_: diary.tick("optimizer", diary.step))


def watch_files(diary: Diary) -> None:
    """Note the records of a step, the copy of a checkpoint, its files, and how it gets its name."""
    from selfdistill.checkpoints import folder, saver, shards, storage
    from selfdistill.training.run_folder import RunFolder

    class Ticking(dict[str, Any]):
        def items(self) -> Any:
            for item in super().items():
                diary.tick("staging", diary.step)
                yield item

    def staged(copy: Any) -> Any:
        def copied(staging: Any, parts: Mapping[str, Any]) -> Any:
            return dict(copy(staging, Ticking(parts)))

        return copied

    def torn(append: Any) -> Any:
        def appended(own: RunFolder, file: Path, records: Any) -> None:
            lines = list(records)
            text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines).encode()
            diary.tick("records", diary.step, lambda: _write_half(file, "ab", text))
            append(own, file, lines)

        return appended

    def noted(phase: str) -> Any:
        def around(work: Any) -> Any:
            def done(*arguments: Any) -> Any:
                if threading.current_thread() is not threading.main_thread():
                    diary.tick(phase, diary.saved)
                return work(*arguments)

            return done

        return around

    def saving(work: Any) -> Any:
        def done(own: Any, of: Any, *arguments: Any) -> Any:
            diary.saved = of.step - 1
            return work(own, of, *arguments)

        return done

    wrap(shards.Staging, "copy", staged)
    wrap(saver.Saver, "_write", saving)
    wrap(saver.Saver, "_mark", saving)
    wrap(RunFolder, "append", torn)
    wrap(storage.HashedFile, "write", noted("writing"))
    for name in ("_write", "_remove", "sync_folder"):
        wrap(folder, name, noted("commit"))
    wrap(folder.CheckpointFolder, "prune", noted("commit"))


def watch_the_rest(diary: Diary) -> None:
    """Note evaluations, and the final model with the mark of the end."""
    from selfdistill.evaluation import run as evaluating
    from selfdistill.training import run

    def evaluated(evaluate: Any) -> Any:
        def result(*arguments: Any, on_tokens: Any, **named: Any) -> Any:
            def count(tokens: int) -> None:
                diary.tick("evaluation", diary.step)
                on_tokens(tokens)

            with diary.within("evaluation"):
                return evaluate(*arguments, on_tokens=count, **named)

        return result

    def appended(append: Any) -> Any:
        def written(*arguments: Any) -> None:
            diary.tick("answers", diary.step)
            append(*arguments)

        return written

    def exported(save: Any) -> Any:
        def saved(policy: Any, *arguments: Any) -> None:
            diary.tick("export", diary.step)
            for part in (policy.model, policy.tokenizer):
                inner = part.save_pretrained

                def watched(*given: Any, inner: Any = inner, **named: Any) -> Any:
                    diary.tick("export", diary.step)
                    done = inner(*given, **named)
                    diary.tick("export", diary.step)
                    return done

                part.save_pretrained = watched
            save(policy, *arguments)
            diary.tick("export", diary.step)

        return saved

    wrap(run, "evaluate", evaluated)
    wrap(evaluating, "append_generations", appended)
    wrap(run, "save_pretrained", exported)


def main(arguments: list[str]) -> int:
    """Run the command line under watch."""
    aim = os.environ.get(KILL)
    diary = Diary(Path(os.environ[DIARY]), None if aim is None else tuple(json.loads(aim)))
    for watch in (watch_step, watch_update, watch_files, watch_the_rest):
        watch(diary)
    from selfdistill.cli import main as command_line

    code = command_line(arguments)
    with suppress(OSError):
        diary.close()
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
