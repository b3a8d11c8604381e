"""A browser for the pages: Debian's Chromium, or Chrome, through playwright; without one, tests are skipped."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from selfdistill.analysis.xray_page import xray_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """One browser for all tests of a process.

    Playwright's event loop counts as running in this thread for as long as the browser lives; other tests start loops
    of their own in the same thread. So it counts only while a page is used.
    """

    def __init__(self, running: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.running, self._loop = running, loop
        asyncio._set_running_loop(None)

    @contextmanager
    def in_use(self) -> Iterator[Any]:
        asyncio._set_running_loop(self._loop)
        try:
            yield self.running
        finally:
            asyncio._set_running_loop(None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium: install the package chromium")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed (extra `dev`)")
    from playwright.sync_api import sync_playwright

    playwright = sync_playwright().start()
    own = Browser(playwright.chromium.launch(executable_path=found, args=["--no-sandbox"]), asyncio.get_running_loop())
    yield own
    with own.in_use() as running:
        running.close()
        playwright.stop()


class OpenedPage:
    """A page of playwright's that also opens HTML from a file, and keeps everything that went wrong."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self._browser, self._folder, self._contexts = browser, folder, []
        self.problems: list[str] = []
        """Errors of the console and of scripts, requests, and dialogs."""

    def open_html(self, html: str, *, width: int = 1280, height: int = 900, fragment: str = "", **options: Any) -> Any:
        """Write the page to a file, open it by ``file://``, and return playwright's page; options as for a context."""
        file = self._folder / "page.html"
        file.write_text(html, encoding="utf-8")
        context = self._browser.new_context(viewport={"width": width, "height": height}, **options)
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        page.on("request", self._asked)
        page.on("dialog", self._dialog)
        page.goto(file.as_uri() + fragment)
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(self._folder.as_uri()):
            self.problems.append(f"request: {request.url[:80]}")

    def _dialog(self, dialog: Any) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture
def browser_page(browser: Browser, tmp_path: Path) -> Iterator[OpenedPage]:
    """Return what opens pages; afterwards nothing may have gone wrong in any of them."""
    with browser.in_use() as running:
        opened = OpenedPage(running, tmp_path)
        yield opened
        opened.close()
    assert not opened.problems


@pytest.fixture(scope="session")
def accessibility() -> Callable[[Any], list[str]]:
    """Return a function that runs axe on a page and returns what it found."""
    if importlib.util.find_spec("axe_playwright_python") is None:
        pytest.skip("axe-playwright-python is not installed (extra `dev`)")
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()

    def violations(page: Any) -> list[str]:
        found = axe.run(page).response["violations"]
        return [
            f"{one['id']}: {node['html'][:200]}: {node['failureSummary']}" for one in found for node in one["nodes"]
        ]

    return violations


def _beside(name: str) -> ModuleType:
    """Import a module that lies beside this file: tests are imported without their folder being a package."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="session")
def fake_xray() -> ModuleType:
    """Return the module of x-rays without a model."""
    return _beside("fake_xray")


@pytest.fixture
def read(browser_page: OpenedPage) -> Callable[..., Any]:
    """Return a function that opens the page of an x-ray for a reader; options as for ``open_html``."""
    return lambda xray, **options: _beside("xray_reader").Reader(browser_page.open_html(xray_html(xray), **options))


@pytest.fixture
def opened(read: Callable[..., Any], fake_xray: ModuleType) -> Any:
    """Return the reader of the usual fake x-ray."""
    return read(fake_xray.xray())
