"""Runs that go on elsewhere, as their folders tell them."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import TrainingError
from selfdistill.training.terminal import ASCII_BLOCKS, BLOCKS, blocks_for, phases_text, sparkline
from selfdistill.training.watching import WatchedRun, watch_runs
from selfdistill.watch_commands import add_watch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Elsewhere:
    """A run that a test takes forward by hand."""

    def __init__(self, path: Path, steps: int = 10) -> None:
        self.path = path
        path.mkdir()
        (path / "recipe.yaml").write_text(f"method: paint\ntrain: {{steps: {steps}}}\n")

    def append(self, name: str, *rows: Any) -> None:
        with (self.path / name).open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)

    def step(self, step: int, rate: float = 0.5) -> None:
        self.append("metrics.jsonl", {"step": step, "pass_rate": rate, "loss": 0.25, "seconds/step": 3.0})

    def evaluation(self, step: int, mean: float) -> None:
        folder = self.path / "evaluations" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"avg": {"mean": mean, "low": 0, "high": 1}}))

    def finish(self, step: int, **more: Any) -> None:
        (self.path / "result.json").write_text(json.dumps({"finished": True, "step": step, **more}))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[..., Elsewhere]:
    return lambda name="run", **settings: Elsewhere(tmp_path / name, **settings)


def shown(*runs: Elsewhere) -> str:
    stream = io.StringIO()
    watch_runs([run.path for run in runs], stream)
    return stream.getvalue()


def test_a_run_is_summed_up_once_where_there_is_no_terminal(elsewhere) -> None:
    run = elsewhere()
    run.evaluation(0, 0.25)
    for step in (1, 2, 3):
        run.step(step, 0.2 * step)
    run.evaluation(2, 0.5)
    run.append("warnings.jsonl", {"step": 3, "text": "step 3: leak_rate is 0.2", "remedy": "read rollouts.jsonl " * 9})
    path, state, *rest = shown(run).splitlines()
    assert (path, state) == (str(run.path), "step 3 of 10 (30%), 21 s left, last step 0 s ago")
    assert rest[0] == "loss 0.250  pass rate 0.600"
    assert rest[1] == "accuracy  ▁█ 50.0% at step 2, best 50.0% at step 2"
    assert rest[2].startswith("pass rate ▁")
    assert rest[3].startswith("! step 3: leak_rate is 0.2; read") and len(rest[3]) > 180


def test_a_run_that_has_not_begun_its_first_step_is_shown_too(elsewhere) -> None:
    run = elsewhere()
    assert shown(run) == f"{run.path}\nstep 0 of 10 (0%)\n"


def test_several_runs_are_blocks_with_how_each_ended(elsewhere) -> None:
    one, two = elsewhere("one"), elsewhere("two")
    one.step(10)
    one.finish(10, best_step=5)
    two.step(4)
    two.finish(4, stopped_early={"name": "collapse"}, best_step=2)
    text = shown(one, two)
    assert f"{one.path}\nfinished after step 10, best checkpoint: step 5\n" in text
    assert f"\n\n{two.path}\nstopped early after step 4 of 10 (collapse), best checkpoint: step 2\n" in text


def test_a_terminal_is_refreshed_until_every_run_has_its_result(elsewhere) -> None:
    one, two = elsewhere("one"), elsewhere("two")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        one.step(len(waits))
        if len(waits) == 2:
            one.finish(2)
        if len(waits) == 3:
            two.finish(7)

    stream = Terminal()
    watch_runs([one.path, two.path], stream, every=5.0, sleep=sleep)
    assert waits == [5.0] * 3
    assert "step 1 of 10" in stream.getvalue() and "finished after step 7" in stream.getvalue()


def test_only_new_whole_lines_are_read_and_nonsense_is_left_out(elsewhere) -> None:
    run = elsewhere()
    run.step(1)
    watched = WatchedRun(run.path)
    watched.refresh()
    run.append("metrics.jsonl", [1, 2], "text")
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('no json\n{"step": 2, "pass_ra')
    watched.refresh()
    assert "step 1 of 10" in watched.lines()[1].plain
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('te": 0.75}\n')
    watched.refresh()
    assert "step 2 of 10" in watched.lines()[1].plain
    assert "0.50 to 0.75 in the last 2 steps" in watched.lines()[-1].plain


def test_what_a_resumed_run_drops_is_forgotten(elsewhere) -> None:
    run = elsewhere()
    for step in (1, 2, 3):
        run.step(step)
    run.finish(3)
    watched = WatchedRun(run.path)
    watched.refresh()
    assert watched.finished
    kept = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)[:1]
    (run.path / "new").write_text("".join(kept))
    (run.path / "new").replace(run.path / "metrics.jsonl")
    (run.path / "result.json").unlink()
    watched.refresh()
    assert not watched.finished and "step 1 of 10" in watched.lines()[1].plain


def test_text_in_the_files_cannot_steer_the_terminal(elsewhere) -> None:
    run = elsewhere("run\x1b[2J")
    run.append("warnings.jsonl", {"text": "\x1b[2Jwiped\r\nnext [bold]x[/bold]", "remedy": "\x9b1m"})
    run.finish(1, stopped_early={"name": "\x1b]0;title\x07"})
    text = shown(run)
    assert "\x1b" not in text and "\x9b" not in text and "\r" not in text and "\x07" not in text
    assert "[bold]x[/bold]" in text


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nowhere' is no run folder: it has no recipe.yaml; give the folder"):
        watch_runs([tmp_path / "nowhere"], io.StringIO())


def test_the_command_takes_runs_and_once(elsewhere, capsys) -> None:
    parser = argparse.ArgumentParser()
    add_watch(parser.add_subparsers())
    run = elsewhere()
    arguments = parser.parse_args(["watch", str(run.path), str(run.path), "--once"])
    assert arguments.run(arguments) == 0
    assert capsys.readouterr().out.count("step 0 of 10") == 2


def test_leaving_with_ctrl_c_is_no_failure(elsewhere, monkeypatch) -> None:
    def interrupt(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("selfdistill.training.watching.watch_runs", interrupt)
    parser = argparse.ArgumentParser()
    add_watch(parser.add_subparsers())
    arguments = parser.parse_args(["watch", str(elsewhere().path)])
    assert arguments.run(arguments) == 0


def test_a_curve_is_drawn_between_its_own_ends_and_noise_is_flat() -> None:
    assert sparkline([]) == "" and sparkline([0.5]) == "▁" and sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.5, 0.501, 0.5]) == "▁▁▁"
    assert len(sparkline(list(range(1000)), width=40)) == 40
    assert sparkline([float("nan"), 0.0, 1.0]) == "▁█"
    assert sparkline([0.0, 1.0], blocks=ASCII_BLOCKS) == "_#"
    assert [blocks_for(encoding) for encoding in ("utf-8", "ascii", "latin-1", "no such")] == [
        BLOCKS,
        ASCII_BLOCKS,
        ASCII_BLOCKS,
        ASCII_BLOCKS,
    ]


def test_phases_are_those_that_a_step_waited_for() -> None:
    metrics = {
        "seconds/sampling": 2.0,
        "tokens_per_second/sampling": 5000.4,
        "seconds/verifying": 0.001,
        "seconds/verifying_hidden": 9.0,
        "seconds/step": 3.0,
        "seconds/update": 1.0,
    }
    assert phases_text(metrics) == "sampling 2.0 s (5,000 tokens/s), update 1.0 s"
