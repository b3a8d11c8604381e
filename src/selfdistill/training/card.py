"""The model card that goes with a trained model."""

from __future__ import annotations

import yaml

from selfdistill import __version__
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.methods import as_data
from selfdistill.training.recipe import Recipe


def model_card(recipe: Recipe, steps: int, evaluations: dict[int, EvaluationResult]) -> str:
    """Return a README that states method, data, settings and what was measured."""
    method = yaml.safe_dump(as_data(recipe.method), sort_keys=False)
    settings = recipe.model_dump(mode="json", include={"rollouts", "train", "evaluation", "data"})
    table = "\n".join(f"| {step} | {result} |" for step, result in sorted(evaluations.items()))
    return f"""---
library_name: {"peft" if recipe.model.lora else "transformers"}
pipeline_tag: text-generation
tags: [self-distillation, {recipe.method.name}]
---
# {recipe.name}

Trained with selfdistill {__version__} by **{recipe.method.name}** ({recipe.method.paper}) for {steps} steps from `{recipe.model.path}`.

{recipe.notes}

## Measured
| step | evaluation |
|---|---|
{table or "| - | not evaluated |"}

Intervals are bootstrapped over problems; they do not include the variation between training seeds.

## Method
```yaml
{method}```

## Data and settings
```yaml
{yaml.safe_dump(settings, sort_keys=False)}```
"""
