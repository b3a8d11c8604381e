"""Write docs/recipes.md from the recipe's own definitions, so that the reference cannot drift from the code.

Run it without arguments after a setting has changed: ``.venv/bin/python scripts/make_recipe_reference.py``.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from selfdistill.methods import build, names, summary
from selfdistill.methods.describe import describe
from selfdistill.training.recipe import Recipe
from selfdistill.validation import setting_types

TARGET = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"

HEAD = """# Recipes

A recipe is a YAML file with the sections below; everything but `method` has a default. `extends: other.yaml` starts
from another recipe. Any setting can be overridden on the command line, and an unknown name is an error:
`selfdistill train recipe.yaml train.steps=50 method.context.hidden_wrong=0.25`.

This page is written by `scripts/make_recipe_reference.py` from the definitions in the code.
"""


def reference() -> str:
    """Return the page."""
    parts = [HEAD]
    for name, field in Recipe.model_fields.items():
        if name == "method":
            continue
        section = next((kind for kind in [field.annotation] if isinstance(kind, type) and is_section(kind)), None)
        if section is None:
            parts.append(f"\n## `{name}`\n\n{clean(field.description or '')}\n")
        else:
            parts.append(f"\n## `{name}`\n\n{first_line(section)}\n\n{table(section, name)}\n")
    parts.append("\n## `method`\n\nA method's name, or `name:` with what differs. Each, with every setting:\n")
    for name in names():
        parts.append(f"\n### {name}\n\n{summary(name)}.\n\n```yaml\n{describe(build(name))}```\n")
    return "".join(parts)


def is_section(kind: type) -> bool:
    """Say whether a type has settings of its own."""
    return issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind)


def table(section: type, path: str) -> str:
    """Return a table of a section's settings, those of nested sections with dotted names."""
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows(section, path)])


def rows(section: type, path: str) -> list[str]:
    """Return the lines of a section's table."""
    fields: dict[str, Any] = getattr(section, "__pydantic_fields__", {})
    lines = []
    for name, annotation in setting_types(section).items():
        kinds = (annotation, *typing.get_args(annotation))
        inner = [kind for kind in kinds if isinstance(kind, type) and is_section(kind)]
        default = fields[name].get_default(call_default_factory=True)
        shown = "see below" if inner and default is not None else f"`{'null' if default is None else default}`"
        lines.append(f"| `{path}.{name}` | {shown} | {clean(fields[name].description or '')} |")
        for kind in inner:
            lines += rows(kind, f"{path}.{name}")
    return lines


def clean(text: str) -> str:
    """Return a docstring as one line of Markdown for a table."""
    return " ".join(re.sub(r":\w+:`([^`]*)`", r"`\1`", text).replace("``", "`").split()).replace("|", "\\|")


def first_line(section: type) -> str:
    """Return the first line of a section's docstring."""
    return (section.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    print(f"wrote {TARGET.name}: {len(reference().splitlines())} lines")
