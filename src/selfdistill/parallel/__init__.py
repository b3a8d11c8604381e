"""Several processes: who they are, how they speak, and how weights are divided over them."""

from selfdistill.parallel.config import ParallelConfig
from selfdistill.parallel.failures import PeerError
from selfdistill.parallel.world import ALONE, World, join, joined

__all__ = ["ALONE", "ParallelConfig", "PeerError", "World", "join", "joined"]
