"""Text that nobody may trust is text on the x-ray's page."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from selfdistill.analysis.pages import visible
from selfdistill.analysis.xray_page import xray_html

needs_browser = pytest.mark.browser

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "\"'`&amp;&lt;",
    "\u202egnp.exe\u2066",
    "<!--<script>",
    "]]>",
    "\ud800",
)
"""What a model may write; the last one is half of a character."""


@needs_browser
def test_breaks_tabs_bytes_and_empty_tokens_can_be_seen(opened: Any) -> None:
    assert opened.token(2).inner_text() == "↵"
    assert opened.token(9).inner_text().startswith("→")
    assert opened.token(14).inner_text() == "⟨bytes⟩"
    assert opened.token(15).inner_text() == "⟨#15⟩"
    assert opened.token(0).evaluate("(one) => one.textContent") == " the"
    assert opened.token(0).evaluate("(one) => getComputedStyle(one).unicodeBidi") == "isolate"


@needs_browser
def test_hostile_text_is_shown_as_text_everywhere(read: Any, fake_xray: ModuleType) -> None:
    evil = " ".join(HOSTILE)
    messages = ({"role": evil, "content": evil},)
    context = fake_xray.paint_context(
        shown=evil,
        messages=messages,
        anchors=(fake_xray.Anchor(evil, found=True),),
        solution_parts=((evil, False), (evil, True)),
    )
    words = (*HOSTILE, *map(str, range(8)))
    first = fake_xray.rollout(
        0, fake_xray.token_table(list(range(16)), 16), text=evil, answer=evil, feedback=evil, context=context
    )
    second = fake_xray.rollout(1, fake_xray.token_table([0, 1], 16), context=fake_xray.sibling_context(0))
    xray = fake_xray.xray(
        [first, second, fake_xray.rollout(2, None, text=evil, objective=None, context=None)],
        words, title=evil, recipe=evil, method=evil, model=evil, weights=evil, question_id=evil, messages=messages,
        answer=evil, solution=evil, settings={evil: evil}, update=evil,
    )  # fmt: skip
    html, page = xray_html(xray), read(xray)
    expected = visible(evil)
    for part in ("h1", "#solution", "section[aria-labelledby=context]", "main"):
        assert expected in page.locator(part).first.evaluate("(one) => one.textContent"), part
    for index, word in enumerate(HOSTILE):
        assert page.token(index).evaluate("(one) => one.textContent") == visible(word)
        page.point_at(index)
    for name in ("Rollout 1", "Rollout 2"):
        page.get_by_role("tab", name=name).click()
        assert expected in page.locator("#rollout").evaluate("(one) => one.textContent")
    known = html.count('<script type="application/json"') + html.count("<script>")
    assert page.evaluate("document.scripts.length") == known and page.locator("main img").count() == 0


@needs_browser
def test_a_megabyte_of_text_is_shown_whole(read: Any, fake_xray: ModuleType) -> None:
    huge = "word \u202e <b>" * 100_000
    first = fake_xray.rollout(
        0, fake_xray.token_table([0, 1], 16), text=huge, context=fake_xray.paint_context(solution_parts=((huge, True),))
    )
    xray = fake_xray.xray(
        [first, fake_xray.rollout(1, None, text=huge)], messages=({"role": "user", "content": huge},), solution=huge
    )
    page = read(xray)
    shown = len(huge) + 100_000 * (len("⟨U+202E⟩") - 1)
    assert page.locator("#solution .hidden-part").evaluate("(one) => one.textContent.length") > shown
    assert page.locator(".turn .model-text").first.evaluate("(one) => one.textContent.length") == shown
    page.get_by_role("tab", name="Rollout 1").click()
    assert page.locator("#no-signal .model-text").evaluate("(one) => one.textContent.length") == shown
