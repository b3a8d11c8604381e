"""The screenshots of the docs, from real runs: pages made by the command line, opened in Chromium, photographed."""

# selfdistill compare recipes/embedded/{paint,sc_sdpo,sdpo}.yaml train.steps=60 train.evaluate_every=10 \
#     evaluation.teacher_questions=32 --seeds 3 --out runs/shots
# selfdistill train recipes/smollm2/paint-sums.yaml train.steps=24 train.questions_per_step=8 \
#     train.evaluate_every=12 evaluation.questions=16 evaluation.teacher_questions=8 \
#     output.folder=runs/shots/smollm2-paint
# selfdistill report runs/shots/{paint,sc_sdpo,sdpo}-seed* --measure
# python scripts/docs_screenshots.py runs/shots

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from selfdistill.cli import main

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
QUESTION = "arithmetic-train:1559"


def xray(runs: Path, scratch: Path) -> None:
    """Photograph x-rays: embedded PAINT and SC-SDPO before training, SmolLM2 after it, and a phone."""
    made = {
        "xray-paint": ["paint-seed0", "--checkpoint", "initial", "--question", QUESTION],
        "xray-sc_sdpo": ["sc_sdpo-seed0", "--checkpoint", "initial", "--question", QUESTION],
        "xray-smollm2": ["smollm2-paint"],
    }
    for name, (run, *words) in made.items():
        run_command("inspect", str(runs / run), *words, "--out", str(scratch / f"{name}.html"))
    with opened(scratch / "xray-paint.html", 1180, 1500) as page:
        pin(page, 14)
        shot(page, "xray-paint", top="What the teacher was shown")
    with opened(scratch / "xray-sc_sdpo.html", 1180, 1500) as page:
        pin(page, 16)
        shot(page, "xray-sc_sdpo")
    with opened(scratch / "xray-smollm2.html", 1180, 1500, scheme="dark") as page:
        pin(page, widest(page))
        shot(page, "xray-smollm2")
    with opened(scratch / "xray-paint.html", 390, 844) as page:
        pin(page, 14)
        page.locator("[role=option]").nth(14).scroll_into_view_if_needed()
        page.screenshot(path=str(IMAGES / "xray-phone.png"))


def reports(runs: Path, scratch: Path) -> None:
    """Photograph reports: three methods with three seeds each, and SmolLM2."""
    embedded = sorted(str(path) for name in ("paint", "sc_sdpo", "sdpo") for path in runs.glob(f"{name}-seed*"))
    run_command("report", *embedded, "--out", str(scratch / "report.html"), "--title", "PAINT, SDPO, SC-SDPO")
    run_command("report", str(runs / "smollm2-paint"), "--out", str(scratch / "smollm2.html"))
    with opened(scratch / "report.html", 1280, 1750) as page:
        page.screenshot(path=str(IMAGES / "report.png"))
    with opened(scratch / "report.html", 1280, 900, scheme="dark") as page:
        figure(page, "Pass rates over time", "report-curriculum")
        figure(page, "Student and self-teacher", "report-teacher")
        figure(page, "Divergence by correctness", "report-divergences")
    with opened(scratch / "smollm2.html", 1280, 1400) as page:
        page.screenshot(path=str(IMAGES / "report-smollm2.png"))


def run_command(*words: str) -> None:
    """Run one command of the package; a failure ends this script."""
    if main(words):
        raise SystemExit(f"selfdistill {' '.join(words)} failed")


@contextmanager
def opened(path: Path, width: int, height: int, scheme: str = "light") -> Iterator[Any]:
    """Open a page from its file."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto(path.as_uri())
        page.wait_for_timeout(500)
        yield page
        browser.close()


def pin(page: Any, token: int) -> None:
    """Choose a token, so that the panel shows it."""
    page.locator("[role=option]").nth(token).click()
    page.wait_for_timeout(200)


def widest(page: Any) -> int:
    """Return the token with the largest divergence, by the page's own key for it."""
    page.locator("[role=option]").first.click()
    page.keyboard.press("m")
    return int(page.evaluate("[...document.querySelectorAll('[role=option]')].indexOf(document.activeElement)"))


def shot(page: Any, name: str, top: str | None = None) -> None:
    """Photograph the page, from a heading on if one is named."""
    above = page.get_by_role("heading", name=top).first.bounding_box()["y"] if top else 0
    scrolled = page.evaluate("window.scrollY")
    size = page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
    start = max(0, above + scrolled - 12)
    clip = {"x": 0, "y": start, "width": size[0], "height": size[1] - start}
    page.screenshot(path=str(IMAGES / f"{name}.png"), full_page=True, clip=clip)


def figure(page: Any, title: str, name: str) -> None:
    """Photograph the figure whose caption begins with a title, and nothing that floats above it."""
    page.evaluate(
        "for (const one of document.querySelectorAll('*'))"
        " if (getComputedStyle(one).position === 'sticky') one.style.position = 'static'"
    )
    page.locator("figure").filter(has_text=title).first.screenshot(path=str(IMAGES / f"{name}.png"))


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        xray(Path(sys.argv[1]), Path(folder))
        reports(Path(sys.argv[1]), Path(folder))
