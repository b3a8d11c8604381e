"""The model card that goes with a trained model."""

from __future__ import annotations

from collections.abc import Mapping

from selfdistill import __version__
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.methods import as_data
from selfdistill.training.recipe import Recipe
from selfdistill.training.recipe_file import dump_yaml


def model_card(recipe: Recipe, steps: int, evaluations: Mapping[int, EvaluationResult]) -> str:
    """Return a README that states method, data, settings and what was measured."""
    method = recipe.method
    settings = recipe.model_dump(mode="json", include={"model", "data", "rollouts", "train", "evaluation"})
    data = f"`{recipe.data.train}`" if recipe.data.train else f"generated questions of the task `{recipe.data.task}`"
    parts = [
        "---",
        f"library_name: {'peft' if recipe.model.lora else 'transformers'}",
        "pipeline_tag: text-generation",
        f"tags: [self-distillation, {method.name}]",
        "---",
        f"# {recipe.name}\n",
        f"Trained with selfdistill {__version__} by **{method.name}** ({method.paper}) for {steps} "
        f"{'step' if steps == 1 else 'steps'} from `{recipe.model.path}` on {data}, "
        f"{'LoRA adapters only' if recipe.model.lora else 'all weights'}.",
        *([f"\n{recipe.notes.strip()}"] if recipe.notes.strip() else []),
        "\n## Measured on held-out questions\n",
        _measurements(evaluations),
        "\n## Method\n",
        f"```yaml\n{dump_yaml(as_data(method))}```",
        "\n## Data and settings\n",
        f"```yaml\n{dump_yaml(settings)}```\n",
    ]
    return "\n".join(parts)


def _measurements(evaluations: Mapping[int, EvaluationResult]) -> str:
    if not evaluations:
        return "Not evaluated: the recipe has no held-out questions."
    rows = {step: result.row() for step, result in sorted(evaluations.items())}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"| step | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {step} | {' | '.join(row.get(name, '') for name in names)} |" for step, row in rows.items()]
    problems, level = next((one.problems, one.settings.get("level", 0.95)) for one in evaluations.values())
    lines.append(
        f"\nIn percent of {problems} problems, lengths in tokens. Brackets are {100 * level:.0f}% bootstrap intervals "
        "over problems; they do not include the variation between training seeds."
    )
    return "\n".join(lines)
