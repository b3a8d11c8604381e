"""Where our update phase, our teacher's pass and our training step are called; :mod:`benchmarks.ours` has the heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import ROOT
from benchmarks.update_batch import PAD, UpdateBatch
from selfdistill.methods import build
from selfdistill.models.head import projection_of
from selfdistill.models.loading import Policy
from selfdistill.objectives import linear_divergence
from selfdistill.scoring import Forwarding, TokenPair, score_rows
from selfdistill.teachers import start_teacher
from selfdistill.training.config import ScoringConfig
from selfdistill.training.metrics import TokenMeans
from selfdistill.training.plan import make_plan
from selfdistill.training.progress import NullProgress
from selfdistill.training.recipe import load_recipe
from selfdistill.training.run import start, take_step
from selfdistill.training.update import Scoring, accumulate_gradients

FAST = ScoringConfig()
READABLE = ScoringConfig(head="readable", reuse_prefix=False)


class Update:
    """The update phase of SC-SDPO on one batch: weigh, score, compare, differentiate; no optimiser step.

    ``full`` compares the whole vocabulary instead of the student's top k; ``readable`` switches the fast paths off.
    """

    def __init__(self, batch: UpdateBatch, policy: Policy, *, full: bool = False, readable: bool = False) -> None:
        support = {"support": "full", "top_k": None} if full else {"top_k": batch.settings.top_k}
        self.method = build("sc_sdpo", **support)
        self.policy = policy
        self.batch = batch.drawn_with(_sampled_logprobs(policy.model, batch))
        self.teacher = start_teacher(self.method.teacher, policy.model)
        self.scoring = Scoring(1.0, batch.token_budget, READABLE if readable else FAST)

    def __call__(self) -> float:
        """Run it and return the loss; gradients are left in the model."""
        batch, method = self.batch, self.method
        self.policy.model.zero_grad(set_to_none=True)
        self.policy.model.train()
        (rows,) = make_plan(method, batch.groups, batch.prompts).parts(1, method.reduction)
        return accumulate_gradients(rows, method, self.policy, self.teacher, self.scoring, TokenMeans())


def _sampled_logprobs(model: nn.Module, batch: UpdateBatch) -> list[tuple[float, ...]]:
    """Return the log-probabilities that each response was drawn with, as a sampler would have noted them."""
    projection = projection_of(model)
    pairs = [(one.prompt_ids, one.response_ids) for one in batch.rollouts]
    states = score_rows(model, pairs, Forwarding(batch.token_budget, pad_id=PAD))
    found = []
    for hidden, (_, response) in zip(states, pairs, strict=True):
        ids = torch.tensor(list(response), device=hidden.device)
        with torch.no_grad():
            record = linear_divergence.linear_token_logprobs(hidden, projection, ids)
        assert record.student_logprob is not None
        found.append(tuple(record.student_logprob.tolist()))
    return found


def teacher_pass(model: nn.Module, pairs: Sequence[TokenPair], token_budget: int, *, reuse: bool) -> list[Tensor]:
    """Return the teacher's hidden states, computing a prompt that rows share once or for every row."""
    return score_rows(model, pairs, Forwarding(token_budget, pad_id=PAD, reuse_prefix=reuse))


def training(method: str, overrides: Sequence[str], *, readable: bool) -> Callable[[], Mapping[str, Any]]:
    """Start a run of an embedded recipe; each call takes one step and returns what it logs."""
    scoring = READABLE if readable else FAST
    paths = [f"scoring.head={scoring.head}", f"scoring.reuse_prefix={str(scoring.reuse_prefix).lower()}"]
    recipe = load_recipe(ROOT / "recipes" / "embedded" / f"{method}.yaml", [*overrides, *paths])
    run = start(recipe, resume=False, progress=NullProgress())
    return lambda: take_step(run)
