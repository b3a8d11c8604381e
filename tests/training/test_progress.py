"""The progress display, with a clock that the test moves."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from selfdistill.training.progress import (
    LiveProgress,
    NullProgress,
    PlainProgress,
    Progress,
    duration,
    make_progress,
    metrics_text,
    number,
    printable,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(every: float = 30.0) -> tuple[PlainProgress, io.StringIO, Time]:
    stream, clock = io.StringIO(), Time()
    return PlainProgress(stream, every=every, clock=clock), stream, clock


def picture(progress: LiveProgress) -> str:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(progress.picture())
    return capture.get()


def test_every_display_offers_the_same_calls() -> None:
    for progress in (NullProgress(), PlainProgress(io.StringIO()), LiveProgress(Terminal())):
        shown: Progress = progress
        with shown.phase("sampling", 10):
            shown.advance(3)
            shown.responses(1, 4, 3)
        shown.step_line({"step": 1, "loss": 0.5}, total=2)
        shown.evaluation(1, 0.5)
        shown.warning("step 1: pass_rate is 0")
        shown.message("done")


def test_a_terminal_gets_live_lines_and_anything_else_plain_ones() -> None:
    assert isinstance(make_progress(Terminal()), LiveProgress)
    assert isinstance(make_progress(io.StringIO()), PlainProgress)


def test_a_step_is_one_plain_line_with_what_matters_and_the_time_left() -> None:
    progress, stream, clock = plain()
    with progress:
        for step in (3, 4, 5):
            progress.step_line({"step": step, "loss": 0.01234, "pass_rate": 0.5, "weight_sum": 8.0}, total=10)
            clock.now += 4.0
    first, _, last = stream.getvalue().splitlines()
    assert first == "step 3 of 10  loss 0.0123  pass rate 0.500"
    assert last == "step 5 of 10  loss 0.0123  pass rate 0.500  20 s left"


def test_the_first_step_already_tells_the_time_left_when_it_says_how_long_it_took() -> None:
    progress, stream, _ = plain()
    progress.step_line({"step": 1, "loss": 1.0, "seconds/step": 2.0}, total=31)
    assert stream.getvalue().strip().endswith("1 min 00 s left")


def test_the_time_left_follows_the_recent_steps() -> None:
    progress, stream, clock = plain()
    for step in range(1, 61):
        clock.now += 100.0 if step < 30 else 1.0
        progress.step_line({"step": step}, total=100)
    assert stream.getvalue().splitlines()[-1] == "step 60 of 100  40 s left"


def test_short_phases_write_nothing_and_long_ones_a_sign_of_life() -> None:
    progress, stream, clock = plain(every=30)
    with progress.phase("sampling", 4000):
        for _ in range(10):
            clock.now += 10.0
            progress.advance(100)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "  sampling: 300 of 4,000 tokens, 10 tokens/s, at most 6 min 10 s left"
    assert len(lines) == 3


def test_work_that_was_done_before_is_not_taken_for_speed() -> None:
    progress, stream, clock = plain(every=30)
    with progress.phase("runs", 1000, unit="steps"):
        progress.advance(500)
        for _ in range(3):
            clock.now += 10.0
            progress.advance(20)
    assert stream.getvalue().splitlines() == ["  runs: 560 of 1,000 steps, 2 steps/s, 3 min 40 s left"]


def test_the_time_left_of_an_evaluation_follows_from_the_responses_that_have_finished() -> None:
    progress, stream, clock = plain(every=30)
    with progress.phase("evaluating", 4_000_000):
        progress.responses(0, 100, 0)
        for _ in range(10):
            clock.now += 10.0
            progress.advance(1000)
            if clock.now == 150.0:
                progress.responses(20, 100, 3000)
    assert stream.getvalue().splitlines() == [
        "  evaluating: 0 of 100 responses, 100 tokens/s, at most 11 h 06 min left",
        "  evaluating: 20 of 100 responses, 100 tokens/s, 2 min 00 s left",
        "  evaluating: 20 of 100 responses, 100 tokens/s, 2 min 00 s left",
    ]


def test_responses_that_were_there_before_help_to_foresee_the_others() -> None:
    clock = Time()
    progress = LiveProgress(Terminal(), clock=clock)
    with progress.phase("evaluating", 1_000_000):
        progress.responses(50, 100, 5000)
        clock.now += 10.0
        progress.advance(500)
        assert "50 of 100 responses, 50 tokens/s, 1 min 40 s left" in picture(progress)
    progress.responses(1, 1, 1)  # outside of a phase: harmless


def test_counting_outside_of_a_phase_is_harmless() -> None:
    progress, stream, _ = plain(every=0)
    progress.advance(5)
    assert stream.getvalue() == ""


def test_a_phase_ends_with_its_block_even_after_an_error() -> None:
    progress, _, _ = plain()
    with pytest.raises(RuntimeError), progress.phase("update"):
        raise RuntimeError
    assert not progress._phases


def test_the_live_lines_show_run_phase_speed_and_metrics() -> None:
    clock = Time()
    progress = LiveProgress(Terminal(), clock=clock)
    progress.step_line({"step": 5, "loss": 0.25, "seconds/step": 3.0}, total=10)
    with progress.phase("sampling", 1000):
        clock.now += 10.0
        progress.advance(500)
        shown = picture(progress)
    assert "step 5 of 10" in shown and "15 s left" in shown
    assert "sampling" in shown and "500 of 1,000 tokens, 50 tokens/s, at most 10 s left" in shown
    assert "loss 0.250" in shown
    assert "sampling" not in picture(progress)


def test_the_live_lines_show_phases_accuracy_and_the_last_three_warnings() -> None:
    progress = LiveProgress(Terminal())
    for step, rate in enumerate((0.2, 0.31, 0.6), start=1):
        seconds = {"seconds/sampling": 3.0, "seconds/update": 1.5, "tokens_per_second/sampling": 1234.5}
        progress.step_line({"step": step, "pass_rate": rate, **seconds}, total=10)
        progress.evaluation(step, rate)
    for step in range(1, 5):
        progress.warning(f"step {step}: pass_rate is low\x1b[2J; lower train.learning_rate")
    shown = picture(progress)
    assert "sampling 3.0 s (1,234 tokens/s), update 1.5 s" in shown
    assert "accuracy  ▁▃█ 60.0% at step 3, best 60.0% at step 3" in shown
    assert "pass rate ▁▃█ 0.60, 0.20 to 0.60 in the last 3 steps" in shown
    assert [f"! step {step}" in shown for step in (1, 2, 3, 4)] == [False, True, True, True]
    assert "\x1b[2J" not in shown


def test_a_warning_is_a_line_that_stays_in_any_display() -> None:
    progress, stream, _ = plain()
    progress.warning("step 4: leak_rate is 0.2\x1b[2J; read rollouts.jsonl")
    assert stream.getvalue() == "warning: step 4: leak_rate is 0.2\N{REPLACEMENT CHARACTER}[2J; read rollouts.jsonl\n"
    terminal = Terminal()
    LiveProgress(terminal).warning("step 4: leak_rate is 0.2")
    assert "warning: step 4: leak_rate is 0.2" in terminal.getvalue()


def test_a_live_phase_without_a_total_shows_its_seconds() -> None:
    clock = Time()
    progress = LiveProgress(Terminal(), clock=clock)
    with progress.phase("verifying"):
        clock.now += 7.0
        assert "7 s" in picture(progress)


def test_the_live_lines_go_away_after_an_error() -> None:
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), make_progress(stream) as progress:
        progress.message("kept")
        raise KeyboardInterrupt
    assert "kept" in stream.getvalue()
    assert stream.getvalue().endswith(("\x1b[?25h", "\x1b[2K", "\r", "\n")) or "\x1b[?25h" in stream.getvalue()


@pytest.mark.parametrize("make", [PlainProgress, LiveProgress])
def test_text_of_a_model_cannot_steer_the_terminal(make: Any) -> None:
    stream = Terminal()
    make(stream).message("answer \x1b[2J[bold]x[/bold]\rwiped\nnext")
    assert "\x1b[2J" not in stream.getvalue() and "\rwiped" not in stream.getvalue()
    assert "[bold]x[/bold]" in stream.getvalue() and "\nnext" in stream.getvalue()


def test_without_a_headline_all_numbers_are_shown_and_nothing_else() -> None:
    assert (
        metrics_text({"step": 1, "accuracy": 0.5, "histogram": [1, 2], "note": "x", "none": None}) == "accuracy 0.500"
    )


def test_numbers_and_durations_are_readable() -> None:
    assert [number(value) for value in (3, 1234567, 0.5, 12.345, 1234.5, 1e-6, 0.0, float("nan"))] == [
        "3",
        "1,234,567",
        "0.500",
        "12.3",
        "1,234",
        "1e-06",
        "0",
        "nan",
    ]
    assert [duration(seconds) for seconds in (0.2, 59.4, 200, 3900)] == ["0 s", "59 s", "3 min 20 s", "1 h 05 min"]
    assert printable("a\tb\n\x00") == "a\tb\n\N{REPLACEMENT CHARACTER}"
