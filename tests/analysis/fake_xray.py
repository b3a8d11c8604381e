"""X-rays without a model: seeded random numbers in every column, so that a page has everything to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from selfdistill.analysis.xray import Anchor, Context, RolloutXray, TokenTable, TopTokens, Xray

TOP = 10
WORDS = (
    " the",
    " sum",
    "\n",
    " is",
    " 12",
    "+",
    " =",
    " so",
    " we",
    "\tadd",
    " carry",
    "ing",
    " ones",
    ".",
    "\ufffd",
    "",
)


def top_tokens(sampled: Tensor, vocabulary: int, generator: torch.Generator) -> TopTokens:
    """Return top tokens that have the sampled one at a random place, or not at all."""
    count = len(sampled)
    scores = torch.rand(count, vocabulary, generator=generator)
    scores[torch.arange(count), sampled.long()] += 0.5
    found = scores.topk(TOP).indices
    probabilities = (2 * torch.randn(count, TOP + 3, generator=generator)).softmax(-1).sort(descending=True).values
    return TopTokens(found.to(torch.int32), probabilities[:, :TOP].contiguous())


def token_table(ids: Sequence[int], vocabulary: int, *, seed: int = 0, **changes: Any) -> TokenTable:
    """Return a table with every column; 3 in 100 positions, at least one, are interpolated."""
    generator = torch.Generator().manual_seed(seed)
    sampled = torch.tensor(ids, dtype=torch.int32)
    count = len(ids)

    def positive(scale: float) -> Tensor:
        return scale * torch.rand(count, generator=generator) ** 3

    student, teacher = -positive(4.0), -positive(3.0)
    student_entropy, teacher_entropy = positive(2.0), positive(2.0)
    divergence = positive(1.0) - 0.02
    after = student + 0.3 * torch.randn(count, generator=generator)
    columns = {
        "divergence": divergence,
        "entropy_ratio": teacher_entropy / student_entropy.clamp(min=1e-6),
        "log_ratio": teacher - student,
        "weight": torch.ones(count),
        "student_entropy": student_entropy,
        "teacher_entropy": teacher_entropy,
        "student_logprob": student,
        "teacher_logprob": teacher,
        "rollout_logprob": student + 0.01,
        "clip_fraction": positive(0.1),
        "captured_mass": 1 - positive(0.05),
        "student_logprob_after": after,
        "divergence_after": divergence * 0.8,
    }
    selected = torch.zeros(count, dtype=torch.bool)
    if count:
        selected[columns["entropy_ratio"].topk(max(1, (3 * count + 99) // 100)).indices] = True
    student_top, teacher_top = (top_tokens(sampled, vocabulary, generator) for _ in range(2))
    interpolated = TopTokens(teacher_top.ids[selected], teacher_top.probabilities[selected])
    fields = {
        "ids": sampled, "columns": columns, "selected": selected, "student": student_top, "teacher": teacher_top,
        "interpolated": interpolated,
    }  # fmt: skip
    return TokenTable(**{**fields, **changes})


def paint_context(**changes: Any) -> Context:
    """Return the context of a PAINT rollout: a part of the solution."""
    fields: dict[str, Any] = {
        "source": "partial_solution",
        "shown": "First add the ones: 7 + 5 = 12. [...]",
        "messages": ({"role": "user", "content": "What is 17 + 25?\nA partial solution: First add the ones."},),
        "overlap": 0.5,
        "hidden_ratio": 0.35,
        "anchors": (Anchor("42", found=True), Anchor("7+5=12", found=False)),
        "solution_parts": (("First add the ones: 7 + 5 = 12. ", False), ("Then the tens: the sum is 42.", True)),
    }
    return Context(**{**fields, **changes})


def sibling_context(demonstrator: int) -> Context:
    """Return the context of an SDPO rollout: what a sibling wrote."""
    messages = ({"role": "user", "content": "What is 17 + 25?\nA correct solution: it is 42."},)
    return Context("demonstration", "it is 42.", messages, demonstrator=demonstrator)


def rollout(sibling: int, tokens: TokenTable | None, **changes: Any) -> RolloutXray:
    """Return a rollout with PAINT's context, a success where ``sibling`` is even."""
    fields: dict[str, Any] = {
        "sibling": sibling, "text": f"response {sibling}: it is 42.", "finish_reason": "stop",
        "reward": float(sibling % 2 == 0), "success": sibling % 2 == 0, "answer": "42", "feedback": None,
        "objective": "distillation", "weight": 1.0, "advantage": 0.0, "context": paint_context(), "tokens": tokens,
    }  # fmt: skip
    return RolloutXray(**{**fields, **changes})


def xray(rollouts: Sequence[RolloutXray] | None = None, words: Sequence[str] = WORDS, **changes: Any) -> Xray:
    """Return an x-ray; without ``rollouts``: one of PAINT's, one that saw a sibling, and one without signal."""
    if rollouts is None:
        ids = [index % len(words) for index in range(200)]
        no_signal = {"objective": None, "context": None, "weight": 0.0}
        rollouts = (
            rollout(0, token_table(ids, len(words))),
            rollout(1, token_table(ids[:60], len(words), seed=1), context=sibling_context(0), feedback="Wrong: 43."),
            rollout(2, None, **no_signal),
        )
    vocabulary: Mapping[int, str] = dict(enumerate(words))
    fields: dict[str, Any] = {
        "title": "sums-17", "recipe": "recipes/embedded/paint.yaml", "method": "paint", "model": "embedded",
        "weights": "before training", "step": 0, "question_id": "sums-17",
        "messages": ({"role": "system", "content": "You add."}, {"role": "user", "content": "What is 17 + 25?"}),
        "answer": "42", "solution": "First add the ones: 7 + 5 = 12. Then the tens: the sum is 42.", "pass_rate": 2 / 3,
        "rollouts": tuple(rollouts), "vocabulary": vocabulary, "settings": {"f_top": 0.03, "k": 0.03},
        "update": "one step of AdamW on this group alone",
    }  # fmt: skip
    return Xray(**{**fields, **changes})
