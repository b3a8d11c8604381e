"""SFT: cross-entropy on the reference solution in the chat format, response tokens and end-of-turn token only."""

from selfdistill.methods.method import Method
from selfdistill.methods.sources import ReferenceSolutions
from selfdistill.objectives.parts import Imitation, Reduction
from selfdistill.weighting.routing import EveryRow


def sft() -> Method:
    """Return supervised fine-tuning on the reference solutions (METHODS section 7)."""
    return Method(
        name="sft",
        paper="baseline",
        source=ReferenceSolutions(),
        routing=EveryRow(objective="imitation"),
        imitation=Imitation(),
        reduction=Reduction(kind="token_mean"),
    )
