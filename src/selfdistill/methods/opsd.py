"""OPSD (arXiv 2601.18734): the initial weights, shown the full solution, teach the student on its own rollouts."""

from selfdistill.contexts import FullSolution
from selfdistill.methods.method import Method
from selfdistill.methods.sources import OwnRollouts
from selfdistill.objectives.parts import Distillation, Reduction
from selfdistill.teachers.parts import Initial
from selfdistill.weighting.routing import EveryRow


def opsd() -> Method:
    """Return OPSD as published (METHODS section 4; the entry clip is 0.06 at 8B)."""
    return Method(
        name="opsd",
        paper="OPSD, arXiv 2601.18734",
        source=OwnRollouts(group_size=1),
        context=FullSolution(thinking=True),
        teacher=Initial(),
        routing=EveryRow(objective="distillation"),
        distillation=Distillation(divergence="forward_kl", entry_clip=0.05),
        reduction=Reduction(kind="sequence_mean"),
    )
