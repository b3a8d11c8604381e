"""The x-ray's page: the question, what the teacher saw, the panel of a token; for everyone, and small."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from selfdistill.analysis.xray import COLUMNS
from selfdistill.analysis.xray_data import PROBABILITY_STEPS, quantised
from selfdistill.analysis.xray_page import xray_html

needs_browser = pytest.mark.browser


@needs_browser
def test_the_question_and_the_reference_answer_are_shown(opened: Any) -> None:
    words = opened.locator("section", has=opened.locator("h2#question")).inner_text()
    for expected in ("system", "You add.", "user", "What is 17 + 25?", "Reference answer: 42"):
        assert expected in words
    facts = opened.locator("main > dl.facts").inner_text()
    assert all(one in facts for one in ("paint", "before training", "recipes/embedded/paint.yaml", "0.667"))


@needs_browser
def test_the_hidden_part_of_the_solution_is_greyed_out_and_named(opened: Any) -> None:
    hidden = opened.locator("#solution .hidden-part")
    assert hidden.count() == 1
    assert "hidden from the teacher" in hidden.inner_text() and "Then the tens" in hidden.inner_text()
    grey, plain = (
        opened.locator(name).evaluate("(e) => getComputedStyle(e).color") for name in (".hidden-part", "#solution")
    )
    assert grey != plain


@needs_browser
def test_anchors_overlap_and_hidden_ratio_are_said_in_words(opened: Any) -> None:
    assert opened.locator(".chip.found").inner_text() == "✓ 42 found"
    assert opened.locator(".chip.missing").inner_text() == "✗ 7+5=12 missing"
    facts = opened.locator("section[aria-labelledby=context] .facts").inner_text()
    assert facts.split() == ["overlap", "0.5", "hidden", "ratio", "0.35"]
    opened.locator("#teacher-prompt summary").click()
    assert "A partial solution: First add the ones." in opened.locator("#teacher-prompt").inner_text()


@needs_browser
def test_a_rollout_shows_the_sibling_that_its_teacher_saw_and_leads_there(opened: Any) -> None:
    opened.get_by_role("tab", name="Rollout 1").click()
    assert opened.locator("#sibling").inner_text() == "response 0: it is 42."
    assert "Wrong: 43." in opened.locator("#rollout").inner_text()
    opened.locator("a.jump").click()
    opened.frames()
    assert opened.get_by_role("tab", name="Rollout 0").get_attribute("aria-selected") == "true"


@needs_browser
def test_rollouts_are_chosen_with_the_arrow_keys(opened: Any) -> None:
    first = opened.get_by_role("tab", name="Rollout 0")
    assert all(one in first.inner_text() for one in ("✓ success", "reward 1", "200 tokens", "mean divergence"))
    first.focus()
    opened.keyboard.press("ArrowRight")
    assert opened.locator("[role=tab][aria-selected=true]").inner_text().startswith("Rollout 1")
    assert opened.locator("h2#response").inner_text() == "Response, 60 tokens"
    opened.keyboard.press("End")
    assert opened.locator("[role=tab]:focus").inner_text().startswith("Rollout 2")


@needs_browser
def test_a_rollout_without_signal_says_why_and_shows_its_text(opened: Any) -> None:
    opened.get_by_role("tab", name="Rollout 2").click()
    words = opened.locator("#no-signal").inner_text()
    assert "No signal" in words and "weight of its question is 0" in words and "nothing to show its teacher" in words
    assert "response 2: it is 42." in words


@needs_browser
def test_a_rollout_without_a_teacher_shows_the_student_alone(read: Any, fake_xray: ModuleType) -> None:
    table = fake_xray.token_table([0, 1, 2], 16)
    columns = {name: table.columns[name] for name in ("student_logprob", "student_entropy", "weight")}
    table = dataclasses.replace(
        table, columns=columns, teacher=None, interpolated=None, selected=torch.zeros(3, dtype=torch.bool)
    )
    xray = fake_xray.xray([fake_xray.rollout(0, table, context=None, objective="policy")], update=None)
    page = read(xray)
    assert page.locator("#colouring label").count() == 2  # its weight, and the student's entropy
    page.point_at(1)
    assert "no teacher" in page.locator("#panel").inner_text()
    assert page.locator(".chart").count() == 1 and page.locator("#effect").count() == 0


@needs_browser
def test_pointing_and_focusing_show_the_token(opened: Any) -> None:
    assert "idle" in opened.locator("#panel").get_attribute("class")
    opened.point_at(5)
    assert opened.position() == 6
    opened.token(9).focus()
    opened.frames()
    assert opened.position() == 10
    opened.locator("h1").hover()
    opened.frames()
    assert opened.position() == 10, "what is focused stays"


@needs_browser
def test_the_bars_have_the_records_numbers(opened: Any, fake_xray: ModuleType) -> None:
    table = fake_xray.xray().rollouts[0].tokens
    index = int(table.selected.nonzero()[0])
    opened.point_at(index)
    shown = {"student": (table.student, index), "teacher": (table.teacher, index), "target": (table.interpolated, 0)}
    for chart, (top, row) in shown.items():
        assert opened.percentages(chart) == pytest.approx((100 * top.probabilities[row]).tolist(), abs=0.0101)
        ids = opened.locator(f".chart.{chart} li[data-id]").evaluate_all("(all) => all.map((one) => one.dataset.id)")
        assert ids == [str(one) for one in top.ids[row].tolist()]
        own = opened.locator(f".chart.{chart} li.own")
        assert own.count() == 0 or own.get_attribute("data-id") == str(int(table.ids[index]))
    assert opened.locator(".chart li.own").count() > 0
    assert "Interpolated position, 1 of 6" in opened.locator("#panel").inner_text()


@needs_browser
def test_the_figures_are_the_columns(opened: Any, fake_xray: ModuleType) -> None:
    table = fake_xray.xray().rollouts[0].tokens
    opened.point_at(7)
    for name in ("divergence", "student_entropy", "log_ratio", "captured_mass", "weight"):
        shown = opened.number(opened.locator(f"td[data-column={name}]"))
        assert shown == pytest.approx(float(table.columns[name][7]), rel=6e-3, abs=5e-5), name
    effect = opened.locator("#effect tbody tr").first.locator("td")
    before, after, change = (opened.number(effect.nth(at)) for at in range(3))
    assert before == pytest.approx(float(table.columns["student_logprob"][7]), rel=6e-3, abs=5e-5)
    assert change == pytest.approx(after - before, abs=2e-4)


@needs_browser
def test_elsewhere_the_target_is_the_teacher(opened: Any, fake_xray: ModuleType) -> None:
    index = int((~fake_xray.xray().rollouts[0].tokens.selected).nonzero()[0])
    opened.point_at(index)
    assert "target = teacher" in opened.locator("#panel").inner_text()
    assert opened.locator(".chart.target").count() == 0


@needs_browser
def test_a_click_pins_and_escape_lets_go(opened: Any) -> None:
    opened.token(5).click()
    opened.point_at(20)
    assert opened.position() == 6 and "pinned" in opened.locator("#where").inner_text()
    assert opened.token(5).get_attribute("aria-selected") == "true"
    assert opened.evaluate("location.hash") == "#rollout-0-token-6"
    opened.press("Escape")
    opened.point_at(21)
    assert opened.position() == 22 and opened.token(5).get_attribute("aria-selected") is None
    opened.token(30).focus()
    opened.press("Enter")
    assert opened.evaluate("xrayPage.view.area.pinned") == 30


@needs_browser
def test_a_screen_reader_hears_one_sentence_when_the_reader_rests(opened: Any) -> None:
    opened.token(3).focus()
    opened.press(*["ArrowRight"] * 5)
    said = opened.locator("#panel [role=status]")
    assert "Position 5" not in said.text_content()
    opened.locator("#panel [role=status]", has_text="Position 9,").wait_for(state="attached")


@needs_browser
def test_an_address_with_a_token_opens_it(read: Any, fake_xray: ModuleType) -> None:
    page = read(fake_xray.xray(), fragment="#rollout-1-token-12")
    page.frames()
    assert page.locator("h2#response").inner_text() == "Response, 60 tokens"
    assert page.position() == 12 and page.focused() == 11


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    read: Any, fake_xray: ModuleType, accessibility: Callable[[Any], list[str]], width: int, scheme: str
) -> None:
    page = read(fake_xray.xray(), width=width, height=844, color_scheme=scheme)
    assert accessibility(page) == []
    page.locator("details").evaluate_all("(all) => all.forEach((one) => { one.open = true; })")
    page.locator("#search").fill("the")
    page.token(0).focus()
    page.press("3", "n", "Enter")
    assert accessibility(page) == []
    page.get_by_role("tab", name="Rollout 2").click()
    assert accessibility(page) == []


@needs_browser
def test_long_texts_have_boxes_that_can_be_scrolled_with_keys(
    read: Any, fake_xray: ModuleType, accessibility: Callable[[Any], list[str]]
) -> None:
    long = "line of text\n" * 1000
    messages = ({"role": "system", "content": long}, {"role": "user", "content": long})
    context = fake_xray.paint_context(shown=long, messages=messages, solution_parts=((long, False), (long, True)))
    table = fake_xray.token_table([0, 1, 2], 16)
    page = read(fake_xray.xray([fake_xray.rollout(0, table, context=context, feedback=long)], messages=messages))
    page.locator("details").evaluate_all("(all) => all.forEach((one) => { one.open = true; })")
    boxes = page.locator(".long")
    assert boxes.count() == 7 and all(boxes.nth(at).bounding_box()["height"] < 400 for at in range(7))
    assert boxes.evaluate_all("(all) => all.every((one) => one.tabIndex === 0)")
    assert accessibility(page) == []


@needs_browser
def test_a_response_of_no_tokens_breaks_nothing(read: Any, fake_xray: ModuleType) -> None:
    page = read(fake_xray.xray([fake_xray.rollout(0, fake_xray.token_table([], 16))]))
    page.locator("#strip").click()
    page.frames()
    assert page.locator("h2#response").inner_text() == "Response, 0 tokens"


@needs_browser
def test_a_phone_shows_the_token_at_its_bottom_and_scrolls_only_downwards(read: Any, fake_xray: ModuleType) -> None:
    page = read(fake_xray.xray(), width=390, height=844, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not page.locator("#panel").is_visible()
    page.token(12).tap()
    page.frames()
    box = page.locator("#panel").bounding_box()
    assert abs(box["y"] + box["height"] - 844) < 2 and box["height"] < 0.5 * 844
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    place = page.token(12).bounding_box()
    assert place["y"] + place["height"] <= box["y"], "the sheet does not cover its token"
    page.locator("#panel .close").click()
    page.frames()
    assert not page.locator("#panel").is_visible()


@needs_browser
def test_the_theme_button_changes_the_shades_too(opened: Any) -> None:
    colours = []
    for _ in range(2):
        colours.append(opened.token(0).evaluate("(one) => getComputedStyle(one).backgroundColor"))
        opened.locator("#theme").click()
    assert colours[0] != colours[1]


def test_ten_thousand_tokens_stay_below_five_megabytes(fake_xray: ModuleType) -> None:
    words = [f" word{index}" for index in range(5000)]
    ids = torch.randint(5000, (10_000,), generator=torch.Generator().manual_seed(0)).tolist()
    table = fake_xray.token_table([one % 40 for one in ids], 40)
    table = dataclasses.replace(table, ids=torch.tensor(ids, dtype=torch.int32))
    assert table.columns.keys() == COLUMNS.keys()
    assert len(xray_html(fake_xray.xray([fake_xray.rollout(0, table)], words)).encode()) < 5_000_000


def test_probabilities_travel_with_an_error_that_nobody_sees() -> None:
    probabilities = torch.cat([torch.rand(1000), torch.rand(1000) ** 8, torch.tensor([0.0, 1.0])]).unsqueeze(-1)
    back = (quantised(probabilities) / PROBABILITY_STEPS) ** 2
    assert (back - probabilities).abs().max() < 2e-5
    assert quantised(torch.tensor([[math.nan]])).item() == PROBABILITY_STEPS + 1


@needs_browser
@pytest.mark.usefixtures("browser")
def test_the_browser_leaves_other_tests_their_event_loops() -> None:
    async def answer() -> int:
        return 42

    assert asyncio.run(answer()) == 42


def test_the_page_asks_for_nothing_from_elsewhere(fake_xray: ModuleType) -> None:
    html = xray_html(fake_xray.xray())
    assert "http://" not in html and "https://" not in html and "src=" not in html
