"""The report: what is in it, how it behaves in a browser, and the command that writes it."""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from selfdistill.analysis.report import build, signature, write_figures
from selfdistill.analysis.report_page import report_html
from selfdistill.analysis.results import evaluated
from selfdistill.analysis.samples import LONGEST, samples
from selfdistill.analysis.summary import cost_table, results_table
from selfdistill.errors import DataError, SelfDistillError
from selfdistill.evaluation.compare import compare_results
from selfdistill.report_commands import add_report, default_page

sys.path.insert(0, str(Path(__file__).parent))
import fake_run

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> "quoted" \u202eturned\u200b & $x_1$'


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a page about three runs, two of them seeds of one series, with everything that a run may have."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [fake_run.make(folder / f"sc{seed}", seed=seed, response=HOSTILE) for seed in (0, 1)]
    runs.append(fake_run.make(folder / "grpo", recipe="grpo"))
    for run in runs[:2]:
        fake_run.warn(run, 4)
        fake_run.teach(run, 6)
        fake_run.diverge(run)
    return report_html(build(runs))


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_report(parser.add_subparsers())
    parsed = parser.parse_args(["report", *words])
    code: int = parsed.run(parsed)
    return code


def test_the_summary_has_first_last_and_best_with_intervals_and_the_paired_difference(tmp_path: Path) -> None:
    report = build([fake_run.make(tmp_path / "run")])
    table = results_table(report.series, report.found)
    assert table is not None
    [(one, cells)] = table.rows
    row = dict(zip(table.header[1:], cells, strict=True))
    evaluations = one.runs[0].evaluations
    first, last = evaluations[0], evaluations[12]
    assert row["step"] == "12"
    assert row["avg@3, %"].startswith(f"{100 * last.avg.mean:.1f} [{100 * last.avg.low:.1f}, ")
    assert row["first avg@3, %"].endswith("(step 0)")
    gain = compare_results(first, last).avg
    assert row["last minus first, points"].startswith(f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}")
    assert "With one seed" in table.caption and "6 held-out questions" in table.caption


def test_several_series_are_compared_with_the_untrained_model(tmp_path: Path) -> None:
    report = build([fake_run.study(tmp_path / "study", {"a": [], "b": []}, seeds=2)])
    table = results_table(report.series, report.found)
    assert table is not None
    assert [one.label for one, _ in table.rows] == ["base", "a", "b"]
    place = table.header.index("against base, points") - 1
    base, run = (report.found[place].results for place in (0, 1))
    expected = compare_results(base[0], run[12]).avg.mean
    assert table.rows[1][1][place].startswith(f"{100 * expected:+.1f} [")


def test_the_cost_counts_steps_tokens_and_seconds_over_the_seeds(tmp_path: Path) -> None:
    report = build([fake_run.make(tmp_path / f"{seed}", seed=seed, finished=seed == 0) for seed in (0, 1)])
    [(_, cells)] = cost_table(report.series).rows
    assert cells == ("2 (0, 1)", "1 of 2 finished", "12", "1,200", "48.0", "1,000", "500")


def test_pass_at_k_of_several_seeds_is_their_mean(tmp_path: Path) -> None:
    [one] = build([fake_run.make(tmp_path / f"{seed}", seed=seed) for seed in (0, 1)]).series
    found = evaluated(one)
    each = [run.evaluations[0].pass_at[2].mean for run in one.runs]
    assert found.passes(0).mean == pytest.approx(sum(each) / 2)


def test_a_run_without_steps_has_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    report = build([fake_run.make(tmp_path / "run", steps=0, evaluate_every=0, finished=False)])
    assert report.charts == []
    page = report_html(report)
    assert "Nothing has been evaluated yet" in page and "no step has been taken" in page


