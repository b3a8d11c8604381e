"""The token x-ray as one HTML file: what was asked, what the teacher saw, and what it changed, token by token.

In: an :class:`~selfdistill.analysis.xray.Xray`. Out: a page that needs nothing but a browser. The question is markup;
everything about rollouts is data (:mod:`selfdistill.analysis.xray_data`) that the scripts ``xray-*.js`` show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.analysis.pages import asset, page, text
from selfdistill.analysis.xray import Xray
from selfdistill.analysis.xray_data import pack

SCRIPTS = (
    "xray-colours.js",
    "xray-data.js",
    "xray-context.js",
    "xray-tokens.js",
    "xray-panel.js",
    "xray-strip.js",
    "xray-controls.js",
    "xray.js",
)
LONG = 4000
"""Characters from which a text gets a box of its own that scrolls."""


def xray_html(xray: Xray) -> str:
    """Return the page."""
    return page(
        f"X-ray: {xray.title}",
        _HEAD.format(heading=text(xray.title), facts=_facts(xray), settings=_settings(xray.settings))
        + _question(xray)
        + _ROLLOUTS.format(columns_note=_update(xray)),
        styles=[asset("xray.css")],
        scripts=[asset(name) for name in SCRIPTS],
        data={"xray": pack(xray)},
    )


def _facts(xray: Xray) -> str:
    facts = {
        "method": xray.method,
        "recipe": xray.recipe,
        "model": xray.model,
        "weights": xray.weights,
        "step": xray.step,
        "question": xray.question_id,
        "pass rate": f"{xray.pass_rate:.3g}",
    }
    return "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items())


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in settings.items()
    )
    return f'<details><summary>Settings</summary><div class="scroll"><table>{rows}</table></div></details>'


def _question(xray: Xray) -> str:
    turns = "".join(
        f'<div class="turn"><p class="role">{text(one.get("role", ""))}</p>{_long(one.get("content", ""))}</div>'
        for one in xray.messages
    )
    answer = '<span class="soft">none</span>' if xray.answer is None else f"<bdi>{text(xray.answer)}</bdi>"
    return (
        '<section aria-labelledby="question"><h2 id="question">Question</h2>'
        f'<div class="card">{turns}<p class="answer"><b>Reference answer:</b> {answer}</p></div></section>\n'
    )


def _long(value: str) -> str:
    box = ' tabindex="0" role="group" aria-label="long text"' if len(value) > LONG else ""
    return f'<div class="model-text{" long" if box else ""}"{box}>{text(value)}</div>'


def _update(xray: Xray) -> str:
    if xray.update is None:
        return ""
    return f'<p><b>Before and after the update:</b> <span class="model-text">{text(xray.update)}</span></p>'


_HEAD = """<header class="top"><div><p class="soft kicker">token x-ray</p><h1>{heading}</h1></div>
<button id="theme" type="button">Dark</button></header>
<main>
<nav aria-label="On this page"><a href="#question">Question</a> <a href="#rollouts">Rollouts</a>
<a href="#response">Response</a></nav>
<dl class="facts">{facts}</dl>
{settings}
"""

_ROLLOUTS = """<section aria-labelledby="rollouts"><h2 id="rollouts">Rollouts</h2>
{columns_note}
<div id="chooser" role="tablist" aria-label="Rollouts of the question"></div>
<div id="rollout" role="tabpanel" aria-labelledby="rollouts"></div>
</section>
</main>
<noscript><p>This page needs JavaScript, which it carries itself.</p></noscript>
"""
