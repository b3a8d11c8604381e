"""`--nproc` and torchrun: all processes end together, one message says why, and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selfdistill import cli
from selfdistill.errors import ModelError, TrainingError
from selfdistill.parallel import failures
from selfdistill.parallel.failures import Failure, PeerError, describe, first_cause

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "embedded" / "grpo.yaml"
REDUCED = (
    "train.questions_per_step=2",
    "data.train_limit=8",
    "data.eval_limit=2",
    "rollouts.sampling.max_new_tokens=16",
    "evaluation.samples=1",
    "evaluation.sampling.max_new_tokens=16",
    "train.evaluate_first=false",
    "output.save_model=false",
)
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
} | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}

LAUNCHER = """
import sys
from selfdistill.parallel import launch
launch.PROGRAM = (sys.executable, sys.argv[1])
sys.exit(launch.launch(["train"], int(sys.argv[2]), restarts=int(sys.argv[3]), end_seconds=float(sys.argv[4])))
"""
WORKER = """
import os, signal, sys, time
from pathlib import Path
from selfdistill.errors import ModelError, RecipeError, TrainingError
from selfdistill.parallel.failures import reported
from selfdistill.parallel.launch import end_with_launcher
from selfdistill.parallel.failures import PeerError
end_with_launcher()
rank, here = int(os.environ["RANK"]), Path(os.environ["HERE"])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
(here / f"pid-{rank}").write_text(str(os.getpid()))
# None may fail before all have begun: one that is ended while it starts has nothing to show.
until(lambda: all((here / f"pid-{other}").exists() for other in range(int(os.environ["WORLD_SIZE"]))))
def work():
    print("printed by", rank, flush=True)
"""


class Launched:
    """A launcher with workers that do what ``body`` says, in a process of its own."""

    def __init__(self, folder: Path, body: str, processes: int = 2, restarts: int = 0, end_seconds: float = 10) -> None:
        self.folder = folder
        script = folder / "worker.py"
        lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
        script.write_text(f"{WORKER}{lines}    return 0\nsys.exit(reported(work))\n")
        words = [sys.executable, "-c", LAUNCHER, str(script), str(processes), str(restarts), str(end_seconds)]
        self.process = subprocess.Popen(
            words,
            env=ENVIRONMENT | {"HERE": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def result(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def pid(self, rank: int) -> int:
        file = self.folder / f"pid-{rank}"
        wait_until(lambda: file.exists() and bool(file.read_text()))
        return int(file.read_text())


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    made: list[Launched] = []

    def make(body: str, **settings: float) -> Launched:
        made.append(Launched(tmp_path, body, **settings))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


def test_only_the_first_process_prints_and_none_is_left(launched) -> None:
    run = launched("pass", processes=3)
    assert run.result() == (0, "printed by 0\n", "")
    assert not any(alive(run.pid(rank)) for rank in range(3))


def test_the_processes_are_told_who_they_are_and_share_the_cores(launched, tmp_path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SELFDISTILL_STORE", "GLOO_SOCKET_IFNAME")
    run = launched(f"(here / f'env-{{rank}}').write_text('|'.join(os.environ[name] for name in {names}))")
    assert run.result()[0] == 0
    first, second = ((tmp_path / f"env-{rank}").read_text().split("|") for rank in range(2))
    assert first[:4] == ["0", "0", "2", "2"] and second[:4] == ["1", "1", "2", "2"]
    assert first[4] == second[4] and first[5] == "lo"
    assert not Path(first[4]).parent.exists()


def test_a_failure_ends_the_others_and_is_told_once_by_the_one_that_failed(launched) -> None:
    run = launched(
        """
if rank == 1:
    raise TrainingError("train.seed is 7; set another\\none")
