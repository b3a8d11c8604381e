"""What to try when a warning comes, in terms of the recipe's own settings and their values.

In: a recipe. Out: a remedy per measure, as the end of a sentence. It follows from the parts that the method has.
"""

from __future__ import annotations

from selfdistill.training.recipe import Recipe

BEST = "take the best checkpoint (selfdistill export RUN --checkpoint best --out FOLDER)"


def remedies(recipe: Recipe) -> dict[str, str]:
    """Return what to try, by measure; evaluations are under ``evaluation``, the teacher's accuracy ``teacher_gap``."""
    milder, sampling = _milder(recipe), recipe.rollouts.sampling
    return {
        "pass_rate": f"{milder}, or {BEST}",
        "evaluation": f"{milder}, or {BEST}",
        "response_length": f"read rollouts.jsonl; {milder}{_by_token(recipe)}, or {BEST}",
        "student_entropy": f"{milder}{_wider(recipe)}, raise rollouts.sampling.temperature (now "
        f"{sampling.temperature:g}), or {BEST}",
        "truncated_share": "see in rollouts.jsonl whether responses end in loops; lower train.learning_rate (now "
        f"{recipe.train.learning_rate:g}), or raise rollouts.sampling.max_new_tokens (now {sampling.max_new_tokens})",
        "leak_rate": f"read such responses in rollouts.jsonl; {_less_shown(recipe)}{milder}, or {BEST}",
        "informative_share": f"choose questions that the model answers sometimes{_larger_groups(recipe)}",
        "forwarded_share": f"choose questions that the model answers sometimes{_larger_groups(recipe)}",
        "captured_mass": _more_support(recipe),
        "sampler_mismatch": "use float32 on both sides (model.dtype=float32, and the same for the engine), or correct "
        "for it with method.distillation.ratio_cap=2",
        "teacher_gap": "nothing can be gained from such a teacher: show it more (method.context), or choose harder "
        "questions, or ones with worked solutions; selfdistill probe measures it before a run",
    }


def _milder(recipe: Recipe) -> str:
    """Return how to change the student, and a teacher that follows it, more slowly."""
    text = f"lower train.learning_rate (now {recipe.train.learning_rate:g})"
    teacher = recipe.method.teacher
    if teacher.kind == "live":
        return f"{text}, keep the teacher behind the student (method.teacher.kind=moving_average, or initial)"
    if (rate := getattr(teacher, "rate", None)) is None:
        return text
    return f"{text}, let the teacher move less (method.teacher.rate, now {rate:g}) or not at all (kind=initial)"


def _by_token(recipe: Recipe) -> str:
    if recipe.method.reduction.kind == "token_mean":
        return ""
    return ", let long responses count for more (method.reduction.kind=token_mean)"


def _wider(recipe: Recipe) -> str:
    distillation = recipe.method.distillation
    if distillation is None or distillation.divergence == "forward_kl":
        return ""
    return f", set method.distillation.divergence=forward_kl (now {distillation.divergence})"


def _less_shown(recipe: Recipe) -> str:
    if (hidden := getattr(recipe.method.context, "hidden_wrong", None)) is None:
        return ""
    return f"hide more of the reference solution (method.context.hidden_wrong, now {hidden:g}, and hidden_correct), "


def _larger_groups(recipe: Recipe) -> str:
    if (size := getattr(recipe.method.source, "group_size", None)) is None:
        return ""
    text = f", or raise method.source.group_size (now {size})"
    if getattr(recipe.method.context, "buffer", None) == 0:
        text += "; where all rollouts are wrong, method.context.buffer=2 shows earlier successes"
    return text


def _more_support(recipe: Recipe) -> str:
    distillation = recipe.method.distillation
    if distillation is None or distillation.top_k is None:
        return "set method.distillation.support=full"
    text = f"raise method.distillation.top_k (now {distillation.top_k}), set method.distillation.support=full"
    if not distillation.tail:
        text += ", set method.distillation.tail=true"
    if distillation.divergence == "reverse_kl":
        text += ", set method.distillation.divergence=jsd (reverse_kl lets the tail go)"
    return text
