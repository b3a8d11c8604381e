"""How methods fail, by the parts that they are made of: what to watch and what to try.

In: a method. Out: sentences. They follow METHODS section 10 (docs/methods.md); a figure in them is a paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from selfdistill.methods import Method
from selfdistill.methods.sources import OwnRollouts

KNOWN: tuple[tuple[Callable[[Method], bool], str], ...] = (
    (
        lambda method: method.distillation is not None and method.teacher.kind == "moving_average",
        "**Collapse.** With a moving-average teacher the student becomes its own teacher. SDPO's tool use was "
        "reported to fall from 68% to about 0 by step 500. Watch `pass_rate` and `response_length`, evaluate along "
        "the way (`train.evaluate_every`), keep the best checkpoint (`train.keep_best`), lower `method.teacher.rate`.",
    ),
    (
        lambda method: method.distillation is not None and method.teacher.kind == "initial",
        "**Too many steps.** OPSD was reported to get worse past 100 to 200 steps. Evaluate along the way "
        "(`train.evaluate_every`) and keep the best checkpoint (`train.keep_best`).",
    ),
    (
        lambda method: method.teacher.kind == "live",
        "**A live teacher drifts along with its student**: 36.1 on code against 48.8 frozen, 49.3 with a moving "
        "average and 50.6 with a trust region. Use one of those.",
    ),
    (
        lambda method: method.context.kind in ("full_solution", "partial_solution"),
        "**Leaked hints.** The student starts to mention a reference that it cannot see. Watch `leak_rate`, and read "
        "some rollouts: it counts phrases, and misses what it does not know.",
    ),
    (
        lambda method: method.context.kind == "sibling_success" and len(method.routing.objectives) == 1,
        "**No signal.** A rollout without a successful sibling and without feedback learns nothing; neither does a "
        "lone success. Watch `reprompted_share` and `forwarded_share`; try easier questions, a larger group, or "
        "`method.context.buffer`.",
    ),
    (
        lambda method: method.distillation is not None,
        "**Shrinking answers.** Responses get shorter while the loss looks well. Watch `response_length`, "
        "`student_entropy` and `truncated_share`.",
    ),
    (
        lambda method: method.distillation is not None and method.distillation.support == "student_topk",
        "**Escaping tail.** Under `reverse_kl`, probability can leave the top-k support. Watch `captured_mass`; raise"
        " `method.distillation.top_k` and keep `tail`.",
    ),
    (
        lambda method: method.distillation is not None and method.distillation.entry_clip is not None,
        "**The entry clip** removes the gradient where teacher and student disagree most; with large gaps what is "
        "left can point the wrong way. Watch `clip_fraction`; try `method.distillation.token_clip`, or no clip.",
    ),
    (
        lambda method: method.weighting.kind == "pass_rate",
        "**Nothing informative.** Questions that all or no rollouts solve weigh nothing, so a batch can be empty. "
        "Watch `informative_share`; change the questions or the group size.",
    ),
    (
        lambda method: method.weighting.kind == "hard_filter",
        "**Nothing between the bounds.** With few rollouts per question few pass rates exist, and a batch can be "
        "empty. Watch `weighted_share`; widen `method.weighting.low` and `high`.",
    ),
    (
        lambda method: method.weighting.kind == "paced",
        "**Stale weights.** They come from before training and are never measured again. The pass costs rollout "
        "tokens that a comparison at equal tokens has to count.",
    ),
    (
        lambda method: method.policy is not None,
        "**Groups that agree.** Where all rollouts of a question have the same reward the advantage is 0 and nothing "
        "is learned. Watch `informative_share`.",
    ),
    (
        lambda method: method.policy is not None and isinstance(method.source, OwnRollouts),
        "**Off-policy ratios.** Top-p, top-k or an engine whose log-probabilities differ bias the ratio. Watch "
        "`ratio`, `sampler_mismatch` and `policy_clip_fraction`.",
    ),
    (
        lambda method: method.imitation is not None,
        "**Somebody else's text.** Reference solutions are often not what the model would write: on average, PAINT's "
        "SFT rows are below the base at all three sizes. On the embedded task they are what it should write, and SFT "
        "is among the best.",
    ),
)
"""Whether a method has what fails, and the sentence."""


def failures(method: Method) -> Iterator[str]:
    """Yield what is known to go wrong with the parts of a method."""
    for has, sentence in KNOWN:
        if has(method):
            yield sentence
    if method.distillation is not None or method.policy is not None:
        yield (
            "**Small gains on small sets are noise.** The sampling error of Avg@12 on 30 problems is about 1.8 points: "
            "compare with intervals (`selfdistill compare --seeds`, `selfdistill difference`)."
        )
