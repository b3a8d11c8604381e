"""Runs that are killed at random moments, resumed, and compared with one that was never disturbed.

Most kills come from inside (``benchmarks.kill_points``): a seeded draw of phase, step and place within it, so that
every phase is hit in its middle. The rest comes from outside, at a seeded random time. Every fourth resumed run is
killed once more. A run is the same if every file of its folder is, apart from times and names of the machine, and
nothing is left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks import kills_compare as compare
from benchmarks.arguments import Settings, parse, setting
from benchmarks.kill_points import BY_THE_CLOCK, DIARY, KILL, PHASES, last_place
from benchmarks.machine import ROOT
from benchmarks.report import table, write_results
from benchmarks.timing import say

OUTSIDE = "from outside"
HEADER = ("recipe", "killed while", "in step", "the same?", "steps done again", "responses kept", "resumed in, s")
AGAIN = ("sampling", "update", "writing", "export")
"""Where a resumed run is killed: in something that it does in any case, or nearly."""
SECONDS = 900.0
"""Longest that one run may take."""

Place = tuple[str, int, int]


@dataclass(frozen=True, kw_only=True)
class KillSettings(Settings):
    """Which runs are killed."""

    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "kills": 2, "recipes": "paint", "questions": 2, "evaluated": 2}

    threads: int = setting(1, "threads of torch, per process")
    kills: int = setting(25, "runs that are killed")
    steps: int = setting(6, "of each run")
    questions: int = setting(8, "per step")
    evaluated: int = setting(8, "held-out questions of each evaluation")
    recipes: str = setting("paint,sc_sdpo", "embedded recipes, separated by commas")
    phases: str = setting(",".join([*PHASES, OUTSIDE]), "where to kill, in turns, separated by commas")
    overrides: str = setting("", "of every recipe, separated by blanks")


@dataclass(frozen=True)
class Undisturbed:
    """A run that was never killed, and where it could have been."""

    folder: Path
    seconds: float
    ticks: dict[tuple[str, int], int]
    """Places by phase and step."""


@dataclass
class Killed:
    """A run that was killed and resumed."""

    recipe: str
    phase: str
    """What was aimed at."""
    kills: list[str] = field(default_factory=list)
    """Phase and step in which it was, each time."""
    again: list[int] = field(default_factory=list)
    """Steps that were done, and had to be done again."""
    kept: list[int] = field(default_factory=list)
    """Responses of the step that was going on that did not have to be drawn again."""
    seconds: float = 0.0
    """That the last process took, its start included."""
    differences: list[str] = field(default_factory=list)
    free: bool = False
    """Whether the folder's lock can be had afterwards."""

    @property
    def same(self) -> bool:
        """Whether nothing shows that it was killed."""
        return not self.differences and self.free


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, resume, compare; 1 if a run was not the same."""
    settings, run = parse("kills", KillSettings, __doc__, arguments)
    with tempfile.TemporaryDirectory(prefix="selfdistill-kills-") as place:
        results = list(measure(settings, Path(place)))
    same = sum(one.same for one in results)
    print(table(f"{same} of {len(results)} runs are the same to the last bit", HEADER, [row(one) for one in results]))
    found = {"same": same, "runs": [asdict(one) | {"same": one.same} for one in results]}
    write_results(run.output, "kills", asdict(settings) | {"run": run.as_data()}, settings.prepare(), found)
    return 0 if same == len(results) else 1


def measure(settings: KillSettings, place: Path) -> Iterator[Killed]:
    """Yield one result per run that is killed."""
    draw, recipes, phases = random.Random(settings.seed), settings.recipes.split(","), settings.phases.split(",")
    expected = {name: undisturbed(settings, name, place / f"{name}-undisturbed") for name in recipes}
    for number in range(settings.kills):
        name, phase = recipes[number % len(recipes)], phases[number % len(phases)]
        result = Killed(name, phase)
        folder = place / f"{name}-{number}"
        kill(settings, result, expected[name], folder, draw)
        if number % 4 == 3:
            kill(settings, result, expected[name], folder, draw, again=True)
        began = time.perf_counter()
        finish(settings, name, folder)
        result.seconds = time.perf_counter() - began
        result.free = compare.is_free(folder)
        result.differences = compare.differences(folder, expected[name].folder)
        say(f"{number + 1} of {settings.kills}: {name}, {result.kills}: {result.differences or 'the same'}")
        yield result


def undisturbed(settings: KillSettings, name: str, folder: Path) -> Undisturbed:
    """Make the run that the others are compared with."""
    began = time.perf_counter()
    finish(settings, name, folder)
    seconds = time.perf_counter() - began
    rows = json.loads(_diary(folder).with_name(f"{_diary(folder).name}.ticks").read_text(encoding="utf-8"))
    say(f"{name}, undisturbed: {seconds:.1f} s, {sum(count for _, _, count in rows):,} places to kill it at")
    return Undisturbed(folder, seconds, {(phase, step): count for phase, step, count in rows})


def kill(
    settings: KillSettings,
    result: Killed,
    expected: Undisturbed,
    folder: Path,
    draw: random.Random,
    again: bool = False,
) -> None:
    """Start or resume a run and have it killed; one that ends before it could be is no kill."""
    aim: Place | None = None
    if result.phase == OUTSIDE and not again:
        process = begin(settings, result.recipe, folder)
        kill_from_outside(process, folder, expected, draw)
    else:
        phase = draw.choice(AGAIN) if again else result.phase
        aim = somewhere(phase, expected, draw, compare.steps_saved(folder) if again else 0)
        process = begin(settings, result.recipe, folder, aim)
    error = process.communicate(timeout=SECONDS)[1]
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"a run ended with {process.returncode}: {error}")
    place = last_place(_diary(folder)) if aim is None else f"{aim[0]} {aim[1]}"  # it dies nowhere but there
    result.kills.append(place if process.returncode else f"nothing(finished) {settings.steps}")
    result.again.append(compare.steps_done(folder) - compare.steps_saved(folder))
    result.kept.append(compare.responses_kept(folder))


def kill_from_outside(process: subprocess.Popen[str], folder: Path, expected: Undisturbed, draw: random.Random) -> None:
    """Kill a run some time after a random step has begun."""
    rows = (expected.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    step = draw.randrange(len(rows))
    until = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < until:
        words = last_place(_diary(folder)).split()
        if words[0] != "start" and int(words[1]) >= step:
            time.sleep(draw.uniform(0.0, json.loads(rows[step])["seconds/step"]))
            break
        time.sleep(0.005)
    process.kill()


def somewhere(phase: str, expected: Undisturbed, draw: random.Random, first: int = 0) -> Place:
    """Return a random place of a phase, in a random step from the ``first`` on, if there is one."""
    steps = sorted(step for one, step in expected.ticks if one == phase)
    step = draw.choice([one for one in steps if one >= first] or steps[-1:])
    count = 1 if phase in BY_THE_CLOCK else expected.ticks[phase, step]
    return phase, step, draw.randint(1, count)


def finish(settings: KillSettings, name: str, folder: Path) -> None:
    """Run, or go on, to the end."""
    process = begin(settings, name, folder)
    error = process.communicate(timeout=SECONDS)[1]
    if process.returncode:
        raise SystemExit(f"a run ended with {process.returncode}: {error}")


def begin(settings: KillSettings, name: str, folder: Path, aim: Place | None = None) -> subprocess.Popen[str]:
    """Start a process that begins the run of ``folder``, or goes on with it."""
    overrides = [
        f"train.steps={settings.steps}",
        f"train.questions_per_step={settings.questions}",
        "train.save_every=2" if settings.steps > 2 else "train.save_every=1",
        f"train.evaluate_every={max(1, settings.steps // 2)}",
        f"data.eval_limit={settings.evaluated}",
        "evaluation.samples=2",
        f"train.seed={settings.seed}",
        f"model.device={settings.device}",
        f"output.folder={folder}",
        *settings.overrides.split(),
    ]
    recipe = str(ROOT / "src" / "selfdistill" / "recipes" / "embedded" / f"{name}.yaml")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    own = {DIARY: str(_diary(folder)), "OMP_NUM_THREADS": str(settings.threads), "PYTHONPATH": path}
    if aim is not None:
        own[KILL] = json.dumps(aim)
    _diary(folder).unlink(missing_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.kill_points", "train", recipe, *overrides, "--auto-resume"],
        env=os.environ | own,
        cwd=folder.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def row(result: Killed) -> list[str]:
    """Return one line of the table."""
    places = [one.split() for one in result.kills]
    return [
        result.recipe,
        ", then ".join(words[0] for words in places) + (f" ({OUTSIDE})" if result.phase == OUTSIDE else ""),
        ", ".join(words[1] for words in places),
        "yes" if result.same else "NO: " + "; ".join(result.differences or ["the lock is held"]),
        ", ".join(map(str, result.again)),
        ", ".join(map(str, result.kept)),
        f"{result.seconds:.1f}",
    ]


def _diary(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.diary")


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
