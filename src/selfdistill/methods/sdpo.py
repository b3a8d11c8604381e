"""SDPO (arXiv 2601.20802): a moving average of the student, shown a sibling's success or feedback, is the teacher."""

from selfdistill.contexts import SiblingSuccess
from selfdistill.methods.method import Method
from selfdistill.methods.sources import OwnRollouts
from selfdistill.objectives.parts import Distillation, Reduction
from selfdistill.teachers.parts import MovingAverage
from selfdistill.weighting.routing import EveryRow


def sdpo() -> Method:
    """Return SDPO as published for science and tool use (METHODS section 5)."""
    return Method(
        name="sdpo",
        paper="SDPO, arXiv 2601.20802",
        source=OwnRollouts(group_size=8),
        context=SiblingSuccess(demonstration="random", threshold=0.5),
        teacher=MovingAverage(rate=0.05, every="batch"),
        routing=EveryRow(objective="distillation"),
        distillation=Distillation(divergence="jsd", beta=0.5, support="student_topk", top_k=100, ratio_cap=2.0),
        reduction=Reduction(kind="sequence_mean"),
    )
