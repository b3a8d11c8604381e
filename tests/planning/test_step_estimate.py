"""From measured batches to the seconds of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from selfdistill.planning.estimate import fitted, step_time
from selfdistill.planning.measure import Measurement, _next_size
from selfdistill.planning.setup import Setup

STEP, TOKEN, EACH, POSITION = 0.02, 0.001, 0.1, 0.0005
"""Seconds per decoding step, per drawn token, per micro-batch and per position of a made-up machine."""


def batch(questions: int, new_tokens: int, group: int = 1) -> Measurement:
    """A batch on the made-up machine: prompts of 30 and 80 tokens, responses as long as they may be."""
    rows = questions * group
    drawn, student, teacher = rows * new_tokens, rows * (29 + new_tokens), rows * (79 + new_tokens)
    return Measurement(
        questions=questions,
        rows=rows,
        new_tokens=new_tokens,
        drawn=drawn,
        longest=new_tokens,
        cut=1.0,
        informative=1.0,
        scored_rows=rows,
        scored_tokens=drawn,
        student=student,
        teacher=teacher,
        loading=1.0,
        sampling=STEP * new_tokens + TOKEN * drawn,
        verifying=0.01 * rows,
        update=EACH + POSITION * (3 * student + teacher),
        optimizer=0.3,
        peak=None,
    )


@pytest.fixture
def made(setup: Callable[..., Setup]) -> Setup:
    return setup(train={"questions_per_step": 32}, rollouts={"sampling": {"max_new_tokens": 24}})


def test_a_line_through_points_is_found_again() -> None:
    assert fitted([(1, 10, 2 + 30), (2, 50, 4 + 150), (3, 5, 6 + 15)]) == pytest.approx((2, 3))


def test_a_line_is_never_negative() -> None:
    assert fitted([(4, 10, 10), (1, 100, 500)])[0] >= 0
    assert fitted([(1, 10, 10), (1, 100, 5)])[0] == 0


def test_points_too_near_to_each_other_are_taken_to_grow_with_their_size() -> None:
    assert fitted([(1, 10, 10), (1, 12, 12)]) == (0.0, pytest.approx(1.0))
    assert fitted([(1, 10, 20)]) == (0.0, pytest.approx(2.0))
    assert fitted([]) == (0.0, 0.0)


def test_batches_of_two_sizes_give_the_time_of_a_whole_step(made: Setup) -> None:
    estimated, real = step_time(made, [batch(1, 16), batch(4, 24)]), batch(32, 24)
    assert estimated.sampling == pytest.approx(real.sampling)
    assert estimated.update == pytest.approx(real.update, rel=0.01)
    assert (estimated.verifying, estimated.optimizer) == (pytest.approx(real.verifying), real.optimizer)
    assert not estimated.is_whole and estimated.total == pytest.approx(real.seconds, rel=0.01)


def test_a_step_that_was_measured_as_a_whole_is_taken_as_it_is(made: Setup) -> None:
    whole = replace(batch(32, 24), update=7.0)
    estimated = step_time(made, [batch(1, 16), whole])
    assert estimated.is_whole and estimated.total == pytest.approx(whole.seconds)


def test_one_batch_is_taken_to_grow_with_its_tokens(made: Setup) -> None:
    one = batch(2, 24)
    assert step_time(made, [one]).sampling == pytest.approx(one.sampling * 16)


def test_rows_without_signal_cost_no_update(made: Setup) -> None:
    some = replace(batch(4, 24), informative=0.25)
    estimated = step_time(made, [batch(1, 24), some])
    assert estimated.update == pytest.approx(step_time(made, [batch(1, 24), batch(4, 24)]).update / 4)
    assert estimated.at_most > estimated.total


def test_short_budgets_are_extrapolated_to_full_responses(made: Setup) -> None:
    estimated = step_time(made, [batch(1, 8), batch(4, 12)])
    assert estimated.tokens_per_response == 24 and estimated.sampling == pytest.approx(batch(32, 24).sampling)


def test_another_engine_s_sampling_is_not_guessed(made: Setup) -> None:
    estimated = step_time(replace(made, engine="vllm_server"), [batch(1, 8), batch(2, 24)])
    assert estimated.sampling is None and estimated.total < estimated.update + 1


def test_batches_grow_while_there_is_time() -> None:
    full = (32, 80)
    assert _next_size((1, 16), full, 100) == (4, 64)
    assert _next_size((4, 64), full, 100) == (16, 80)
    assert _next_size((16, 80), full, 100) == full
    assert _next_size(full, full, 100) == full
    assert _next_size((4, 64), full, 0.7) == (4, 64)
    assert _next_size((4, 80), full, 1.4) == (8, 80)
