"""Tables: what is in the cells, and the four formats, from lines that are made up."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from selfdistill.evaluation.compare import compare_results
from selfdistill.evaluation.generations import Generation
from selfdistill.evaluation.result import EvaluationResult, summarise
from selfdistill.training.jobs import Cost
from selfdistill.training.outcomes import Line
from selfdistill.training.tables import Table, as_json, as_rows, comma_separated, latex, markdown


def result(*successes: str) -> EvaluationResult:
    """Return the result of problems whose samples are ``1`` (right) or ``0``."""
    generations = [
        Generation(
            question_id=f"q{place}",
            sibling=sibling,
            messages=(),
            response="",
            answer=one,
            success=one == "1",
            reward=float(one),
            finish_reason="stop",
            tokens=10,
            seed=0,
            settings={},
        )
        for place, samples in enumerate(successes)
        for sibling, one in enumerate(samples)
    ]
    return summarise(generations)


BASE, BETTER, BEST = result("0001", "0000"), result("0011", "1111"), result("1111", "1111")


def line(label: str, *results: EvaluationResult, group: str = "", against: EvaluationResult | None = None) -> Line:
    trained = label != "base"
    return Line(
        label=label,
        group=group,
        results=results,
        costs=tuple(Cost(40, 1000 * (seed + 1), 0.5) for seed in range(len(results))) if trained else (),
        against_base=compare_results(BASE, results) if trained else None,
        against_row=compare_results(against, results) if against else None,
        published={"mean@16": 71.3} if trained else {},
        folders=tuple(Path(f"runs/{label}-seed{seed}") for seed in range(len(results))),
    )


@pytest.fixture
def table() -> Table:
    lines = (line("base", BASE), line("sdpo", BETTER, BEST), line("a_b & 50%", BEST, against=BETTER))
    return Table(lines, caption="Three rows", against="sdpo", published="a paper", unfinished=("grpo seed 0 failed",))


def rows(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table, without the rule."""
    return [row[2:-2].split(" | ") for row in text.splitlines() if row.startswith("| ")]


def test_the_markdown_table_has_scores_differences_costs_and_published_numbers(table: Table) -> None:
    text = markdown(table)
    header, base, sdpo, other = rows(text)
    assert header[:5] == ["run", "avg@4, %", "maj@4, %", "pass@4, %", "avg against base, points"]
    assert header[5] == "avg against sdpo, points"
    assert header[6:] == [
        "seeds",
        "steps",
        "rollout tokens",
        "seconds per step",
        "tokens per response",
        "published mean@16",
    ]
    assert base[1].startswith("12.5 [") and base[4:10] == ["", "", "", "0", "", ""] and base[-1] == ""
    assert sdpo[1].startswith("87.5 [") and sdpo[4].startswith("+75.0 [") and sdpo[5] == ""
    assert sdpo[6:] == ["2", "40", "1,500", "0.50", "10.0", "71.3"]
    assert other[5].startswith("+25.0 [")
    assert text.startswith("Three rows\n\n| run |")


def test_the_notes_say_what_the_brackets_are_and_what_is_missing(table: Table) -> None:
    notes = table.notes()
    assert notes[0].startswith("2 held-out problems; brackets are 95% bootstrap intervals over problems only")
    assert notes[-2:] == ["Published: a paper.", "Not finished: grpo seed 0 failed."]
    assert "over problems and seeds." in Table(table.lines[:2]).notes()[0]
    assert len(Table(table.lines[:2]).notes()) == 1


def test_groups_have_a_column_of_their_own_and_their_own_numbers_of_problems(table: Table) -> None:
    grouped = Table((replace(table.lines[0], group="physics"), replace(table.lines[1], group="physics")))
    assert rows(markdown(grouped))[1][:2] == ["physics", "base"]
    assert grouped.notes()[0].startswith("2 held-out problems (physics); brackets")
    assert json.loads(json.dumps(as_json(grouped.lines[0])))["group"] == "physics"


def test_several_groups_are_averaged_with_equal_weight_whatever_their_numbers_of_problems() -> None:
    more = result("0000", "0000", "0000", "1111")
    lines = (
        line("base", BASE, group="a"),
        line("sdpo", BEST, group="a"),
        line("grpo", BETTER, group="a"),
        replace(line("base", more), group="b"),
        replace(line("sdpo", BETTER, BEST), results=(more, more), against_base=None, group="b"),
    )
    table = Table(lines, against="sdpo")
    base, sdpo = table.averages()
    assert [one.label for one in (base, sdpo)] == ["base", "sdpo"]  # grpo is in one group only
    assert base.avg.mean == pytest.approx((0.125 + 0.25) / 2)
    assert sdpo.against_base is not None and sdpo.against_base.mean == pytest.approx((1 - 0.125 + 0) / 2)
    assert base.against_base is None and sdpo.against_row is None
    second = markdown(table).split("\n\n")[1]
    assert rows(second)[0][:2] == ["mean over 2 groups", "avg, %"]
    assert rows(second)[2][0] == "sdpo"
    first, second = latex(table).split("\n\n")
    assert first.endswith("\\end{tabular}") and second.startswith(
        "\\begin{tabular}{lrrrr}\n\\toprule\nmean over 2 groups &"
    )
    assert "sdpo & 62.5 [" in second and second.endswith("\\end{tabular}\n")
    means = [row for row in csv.DictReader(io.StringIO(comma_separated(table))) if row["group"] == "mean"]
    assert [(row["run"], row["avg"]) for row in means] == [("base", "18.75"), ("sdpo", "62.5")]
    assert [row["group"] for row in as_rows(table)] == ["a", "a", "a", "b", "b", "mean", "mean"]
    assert Table(lines[:3]).averages() == []


def test_the_csv_has_numbers_only(table: Table) -> None:
    base, sdpo, other = csv.DictReader(io.StringIO(comma_separated(table)))
    assert (base["run"], base["against_base"], base["rollout_tokens"], base["steps"]) == ("base", "", "", "0.0")
    assert float(sdpo["avg"]) == 87.5 and float(sdpo["against_base"]) == 75.0
    assert float(sdpo["avg_low"]) <= 87.5 <= float(sdpo["avg_high"])
    assert (float(sdpo["rollout_tokens"]), sdpo["published mean@16"], sdpo["seeds"]) == (1500.0, "71.3", "2")
    assert float(other["against_row"]) == 25.0 and other["run"] == "a_b & 50%"


def test_latex_is_escaped_and_has_one_column_per_cell(table: Table) -> None:
    text = latex(table)
    body = [row for row in text.splitlines() if row.endswith(r"\\")]
    assert len({row.count(" & ") for row in body}) == 1
    assert text.splitlines()[0] == "% Three rows"
    assert r"a\_b \& 50\% & 100.0 [100.0, 100.0]" in text
    assert r"\begin{tabular}{lrrrrrrrrrrr}" in text and text.endswith("\\end{tabular}\n")


def test_the_json_keeps_what_each_seed_came_to(table: Table) -> None:
    row = json.loads(json.dumps(as_json(table.lines[1])))
    assert row["per_seed_avg"] == [0.75, 1.0] and row["per_seed_rollout_tokens"] == [1000, 2000]
    assert row["against_base"]["problems"] == 2 and row["published"] == {"mean@16": 71.3}
    assert row["folders"] == ["runs/sdpo-seed0", "runs/sdpo-seed1"]
