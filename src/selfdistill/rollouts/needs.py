"""What a recipe asks of an engine, beyond drawing: known before the first response, so that it can be checked then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfdistill.rollouts.sampler import Sampling

LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]
"""vLLM's names: of the logits as they are, or after temperature, top-k and top-p."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What an engine must be able to do for a run."""

    new_tokens: int
    """Longest response of training or evaluation."""
    lora_rank: int | None
    """Rank of the adapter that is trained; None: all weights are."""
    training: Sampling
    """How rollouts are drawn; their log-probabilities are wanted."""

    @property
    def logprobs_mode(self) -> LogprobsMode:
        """The mode in which vLLM's log-probabilities are those of the contract, where there is one."""
        return "processed_logprobs" if not truncates(self.training) else "raw_logprobs"


def truncates(sampling: Sampling) -> bool:
    """Whether top-k or top-p leave tokens out."""
    return sampling.top_p < 1 or sampling.top_k > 0


def has_logprobs(sampling: Sampling, mode: str) -> bool:
    """Whether vLLM in this mode returns log-probabilities at the sampling temperature, before top-k and top-p.

    vLLM has them before the temperature (raw) or after top-k and top-p (processed), not in between.
    """
    if mode == "raw_logprobs":
        return sampling.temperature == 1
    return mode == "processed_logprobs" and not truncates(sampling)
