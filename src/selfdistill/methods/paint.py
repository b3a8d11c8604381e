"""PAINT (arXiv 2604.26573): the teacher sees a solution whose suffix is hidden according to how much of it the rollout already contains, and its target
moves towards the student at the few tokens where their entropies mismatch most."""

from selfdistill.contexts import PartialSolution
from selfdistill.methods.method import Method
from selfdistill.methods.sources import OwnRollouts
from selfdistill.objectives.parts import Distillation, Reduction
from selfdistill.teachers.parts import Initial
from selfdistill.weighting.routing import EveryRow


def paint() -> Method:
    """Return PAINT as published (METHODS section 3)."""
    return Method(
        name="paint",
        paper="PAINT, arXiv 2604.26573",
        source=OwnRollouts(group_size=1),
        context=PartialSolution(hidden_wrong=0.30, hidden_correct=0.40, placement="suffix"),
        teacher=Initial(),
        routing=EveryRow(objective="distillation"),
        distillation=Distillation(
            divergence="forward_kl", interpolation_fraction=0.03, interpolation_strength=0.03, entry_clip=0.06
        ),
        reduction=Reduction(kind="sequence_mean"),
    )
