"""Routing of rollouts to objectives (METHODS 7)."""

import pytest
from pydantic import ValidationError

from selfdistill.contexts import PrivilegedPrompt
from selfdistill.verifiers.verdict import Verdict
from selfdistill.weighting import EveryRow, FailuresToDistillation

PROMPT = PrivilegedPrompt(messages=(), token_ids=(1,), shown="x", source="demonstration")
RIGHT, WRONG, PARTIAL = Verdict(1.0, True), Verdict(0.0, False), Verdict(0.9, False)


def test_every_row_goes_to_the_one_objective() -> None:
    assert EveryRow(objective="policy").route([RIGHT, WRONG], [None, PROMPT]) == ["policy", "policy"]
    assert EveryRow(objective="imitation").route([RIGHT], [None]) == ["imitation"]


def test_distillation_leaves_out_rows_without_a_prompt() -> None:
    assert EveryRow(objective="distillation").route([RIGHT, WRONG], [None, PROMPT]) == [None, "distillation"]


def test_only_failures_with_teacher_context_go_to_distillation() -> None:
    routed = FailuresToDistillation().route([RIGHT, RIGHT, WRONG, WRONG, PARTIAL], [PROMPT, None, PROMPT, None, PROMPT])
    assert routed == ["policy", "policy", "distillation", "policy", "distillation"]


def test_unknown_objectives_are_refused() -> None:
    with pytest.raises(ValidationError):
        EveryRow(objective="distilation")
