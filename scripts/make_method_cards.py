"""Write docs/cards from the methods themselves, so that a card cannot say other than what is computed.

In: the registered methods, their parts, the studies and recipes of recipes/. Out: a page per method and their index.
Run it without arguments after a method or a recipe has changed: ``.venv/bin/python scripts/make_method_cards.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from method_card_failures import failures  # beside this file

from selfdistill.methods import Method, build, names, summary
from selfdistill.methods.describe import describe
from selfdistill.methods.table import COLUMNS, cells
from selfdistill.training.recipe import Recipe, load_recipe
from selfdistill.training.studies import Study, read_study

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
TARGET = ROOT / "docs" / "cards"
PUBLISHED = ("paint-table1", "paint-ablations", "sc_sdpo-table1")
"""The studies that hold the papers' figures at the papers' scale."""

HEAD = "<!-- Written by scripts/make_method_cards.py: change the method, the recipe or the script, then run it. -->\n"


def cards() -> dict[str, str]:
    """Return the text of every page of docs/cards, by file name."""
    return {"index.md": index()} | {f"{name}.md": card(name) for name in names()}


def index() -> str:
    """Return the list of all cards."""
    lines = ["| method | in one line | source | needs |", "|---|---|---|---|"]
    for name in names():
        method = build(name)
        lines.append(f"| [{name}]({name}.md) | {_summary(name)} | {_source(method)} | {_needed(method)} |")
    text = "A card says what one method is made of, what it needs, what was published about it and how it fails. "
    text += "The definitions behind the words are in [the methods, exactly](../methods.md)."
    return f"{HEAD}# Method cards\n\n{text}\n\n" + "\n".join(lines) + "\n"


def card(name: str) -> str:
    """Return the page of one method."""
    method = build(name)
    sections = [
        f"{HEAD}# {name}\n\n{_summary(name)}.\n\nSource: {_source(method)}.",
        f"## What it is made of\n\n{_composition(method)}",
        f"## What it needs\n\n{_needs(method)}",
        f"## Published figures\n\n{_figures(name)}",
        f"## Recipes\n\n{_recipes(name)}",
        f"## How it fails\n\n{_failures(method)}",
        f"## Every setting\n\nPaste it into a recipe under `method:`, or override one setting on the command line, for "
        f"example `{_example(method)}`.\n\n```yaml\n{describe(method)}```",
    ]
    return "\n\n".join(sections) + "\n"


def _summary(name: str) -> str:
    """Return what a method is in one line, its section as a link."""
    text = summary(name)
    linked = re.sub(r"METHODS section (\d)", lambda match: f"[methods, {match[1]}]({_section(match[1])})", text)
    return linked[0].upper() + linked[1:]


@cache
def _section(number: str) -> str:
    """Return the link to a section of the page on the methods."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    heading = re.search(rf"^## ({number}\. .*)$", page, re.MULTILINE)
    assert heading is not None, f"docs/methods.md has no section {number}"
    words = re.sub(r"[^\w\s-]", "", heading[1]).lower().split()
    return f"../methods.md#{'-'.join(words)}"


def _source(method: Method) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", method.paper)


def _composition(method: Method) -> str:
    pairs = list(zip(COLUMNS, cells(method), strict=True))[1:]
    return "\n".join(["| part | setting |", "|---|---|", *(f"| {part} | {cell} |" for part, cell in pairs)])


def _needed(method: Method) -> str:
    columns = ["prompt", *method.requires]
    return ", ".join(f"`{column}`" for column in columns) + f"; {_rows(method)}"


def _rows(method: Method) -> str:
    if method.source.kind == "reference_solutions":
        return "samples nothing"
    size = method.source.group_size
    return f"{size} rollout{'s' if size > 1 else ''} per question"


def _needs(method: Method) -> str:
    lines = [
        f"- Columns: {_needed(method).split(';')[0]}, and `answer` where the task's verifier asks for it. "
        + ("Every" if "solution" in method.requires else "No")
        + " training question needs a worked solution.",
        f"- Sampling: {_rows(method)}.",
    ]
    if method.source.kind != "reference_solutions":
        drives = "decides what is learned" if _uses_verdicts(method) else "is run and logged, and decides nothing"
        lines.append(f"- A verifier: it {drives}.")
    if getattr(method.weighting, "offline", False):
        lines.append("- One pass over all training questions before training, whose rollout tokens count.")
    if method.distillation is not None:
        lines.append(f"- A teacher. {(type(method.teacher).__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


def _uses_verdicts(method: Method) -> bool:
    return method.policy is not None or method.context.kind == "sibling_success" or method.weighting.kind != "uniform"


def _example(method: Method) -> str:
    if method.distillation is not None:
        return "method.distillation.token_clip=0.5 method.distillation.entry_clip=null"
    return "method.policy.clip_high=0.2" if method.policy is not None else "method.reduction.over=informative"


@cache
def _loaded(path: Path) -> Recipe:
    return load_recipe(path)


@cache
def _study(name: str) -> Study:
    return read_study(RECIPES / "studies" / f"{name}.yaml")


def _figures(name: str) -> str:
    tables = [table for study in PUBLISHED if (table := "\n".join(_table(study, name)))]
    if not tables:
        return "None at the papers' scale is known to us."
    ours = "What ours gave, at a much smaller scale, and which claims held there: [papers](../papers.md)."
    return "\n\n".join([*tables, ours])


def _table(study: str, name: str) -> Iterator[str]:
    found = _study(study)
    rows = [
        (group, row)
        for group in found.groups
        for row in group.rows
        if row.published and _loaded(Path(row.recipe)).method.name == name
    ]
    if not rows:
        return
    columns = list(dict.fromkeys(column for _, row in rows for column in row.published))
    yield f"| row | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    shown: set[str] = set()
    for group, row in rows:
        if group.published and group.name not in shown:
            yield f"| {group.path('base')} | {_figures_of(group.published, columns)} |"
        shown.add(group.name)
        yield f"| {group.path(row.name)} | {_figures_of(row.published, columns)} |"
    yield f"\n{found.published}."


def _figures_of(published: object, columns: list[str]) -> str:
    assert hasattr(published, "get")
    return " | ".join(str(published.get(column, "")) for column in columns)


def _recipes(name: str) -> str:
    folders: dict[str, list[str]] = {}
    for path in sorted(RECIPES.rglob("*.yaml")):
        local = path.relative_to(RECIPES)
        if local.parts[0] in ("common", "studies") or _loaded(path).method.name != name:
            continue
        folders.setdefault(local.parent.as_posix(), []).append(local.name)
    lines = [f"- `recipes/{folder}/`: {', '.join(f'`{file}`' for file in files)}" for folder, files in folders.items()]
    return "\n".join(lines)


def _failures(method: Method) -> str:
    return "\n".join(f"- {sentence}" for sentence in failures(method))


if __name__ == "__main__":
    TARGET.mkdir(exist_ok=True)
    for file, text in cards().items():
        (TARGET / file).write_text(text, encoding="utf-8")
    print(f"wrote {len(cards())} pages to {TARGET.name}")