until(lambda: stopped)
raise PeerError("process 1 of 2 failed: train.seed is 7")
"""
    )
    code, out, err = run.result()
    assert (code, out) == (1, "printed by 0\n")
    assert err == "selfdistill: [rank 1] train.seed is 7; set another one\n"


def test_one_that_does_not_end_is_killed_after_a_while(launched) -> None:
    run = launched(
        "if rank == 1:\n    raise TrainingError('over')\nwhile True:\n    time.sleep(1)", processes=3, end_seconds=1
    )
    code, _, err = run.result()
    assert (code, err) == (1, "selfdistill: [rank 1] over\n")
    assert not any(alive(run.pid(rank)) for rank in (0, 2))


def test_a_killed_process_is_named_with_its_signal(launched) -> None:
    run = launched("until(lambda: stopped)\nraise RuntimeError('gloo: Connection closed by peer [127.0.0.1]')")
    pid = run.pid(1)
    run.pid(0)
    os.kill(pid, signal.SIGKILL)
    code, _, err = run.result()
    assert (code, err) == (137, "selfdistill: [rank 1] it was killed by signal 9 (SIGKILL)\n")


def test_a_bug_keeps_its_traceback_once_with_the_rank(launched) -> None:
    code, _, err = launched("if rank == 1:\n    {}['missing']\nuntil(lambda: stopped)").result()
    assert code == 1 and err.count("Traceback") == 1
    assert err.endswith("selfdistill: [rank 1] KeyError: 'missing'\n")


def test_a_process_that_ends_without_a_word_is_shown_with_what_it_printed(launched) -> None:
    code, _, err = launched(
        "if rank == 1:\n    print('no kernel', file=sys.stderr, flush=True)\n    os._exit(7)\nuntil(lambda: stopped)"
    ).result()
    assert code == 7
    assert err == "selfdistill: [rank 1] it ended with exit code 7\nselfdistill: [rank 1] no kernel\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_and_is_waited_for(launched, tmp_path, number) -> None:
    run = launched(
        "signal.signal(signal.SIGINT, lambda *_: stopped.append(1))\n(here / f'up-{rank}').touch()\n"
        "until(lambda: stopped)\ntime.sleep(0.5)\n(here / f'saved-{rank}').touch()"
    )
    wait_until(lambda: all((tmp_path / f"up-{rank}").exists() for rank in range(2)))
    run.process.send_signal(number)
    code, _, err = run.result()
    assert (code, err) == (0, "")
    assert all((tmp_path / f"saved-{rank}").exists() for rank in range(2))


def test_the_processes_end_when_the_launcher_is_killed(launched) -> None:
    run = launched("while True:\n    time.sleep(1)")
    pids = [run.pid(rank) for rank in range(2)]
    run.process.kill()
    wait_until(lambda: not any(map(alive, pids)), 10)


def test_all_are_started_again_and_go_on_when_that_is_asked_for(launched, tmp_path) -> None:
    run = launched(
        "with open(here / f'attempts-{rank}', 'a') as file:\n    file.write(' '.join(sys.argv[1:]) + chr(10))\n"
        "if rank == 1 and not (here / 'failed').exists():\n"
        "    until((here / 'attempts-0').exists)\n    (here / 'failed').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\nuntil(lambda: stopped, 1)",
        restarts=2,
    )
    code, _, err = run.result()
    assert code == 0
    assert err.splitlines() == [
        "selfdistill: [rank 1] it was killed by signal 9 (SIGKILL)",
        "selfdistill: starting all 2 processes again from the last checkpoint (restart 1 of 2)",
    ]
    assert (tmp_path / "attempts-0").read_text() == "train\ntrain --auto-resume\n"


def test_what_is_wrong_with_the_recipe_is_not_tried_again(launched) -> None:
    code, _, err = launched("raise RecipeError('train.steps is 0')", restarts=3).result()
    assert code == 1 and err in [f"selfdistill: [rank {rank}] train.steps is 0\n" for rank in range(2)]


def test_one_that_is_ended_after_it_has_said_why_keeps_its_code(launched) -> None:
    # Both fail; the second has said so first, and the end of the other makes us end it before it can end itself.
    run = launched(
        "from selfdistill.parallel.failures import describe, tell\nerror = RecipeError('train.steps is 0')\n"
        "if rank == 1:\n    signal.signal(signal.SIGTERM, signal.SIG_DFL)\n    tell(describe(error, rank))\n"
        "    (here / 'told').touch()\n    time.sleep(60)\n"
        "until((here / 'told').exists)\nraise error"
    )
    code, _, err = run.result()
    assert (code, err) == (1, "selfdistill: [rank 1] train.steps is 0\n")


def test_the_cause_is_told_from_its_consequences() -> None:
    peer = describe(PeerError("process 1 failed"), 0)
    lost = describe(RuntimeError("[gloo/x] Connection reset by peer"), 2)
    own, bug = describe(TrainingError("own"), 1), describe(KeyError("x"), 3)
    wrong = describe(ModelError("no model"), 4)
    assert [one.kind for one in (peer, lost, own, bug, wrong)] == ["peer", "peer", "run", "bug", "input"]
    assert first_cause([peer, lost, bug, own]) is own
    assert first_cause([own, wrong]) is wrong and first_cause([]) is None
    late = Failure(0, "run", "late", own.at + 1)
    assert first_cause([late, own]) is own


def test_one_process_alone_fails_as_before(capsys) -> None:
    assert cli.main(["train", "no-such-recipe.yaml"]) == 1
    assert "[rank" not in capsys.readouterr().err


def test_without_a_file_for_it_only_the_first_process_tells_what_others_have_told(capsys) -> None:
    for rank in range(2):
        failures.tell(describe(PeerError("process 2 of 3 failed: x"), rank), {})
    assert capsys.readouterr().err == "selfdistill: [rank 0] process 2 of 3 failed: x\n"


def test_a_launcher_does_not_import_what_only_the_processes_need() -> None:
    script = (
        "import sys; from selfdistill import cli; from selfdistill.parallel import launch;"
        "launch.PROGRAM = (sys.executable, '-c', 'pass'); code = cli.main(sys.argv[1:]);"
        "print(code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    words = [sys.executable, "-c", script, "train", str(RECIPE), "--nproc", "2"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "0 False False\n"


def test_two_launchers_at_a_time_are_refused(monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["train", str(RECIPE), "--nproc", "2"]) == 1
    assert "leave out --nproc" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--restarts", "1"], ["--workers", "2"], ["--servers", "1"], ["--address", "auto"]])
def test_an_option_of_a_launcher_that_is_not_used_is_refused(capsys, words) -> None:
    assert cli.main(["train", str(RECIPE), *words]) == 1
    assert f"{words[0]} is {words[1]}, but it is for --" in capsys.readouterr().err


def train(words: list[str], environment: dict[str, str], folder: Path, *, torchrun: tuple[str, ...] = ()):
    """Run `selfdistill train` in ``folder``, by torchrun if it is given words."""
    start = ["-m", "torch.distributed.run", *torchrun] if torchrun else []
    command = [sys.executable, *start, "-m", "selfdistill", "train", *words]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


ELASTIC = ("--standalone", "--nproc_per_node=2", "--monitor-interval=0.1")


def test_two_processes_train_one_run_and_one_of_them_speaks(
    tmp_path, run_words, quiet_environment, logged_steps
) -> None:
    done = train([*run_words("run"), "--nproc", "2"], quiet_environment, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run folder: run\n"
    assert [line.split()[1] for line in done.stderr.splitlines() if line.startswith("step ")] == ["1", "2"]
    assert logged_steps(tmp_path / "run") == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["nproc", "torchrun"])
def test_a_run_that_loses_a_process_completes_by_itself_and_has_every_step_once(
    tmp_path, run_words, quiet_environment, logged_steps, launcher
) -> None:
    words, by = run_words("run", reward="deadly", steps=6), ELASTIC if launcher == "torchrun" else ()
    words, by = ([*words], (*by, "--max-restarts=1")) if by else ([*words, "--nproc", "2", "--restarts", "1"], by)
    done = train(words, quiet_environment, tmp_path, torchrun=by)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    assert logged_steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert done.stdout == "run folder: run\n"
    assert "Traceback" not in done.stderr
    assert "resuming after step 2 of 6" in done.stderr
    shown = [int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("step ")]
    assert shown[-4:] == [3, 4, 5, 6] and len(shown) <= 7  # what was lost is shown again; by one process, not by two


def test_torchruns_summary_shows_the_line_of_the_process_that_failed(tmp_path, run_words, quiet_environment) -> None:
    words = run_words("run", "data.train=missing.jsonl")
    done = train(words, quiet_environment, tmp_path, torchrun=ELASTIC)
    assert done.returncode == 1
    summary = done.stderr[done.stderr.index("Root Cause") :]
    assert re.search(r"exitcode  : 1 ", summary) and re.search(r"traceback : .*missing\.jsonl", summary)
    assert "most recent call last" not in summary


def test_a_stopped_run_of_several_processes_says_how_to_go_on_and_does(
    tmp_path, run_words, quiet_environment, logged_steps, monkeypatch
) -> None:
    words = [*run_words("run", steps=1000), "--nproc", "2"]
    command = [sys.executable, "-m", "selfdistill", "train", *words]
    process = subprocess.Popen(
        command, env=quiet_environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: process.poll() is not None or (metrics.exists() and metrics.read_bytes().count(b"\n") > 1))
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.startswith("stopped after step ") and out.endswith(" --resume --nproc 2\n")
    done = int(out.split()[3])
    assert logged_steps(tmp_path / "run") == list(range(1, done + 1))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *run_words("run", steps=done + 1), "--auto-resume"]) == 0
    assert logged_steps(tmp_path / "run") == list(range(1, done + 2))


def test_a_finished_run_is_not_trained_again_by_auto_resume(tmp_path, run_words, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", *run_words("run", steps=1), "--auto-resume"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == "run folder: run\n"
    before = (tmp_path / "run" / "environment.json").stat().st_mtime_ns
    assert cli.main(words) == 0
    assert capsys.readouterr() == ("run folder: run\n", "")
    assert (tmp_path / "run" / "environment.json").stat().st_mtime_ns == before
    assert cli.main([*words, "train.seed=3"]) == 1
    assert "train.seed" in capsys.readouterr().err
