"""Both forward passes over the same tokens: micro-batches by token budget, aligned hidden states."""

from selfdistill.scoring.batching import micro_batches, packed_batches
from selfdistill.scoring.forward import response_states, row_batches, score_rows
from selfdistill.scoring.packing import check_packing
from selfdistill.scoring.rows import TokenPair, sequence_length
from selfdistill.scoring.settings import Forwarding

__all__ = [
    "Forwarding",
    "TokenPair",
    "check_packing",
    "micro_batches",
    "packed_batches",
    "response_states",
    "row_batches",
    "score_rows",
    "sequence_length",
]
