"""The embedded model: a tiny Qwen3 with its own tokenizer, packaged as data and loaded like any local model folder.

``scripts/make_embedded_model.py`` makes everything in this folder except this file.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["embedded_path"]


def embedded_path() -> Path:
    """Return the folder to give to ``from_pretrained``."""
    return Path(__file__).resolve().parent
