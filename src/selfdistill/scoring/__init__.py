"""Both forward passes over the same tokens: micro-batches by token budget, aligned hidden states."""

from selfdistill.scoring.batching import micro_batches
from selfdistill.scoring.forward import response_states, score_rows, sequence_length

__all__ = ["micro_batches", "response_states", "score_rows", "sequence_length"]
