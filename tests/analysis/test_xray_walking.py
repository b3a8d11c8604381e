"""Walking through an x-ray with the keyboard, its filters and its overview."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

needs_browser = pytest.mark.browser


@needs_browser
def test_one_token_is_reached_by_tab_and_the_rest_by_arrows(opened: Any) -> None:
    assert opened.locator(".t[tabindex='0']").count() == 1
    opened.token(0).focus()
    assert opened.press("ArrowRight", "ArrowRight", "ArrowRight") == 3
    assert opened.press("ArrowLeft") == 2
    assert opened.press("End") == 199 and opened.press("ArrowRight") == 199
    assert opened.press("Home") == 0 and opened.press("ArrowLeft") == 0
    assert opened.locator(".t[tabindex='0']").count() == 1


@needs_browser
def test_up_and_down_go_by_lines(opened: Any) -> None:
    opened.token(0).focus()
    below = opened.press("ArrowDown")
    places = opened.evaluate(
        "([a, b]) => [a, b].map((i) => xrayPage.view.area.spans[i].getBoundingClientRect().top)", [0, below]
    )
    assert 0 < below < 20 and places[1] > places[0]
    assert opened.press("ArrowUp") < 3


@needs_browser
def test_letters_go_to_interpolated_positions_and_to_large_divergences(opened: Any, fake_xray: ModuleType) -> None:
    table = fake_xray.xray().rollouts[0].tokens
    selected = table.selected.nonzero().flatten().tolist()
    opened.token(0).focus()
    start = [at for at in selected if at > 0]
    assert [opened.press("n") for _ in start] == start
    assert opened.press("n") == selected[0], "after the last comes the first"
    assert opened.press("p") == selected[-1]
    opened.press("Home")
    largest = sorted(table.columns["divergence"].topk(2).indices.tolist())
    assert {opened.press("m"), opened.press("m")} == set(largest)
    assert opened.press("M") in largest


@needs_browser
def test_the_keys_are_listed_and_a_question_mark_opens_the_list(opened: Any) -> None:
    help_text = opened.locator("#help")
    assert help_text.locator("summary").is_visible() and help_text.get_attribute("open") is None
    opened.token(0).focus()
    opened.press("?")
    assert help_text.get_attribute("open") is not None
    words = help_text.inner_text()
    assert all(one in words for one in ("Home", "Escape", "interpolated", "line by line", "colouring"))


@needs_browser
def test_letters_that_are_typed_are_no_commands(opened: Any) -> None:
    opened.locator("#search").focus()
    opened.keyboard.type("n3?")
    assert opened.evaluate("xrayPage.chosen") == "divergence" and opened.locator("#search").input_value() == "n3?"


@needs_browser
def test_only_interpolated_positions_can_be_kept(opened: Any, fake_xray: ModuleType) -> None:
    selected = fake_xray.xray().rollouts[0].tokens.selected.tolist()
    opened.locator("#only-interpolated").check()
    opened.frames()
    assert opened.bright() == [index for index, one in enumerate(selected) if one]
    assert opened.locator("#kept").inner_text().startswith("6 of 200 tokens")
    opened.locator("#clear").click()
    opened.frames()
    assert opened.locator(".t.dim").count() == 0


@needs_browser
def test_only_the_largest_values_can_be_kept(opened: Any, fake_xray: ModuleType) -> None:
    values = fake_xray.xray().rollouts[0].tokens.columns["divergence"]
    opened.locator("#threshold").fill("90")
    opened.frames()
    assert opened.bright() == sorted(values.topk(20).indices.tolist())
    assert "top 10 %" in opened.locator("#threshold-value").inner_text()


@needs_browser
def test_text_can_be_found_in_tokens(opened: Any, fake_xray: ModuleType) -> None:
    opened.locator("#search").fill("CARRY")
    opened.frames()
    wanted = [index for index in range(200) if fake_xray.WORDS[index % 16] == " carry"]
    assert opened.bright() == wanted
    assert opened.locator("#kept").inner_text().startswith(f"{len(wanted)} of 200")


@needs_browser
def test_interpolated_positions_are_outlined_and_listed(opened: Any, fake_xray: ModuleType) -> None:
    selected = fake_xray.xray().rollouts[0].tokens.selected.nonzero().flatten().tolist()
    outlined = opened.locator(".t.interpolated").evaluate_all("(all) => all.map((one) => Number(one.dataset.i))")
    assert outlined == selected
    assert "inset" in opened.token(selected[0]).evaluate("(one) => getComputedStyle(one).boxShadow")
    opened.locator("#interpolated-list summary").click()
    opened.locator("#interpolated-list button").nth(2).click()
    assert opened.focused() == selected[2]


@needs_browser
def test_a_click_into_the_overview_goes_there(opened: Any) -> None:
    strip = opened.locator("#strip")
    width = strip.bounding_box()["width"]
    strip.click(position={"x": width * 0.75, "y": 20})
    opened.frames()
    assert abs(opened.focused() - 150) <= 1
    strip.focus()
    opened.press("PageDown")
    assert strip.get_attribute("aria-valuenow") == str(opened.position())