def test_samples_are_few_short_and_say_what_they_leave_out(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run", steps=60, evaluate_every=20, response="start " + "x" * 9000 + " end")
    found = samples(build([folder]).series)
    text = sum(len(one["response"]) for one in found.records)
    assert text < 610_000
    one = found.records[0]
    assert len(one["response"]) < LONGEST + 100 and one["response"].endswith(" end") and one["cut"] > 0
    assert "long responses lack their middle" in found.note
    assert {record["source"] for record in found.records} == {"held-out", "training"}


def test_a_page_of_many_long_responses_stays_small_and_says_so(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run", steps=60, response="long response " * 400)
    report = build([folder])
    assert "did not fit into the page" in report.samples.note
    assert len(report_html(report)) < 3_000_000


def test_what_a_model_wrote_is_never_markup(html: str) -> None:
    assert "<script>alert" not in html and "<img src=x" not in html and "\u202e" not in html


def test_a_report_is_called_by_its_runs_and_one_of_many_by_its_study(tmp_path: Path) -> None:
    folder = fake_run.study(tmp_path / "placements", {name: [] for name in "abcd"})
    assert build([folder / "a-seed0", folder / "b-seed0"]).title == "a, b"
    assert build([folder]).title == "placements"


def test_the_same_runs_make_the_same_page(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run", recipe="sft", steps=2)
    assert report_html(build([folder])) == report_html(build([folder]))


def test_a_missing_matplotlib_is_one_sentence_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SelfDistillError, match=r"pip install 'selfdistill\[report\]'"):
        build([fake_run.make(tmp_path / "run")])


def test_figures_are_written_under_names_of_their_own(tmp_path: Path) -> None:
    report = build([fake_run.make(tmp_path / "run", steps=3, evaluate_every=0)])
    paths = write_figures(report, tmp_path / "figures", ["svg"])
    assert len(set(paths)) == len(report.charts) == len(list((tmp_path / "figures").iterdir()))
    with pytest.raises(DataError, match="--format has 'gif'"):
        write_figures(report, tmp_path / "figures", ["gif"])


@pytest.mark.browser
def test_checkboxes_hide_and_show_a_series_in_all_figures(html: str, browser_page: Any) -> None:
    page = browser_page.open_html(html)
    shown = "#chart-length .series-1"
    assert page.locator(shown).first.is_visible()
    page.locator("#shown").get_by_label("grpo").uncheck()
    assert page.locator(".plot .series-1:visible").count() == 0
    assert page.locator("#chart-length .series-0").first.is_visible()
    page.reload()
    page.wait_for_function("() => [...document.querySelectorAll('#shown input')].some((one) => !one.checked)")
    assert not page.locator("#shown").get_by_label("grpo").is_checked(), "the choice survives a reload"
    page.locator("#shown").get_by_label("grpo").check()
    assert page.locator(shown).first.is_visible()


@pytest.mark.browser
def test_filters_narrow_the_samples_and_pages_turn(html: str, browser_page: Any) -> None:
    page = browser_page.open_html(html)
    assert page.locator(".rollout").count() == 10
    first = page.locator("#found").inner_text()
    page.get_by_role("button", name="Next").click()
    assert page.locator("#found").inner_text() != first
    page.locator("#filters").get_by_label("Verdict").select_option("wrong")
    assert page.locator(".rollout.right").count() == 0 and page.locator(".rollout.wrong").count() > 0
    page.locator("#filters").get_by_label("From").select_option("held-out")
    page.locator("#filters").get_by_label("Question").select_option("held-out:4")
    page.locator("#filters").get_by_label("Step").select_option("0")
    assert set(page.locator(".question strong").all_inner_texts()) == {"held-out:4"}
    assert all("step 0" in text for text in page.locator(".rollout p").all_inner_texts())
    page.locator("#filters").get_by_label("Text").fill("no such words")
    assert page.locator("#found").inner_text() == "No rollout matches."


@pytest.mark.browser
def test_the_same_question_is_shown_over_the_steps(html: str, browser_page: Any) -> None:
    page = browser_page.open_html(html)
    page.locator("#filters").get_by_label("Question").select_option("held-out:2")
    page.locator("#filters").get_by_label("Run").select_option("0")
    steps = [re.search(r"step (\d+)", text) for text in page.locator(".rollout p").all_inner_texts()]
    assert [int(found.group(1)) for found in steps if found] == [0, 0, 6, 6, 12, 12]


@pytest.mark.browser
def test_hostile_responses_are_shown_as_text(html: str, browser_page: Any) -> None:
    page = browser_page.open_html(html)
    page.locator("#filters").get_by_label("Run").select_option("0")
    shown = page.locator(".rollout pre").first.inner_text()
    assert "<img src=x onerror=alert(2)>" in shown and "⟨U+202E⟩turned⟨U+200B⟩" in shown
    assert page.locator("main img").count() == 0


@pytest.mark.browser
def test_the_numbers_of_a_figure_can_be_seen_and_downloaded(html: str, browser_page: Any) -> None:
    page = browser_page.open_html(html, accept_downloads=True)
    details = page.locator("#chart-length .numbers")
    details.locator("summary").click()
    assert details.locator("tbody tr").first.locator("td").all_inner_texts() == ["sc_sdpo (2 seeds)", "1", "21.5"]
    with page.expect_download() as waiting:
        details.get_by_role("button", name="Download CSV").click()
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert waiting.value.suggested_filename == "length.csv"
    assert text.splitlines()[:2] == ["run,step,response_length", "sc_sdpo (2 seeds),1,21.5"]


@pytest.mark.browser
def test_warnings_stand_at_the_top_with_evidence_and_remedy(html: str, browser_page: Any) -> None:
    page = browser_page.open_html(html)
    assert page.locator("h2").first.inner_text() == "Warnings"
    said = page.locator(".warnings li").first.inner_text()
    assert "threshold 0.05" in said and "step 4" in said and "method.context.hidden_wrong=0.5" in said


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_accessible_and_as_wide_as_the_screen(
    html: str, browser_page: Any, accessibility: Callable[[Any], list[str]], width: int, theme: str
) -> None:
    page = browser_page.open_html(html, width=width, color_scheme=theme)
    page.locator("#chart-length summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert accessibility(page) == []


@pytest.mark.browser
def test_a_watched_page_reloads_itself_where_it_was_until_it_is_paused(tmp_path: Path, browser_page: Any) -> None:
    report = build([fake_run.make(tmp_path / "run", finished=False)])
    page = browser_page.open_html(report_html(report, refresh=60))
    page.clock.install()
    page.reload()
    page.locator("#filters").get_by_label("Verdict").select_option("wrong")
    page.locator("#chart-loss summary").click()
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 700)")
    with page.expect_event("load"):
        page.clock.fast_forward(61_000)
    assert page.evaluate("window.scrollY") == 700
    assert page.locator("#filters").get_by_label("Verdict").input_value() == "wrong"
    assert page.locator("#chart-loss tbody tr").count() == 12
    page.get_by_role("button", name="Pause").click()
    page.evaluate("window.before = true")
    page.clock.fast_forward(61_000)
    page.wait_for_timeout(200)
    assert page.evaluate("window.before")
    assert page.get_by_role("button", name="Go on").is_visible()


def test_the_command_prints_where_the_page_is_and_what_is_not_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fake_run.make(tmp_path / "run", steps=3, evaluate_every=0)
    assert command(str(folder), "--title", "My <run>", "--figures", str(tmp_path / "f"), "--format", "svg") == 0
    said = capsys.readouterr().out
    assert str(folder / "report.html") in said and "MB" in said
    assert "not there: Accuracy on held-out questions: nothing has been evaluated yet" in said
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<h1>My &lt;run&gt;</h1>" in page and 'id="watch"' not in page
    assert (tmp_path / "f" / "loss.svg").exists()


def test_watching_writes_again_until_the_run_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fake_run.make(tmp_path / "run", steps=3, evaluate_every=0, finished=False)
    watcher = threading.Thread(target=command, args=(str(folder), "--watch", "--every", "1"))
    watcher.start()
    page = folder / "report.html"
    deadline = time.monotonic() + 30
    while not page.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert 'data-seconds="1"' in page.read_text(encoding="utf-8")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(fake_run.step_metrics(4)) + "\n")
    (folder / "result.json").write_text('{"finished": true, "step": 4}', encoding="utf-8")
    watcher.join(timeout=30)
    assert not watcher.is_alive()
    assert 'id="watch"' not in page.read_text(encoding="utf-8"), "a finished run's page does not reload"
    assert "all runs are finished" in capsys.readouterr().out


def test_nothing_is_written_while_nothing_changes(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run")
    before = signature([folder])
    assert signature([folder]) == before
    (folder / "report.html").write_text("", encoding="utf-8")
    assert signature([folder]) == before, "the page itself is no change"
    fake_run.warn(folder, 3)
    assert signature([folder]) != before


def test_a_page_about_several_runs_lies_beside_them(tmp_path: Path) -> None:
    assert default_page([tmp_path / "a"]) == tmp_path / "a" / "report.html"
    assert default_page([tmp_path / "a", tmp_path / "b"]) == tmp_path / "report.html"
    assert default_page([tmp_path / "a", tmp_path / "x" / "b"]) == Path("report.html")


def test_a_folder_as_the_page_is_refused(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run")
    with pytest.raises(DataError, match=r"--out is .* a folder; name a file"):
        command(str(folder), "--out", str(tmp_path))
