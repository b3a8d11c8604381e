"""The commands that look at a model before, during and after training: ``inspect`` and ``probe``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.argument_types import positive
from selfdistill.errors import RecipeError

if TYPE_CHECKING:
    from selfdistill.analysis.xray import Xray

MEASURE_SECONDS = 10.0
"""For the cost of a step."""


def add_inspect(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``selfdistill inspect`` to the command line."""
    command = sub.add_parser(
        "inspect",
        help="one question's rollouts under a microscope: what the teacher changes, token by token, as a page",
        description="Draw rollouts of a question, score them as training would, and write a page that shows each token "
        "with the student's, the teacher's and the interpolated distribution, and what an update does to it. Nothing "
        "in the run is changed.",
    )
    command.add_argument("target", metavar="RECIPE | RUN", help="YAML file (before training), or run folder")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    command.add_argument("--question", metavar="ID", help="id or number (default: one with right and wrong rollouts)")
    command.add_argument(
        "--rollouts", type=positive, metavar="N", help="to draw (default: the method's group, at least 4)"
    )
    command.add_argument(
        "--checkpoint", default="last", metavar="WHICH", help="of a run: last (default), best, initial, or a step"
    )
    command.add_argument(
        "--from-step", type=positive, metavar="STEP", help="take rollouts that the run saved of this step"
    )
    command.add_argument("--no-update", action="store_true", help="do not show the effect of an update")
    command.add_argument("--out", metavar="FILE", help="of the page (default: inspect.html in the run folder, or here)")
    command.set_defaults(run=inspect, words="overrides")


def add_probe(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``selfdistill probe`` to the command line."""
    command = sub.add_parser(
        "probe",
        help="before training: does the self-teacher know more than the student, and what will it cost",
        description="Let student and self-teacher answer held-out questions, score a batch as training would, and say "
        "whether there is something to learn (exit code 1: the self-teacher is no better). Nothing is trained or "
        "saved.",
    )
    command.add_argument("target", metavar="RECIPE | RUN", help="YAML file (before training), or run folder")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    command.add_argument("--questions", type=positive, default=32, metavar="N", help="to ask (default 32)")
    command.add_argument(
        "--samples", type=positive, metavar="K", help="answers per question (default: the method's group, at least 4)"
    )
    command.add_argument(
        "--checkpoint", default="last", metavar="WHICH", help="of a run: last (default), best, initial, or a step"
    )
    command.add_argument("--no-cost", action="store_true", help="do not measure what a step costs")
    command.add_argument("--json", metavar="FILE", help="also write what was found as JSON")
    command.set_defaults(run=probe, words="overrides")


def inspect(arguments: argparse.Namespace) -> int:
    """``selfdistill inspect TARGET [key=value ...]``: a question's rollouts, token by token, as a page."""
    from selfdistill.analysis.choosing import chosen_group
    from selfdistill.analysis.inspection import inspect as made
    from selfdistill.analysis.subject import open_subject
    from selfdistill.analysis.xray_page import xray_html
    from selfdistill.training.progress import make_progress
    from selfdistill.training.run_folder import replace_text

    if arguments.from_step is not None and not Path(arguments.target).is_dir():
        raise RecipeError("--from-step is about the rollouts that a run has saved; give the folder of a run")
    with (
        make_progress() as progress,
        open_subject(arguments.target, arguments.overrides, arguments.checkpoint, progress) as subject,
    ):
        group, weight = chosen_group(
            subject,
            question=arguments.question,
            siblings=arguments.rollouts,
            saved_step=arguments.from_step,
        )
        xray = made(subject, group, update=not arguments.no_update, weight=weight)
        folder = Path(arguments.target) if subject.folder else Path()
    out = Path(arguments.out or folder / "inspect.html")
    html = xray_html(xray)
    replace_text(out, html)
    print(_summary(xray))
    print(f"{out} ({len(html.encode()) / 1e6:.2f} MB): open it in a browser")
    return 0


def probe(arguments: argparse.Namespace) -> int:
    """``selfdistill probe TARGET [key=value ...]``: 1 if the self-teacher is no better than the student, else 0."""
    from selfdistill.analysis.probe import probe as made
    from selfdistill.analysis.probe import remarks, sections, verdict
    from selfdistill.analysis.subject import open_subject
    from selfdistill.planning.plan import Request, make_plan
    from selfdistill.sections import draw
    from selfdistill.training.progress import make_progress

    with make_progress() as progress:
        with open_subject(arguments.target, arguments.overrides, arguments.checkpoint, progress) as subject:
            found, recipe = made(subject, arguments.questions, arguments.samples), subject.recipe
        del subject  # its memory is wanted for what comes
        plan = None
        if not arguments.no_cost:
            with progress.phase("measuring a step"):
                plan = make_plan(recipe, Request(seconds=MEASURE_SECONDS))
    draw(sections(found, plan), sys.stdout)
    for remark in remarks(found.accuracy):
        print(remark)
    print(verdict(found.accuracy))
    if arguments.json:
        cost = {} if plan is None or plan.step is None else {"step_seconds": plan.step.total}
        Path(arguments.json).write_text(json.dumps(found.to_json() | cost, indent=2) + "\n", encoding="utf-8")
    return 0 if found.accuracy.covered and found.accuracy.gap.high > 0 else 1


def _summary(xray: Xray) -> str:
    """Return what was found, in lines for a terminal."""
    from selfdistill.training.progress import printable

    lines = [
        f"question {printable(xray.question_id)}, {xray.weights}: {xray.pass_rate:.0%} of {len(xray.rollouts)} right"
    ]
    for one in xray.rollouts:
        words = ["right" if one.success else "wrong"]
        if one.tokens is None:
            words.append("not scored: no signal" if one.objective is None else "not scored")
        else:
            words.append(f"{len(one.tokens.ids)} tokens")
            if "divergence" in one.tokens.columns:
                words.append(f"mean divergence {float(one.tokens.columns['divergence'].mean()):.4g}")
            if int(one.tokens.selected.sum()):
                words.append(f"{int(one.tokens.selected.sum())} interpolated")
        if one.context is not None and one.context.overlap is not None and one.context.hidden_ratio is not None:
            words.append(f"overlap {one.context.overlap:.0%}, {one.context.hidden_ratio:.0%} hidden")
        lines.append(f"  rollout {one.sibling}: {', '.join(words)}")
    return "\n".join(lines)
