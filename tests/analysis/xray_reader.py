"""Somebody who reads an x-ray's page: finds tokens, presses keys, reads the panel."""

from __future__ import annotations

from typing import Any

FRAMES = """() => new Promise((done) => {
  let left = 6;
  const next = () => (left-- ? requestAnimationFrame(next) : done());
  next();
})"""
BRIGHT = "Array.from(xrayPage.view.area.dimmed).flatMap((dim, index) => (dim ? [] : [index]))"


class Reader:
    """A page of playwright's, with what tests of x-rays do again and again."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def frames(self) -> None:
        """Wait until everything that was asked for before is drawn."""
        self.page.evaluate(FRAMES)

    def token(self, index: int) -> Any:
        return self.page.locator(f".t[data-i='{index}']")

    def point_at(self, index: int) -> None:
        self.token(index).hover()
        self.frames()

    def press(self, *keys: str) -> int:
        """Press keys one after the other and return the focused token."""
        for key in keys:
            self.page.keyboard.press(key)
        self.frames()
        return self.focused()

    def focused(self) -> int:
        return int(self.page.evaluate("document.activeElement.dataset.i ?? -1"))

    def position(self) -> int:
        """Return the position that the panel is about, from 1."""
        return int(self.page.locator("#where").inner_text().split()[1])

    def shades(self) -> list[int]:
        return self.page.evaluate("Array.from(xrayPage.view.area.shades)")

    def bright(self) -> list[int]:
        """Return the tokens that pass the filters."""
        return self.page.evaluate(BRIGHT)

    def percentages(self, chart: str) -> list[float]:
        shares = self.page.locator(f".chart.{chart} li:not(.rest) .share").all_inner_texts()
        return [float(one.strip("≈ %").replace("\u2212", "-")) for one in shares]

    @staticmethod
    def number(element: Any) -> float:
        """Return the number that an element shows; its minus is a typographer's."""
        return float(element.inner_text().replace("\u2212", "-"))
