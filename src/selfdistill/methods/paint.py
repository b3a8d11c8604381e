"""PAINT (arXiv 2604.26573): the initial weights, shown part of the solution, teach the student on its own rollouts.

The more of the solution a rollout already contains, the more of it is hidden; at the few tokens where the two entropies
mismatch most, the target moves towards the student.
"""

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
        context=PartialSolution(hidden_wrong=0.30, hidden_correct=0.40, placement="suffix", thinking=True),
        teacher=Initial(),
        routing=EveryRow(objective="distillation"),
        distillation=Distillation(
            divergence="forward_kl", interpolation_fraction=0.03, interpolation_strength=0.03, entry_clip=0.06
        ),
        reduction=Reduction(kind="sequence_mean"),
    )
