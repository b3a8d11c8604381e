"""What `selfdistill export` does, in terms of the library."""

from __future__ import annotations

import argparse
from pathlib import Path


def export(arguments: argparse.Namespace) -> int:
    """``selfdistill export RUN --out FOLDER [--checkpoint last|best|STEP]``."""
    from selfdistill.training.exporting import export_checkpoint

    step = export_checkpoint(Path(arguments.target), Path(arguments.out), arguments.checkpoint)
    print(f"step {step}: {arguments.out}")
    return 0
