"""SC-SDPO (arXiv 2605.27765), SDPO with each question weighted by its pass rate, and the weightings beside it."""

from dataclasses import replace

from selfdistill.methods.method import Method
from selfdistill.methods.sdpo import sdpo
from selfdistill.weighting.parts import HardFilter, Paced, PassRate


def sc_sdpo() -> Method:
    """Return SC-SDPO: weight (p (1 - p))^0.5 over its mean on the informative questions (METHODS section 6)."""
    return replace(sdpo(), name="sc_sdpo", paper="SC-SDPO, arXiv 2605.27765", weighting=PassRate(alpha=0.5))


def paced() -> Method:
    """Return SDPO with PACED weights p^a (1 - p)^b from one pass before training, frozen."""
    return replace(sdpo(), name="paced", paper="PACED, arXiv 2603.11178", weighting=Paced(a=1.0, b=1.0, rollouts=8))


def hard_filter() -> Method:
    """Return SDPO on the questions with 0.2 <= p <= 0.8 only."""
    return replace(
        sdpo(),
        name="hard_filter",
        paper="SC-SDPO's baseline, arXiv 2605.27765",
        weighting=HardFilter(low=0.2, high=0.8),
    )
