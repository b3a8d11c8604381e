"""SRPO (arXiv 2604.02288): failures that a teacher can help with are distilled, all else gets the policy gradient."""

from selfdistill.contexts import SiblingSuccess
from selfdistill.methods.method import Method
from selfdistill.methods.sources import OwnRollouts
from selfdistill.objectives.parts import Distillation, PolicyGradient, Reduction
from selfdistill.teachers.parts import MovingAverage
from selfdistill.weighting.routing import FailuresToDistillation


def srpo() -> Method:
    """Return SRPO as published (METHODS section 7): entropy-weighted SDPO tokens, one mean over all routed tokens."""
    return Method(
        name="srpo",
        paper="SRPO, arXiv 2604.02288",
        source=OwnRollouts(group_size=8),
        context=SiblingSuccess(demonstration="random", threshold=0.5),
        teacher=MovingAverage(rate=0.05, every="batch"),
        routing=FailuresToDistillation(),
        distillation=Distillation(
            divergence="jsd", beta=0.5, support="student_topk", top_k=100, ratio_cap=2.0, entropy_weight=1.0
        ),
        policy=PolicyGradient(normalize=True, clip_low=0.2, clip_high=0.28),
        reduction=Reduction(kind="token_mean"),
    )
