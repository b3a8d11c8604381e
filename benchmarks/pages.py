"""How large the self-contained pages are, and how soon they can be used: 10,000 tokens in headless Chromium.

``--xray``: one rollout of random numbers in every column, with ten top tokens of student, teacher and interpolated
target. Opening is from the navigation until the page is ready and two frames are drawn; everything else is from the
user's action until the next frame is drawn. Needs Chromium (or Chrome) and the extra ``dev``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import which
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.arguments import Run, Settings, parse, setting
from benchmarks.report import table, write_results
from benchmarks.timing import say, spread
from selfdistill.analysis.xray import COLUMNS, Context, RolloutXray, TokenTable, TopTokens, Xray
from selfdistill.analysis.xray_page import xray_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HEADER = ("page", "tokens", "size", "action", "ms, median (lowest-highest)")
FRAME = "requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)))"
"""The time at which what was changed is on the screen: the task after the next frame."""
OPENED = "new Promise((done) => { const began = 0; requestAnimationFrame(() => " + FRAME + "); })"
ACTIONS = {
    "another colouring": "xrayPage.view.choose(xrayPage.chosen === 'divergence' ? 'entropy_ratio' : 'divergence')",
    "the other theme": "document.getElementById('theme').click()",
    "filter by text": "document.getElementById('search').value += 'a'; xrayPage.view.filter()",
    "arrow key": "press('ArrowRight')",
    "line down": "press('ArrowDown')",
    "to the last token": "press(xrayPage.view.area.focused ? 'Home' : 'End')",
}
"""What is timed besides opening, in the order in which it happens."""
PRESS = """
const press = (key) => {
  const area = xrayPage.view.area;
  if (!area.element.contains(document.activeElement)) area.focus(0);
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
};
"""


@dataclass(frozen=True, kw_only=True)
class PageSettings(Settings):
    """Sizes of the pages."""

    QUICK: ClassVar[dict[str, Any]] = {"tokens": 200, "vocabulary": 300}

    xray: bool = setting(True, "measure the token x-ray")
    tokens: int = setting(10_000, "of the one rollout")
    vocabulary: int = setting(8_000, "different ids")
    top: int = setting(10, "likeliest tokens per distribution")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    settings, run = parse("pages", PageSettings, __doc__, arguments)
    device = settings.prepare()
    pages: dict[str, Any] = {}
    if settings.xray:
        pages["xray"] = measure(xray_html(random_xray(settings)), settings, run)
    rows = [row(name, one, action, settings) for name, one in pages.items() for action in one["ms"]]
    print(table(f"Pages, {settings.threads} threads", HEADER, rows))
    write_results(run.output, "pages", asdict(settings) | {"run": run.as_data()}, device, {"pages": pages})


def row(name: str, one: dict[str, Any], action: str, settings: PageSettings) -> list[str]:
    """Return one line of the table."""
    found = spread(one["ms"][action])
    figures = f"{found.median:.1f} ({found.low:.1f}-{found.high:.1f})"
    return [name, f"{settings.tokens:,}", f"{one['bytes'] / 1e6:.2f} MB", action, figures]


def measure(html: str, settings: PageSettings, run: Run) -> dict[str, Any]:
    """Open the page a few times, each in a window of its own, and do everything once."""
    milliseconds: dict[str, list[float]] = {name: [] for name in ("open", *ACTIONS)}
    with tempfile.TemporaryDirectory(prefix="selfdistill-bench-") as folder, chromium() as browser:
        file = Path(folder) / "page.html"
        file.write_text(html, encoding="utf-8")
        for index in range(-run.warmup, run.repeats):
            taken = _once(browser, file.as_uri())
            say(", ".join(f"{name} {value:.0f} ms" for name, value in taken.items()))
            for name, value in taken.items() if index >= 0 else ():
                milliseconds[name].append(value)
        found = {"bytes": file.stat().st_size, "browser": f"{browser.browser_type.name} {browser.version}"}
    summary = {name: spread(values)._asdict() for name, values in milliseconds.items()}
    return found | {"tokens": settings.tokens, "ms": milliseconds, "summary": summary}


def _once(browser: Any, address: str) -> dict[str, float]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address, wait_until="commit")
    page.wait_for_selector("html[data-ready]", state="attached")
    taken = {"open": float(page.evaluate(OPENED))}
    for name, action in ACTIONS.items():
        timed = f"new Promise((done) => {{ {PRESS} const began = performance.now(); {action}; {FRAME}; }})"
        taken[name] = float(page.evaluate(timed))
        page.wait_for_timeout(200)  # what was put off to later frames
    page.close()
    return taken


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a headless browser."""
    found = next(filter(None, map(which, BROWSERS)), None)
    if found is None:
        sys.exit("No Chromium was found: install the package chromium.")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("playwright is not installed: pip install -e '.[dev]'.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def random_xray(settings: PageSettings) -> Xray:
    """Return one rollout whose words, columns and top tokens are seeded random numbers."""
    generator = torch.Generator().manual_seed(settings.seed)
    count = settings.tokens
    words = [_word(generator) for _ in range(settings.vocabulary)]
    words[0] = "\n"
    ids = _zipf(count, settings.vocabulary, generator)
    ids[19::20] = 0
    columns = {name: torch.rand(count, generator=generator) ** 3 for name in COLUMNS}
    for name in ("log_ratio", "student_logprob", "teacher_logprob", "rollout_logprob", "student_logprob_after"):
        columns[name] = -4 * torch.rand(count, generator=generator) ** 3
    columns["log_ratio"] = columns["teacher_logprob"] - columns["student_logprob"]
    selected = torch.zeros(count, dtype=torch.bool)
    selected[columns["entropy_ratio"].topk(max(1, 3 * count // 100)).indices] = True
    student, teacher, target = (_tops(rows, settings, generator) for rows in (count, count, int(selected.sum())))
    tokens = TokenTable(ids, columns, selected, student, teacher, target)
    text = "".join(words[index] for index in ids.tolist())
    messages = ({"role": "user", "content": "A question."},)
    context = Context("solution", "A solution.", messages, solution_parts=(("A solution.", False),))
    rollout = RolloutXray(0, text, "stop", 1.0, True, "1", None, "distillation", 1.0, 0.0, context, tokens)
    return Xray(
        "benchmark", "none", "paint", "random", "random", 0, "benchmark", messages, "1", "A solution.", 1.0, (rollout,),
        dict(enumerate(words)),
    )  # fmt: skip


def _word(generator: torch.Generator) -> str:
    length = int(torch.randint(2, 9, (), generator=generator))
    return " " + "".join(chr(97 + letter) for letter in torch.randint(26, (length,), generator=generator).tolist())


def _zipf(count: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Return ids that are as rare as words are."""
    weights = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
    return weights.multinomial(count, replacement=True, generator=generator).to(torch.int32)


def _tops(count: int, settings: PageSettings, generator: torch.Generator) -> TopTokens:
    ids = torch.randint(settings.vocabulary, (count, settings.top), generator=generator, dtype=torch.int32)
    logits = 2 * torch.randn(count, 4 * settings.top, generator=generator)
    found = logits.softmax(-1).sort(descending=True).values[:, : settings.top]
    return TopTokens(ids, found.contiguous())


if __name__ == "__main__":
    main()
