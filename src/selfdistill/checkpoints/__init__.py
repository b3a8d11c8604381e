"""Checkpoints: what a run needs to go on as if it had never stopped, on as many processes as it then has.

A checkpoint is a folder ``step-000020``: every process's part of all tensors (``__RANK_0.distcp``) and where each part
is (``.metadata``), in the format of torch.distributed.checkpoint; everything else, with the sizes and digests of those
files, in ``state.json``, which is written last. The folder has its name only once it is complete.
"""

from selfdistill.checkpoints.folder import CheckpointFolder
from selfdistill.checkpoints.manifest import Manifest
from selfdistill.checkpoints.reading import Checkpoint, read_checkpoint
from selfdistill.checkpoints.saver import Saver
from selfdistill.checkpoints.state import TrainState

__all__ = ["Checkpoint", "CheckpointFolder", "Manifest", "Saver", "TrainState", "read_checkpoint"]
