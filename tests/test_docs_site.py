"""The site of docs/: every page is in its navigation, it builds strictly, and what how-to pages claim to run, runs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from selfdistill import cli

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RUN = {"own-data": {"data"}, "own-verifier": {"data", "train"}, "own-method": {"train", "compare"}}
"""How-to pages whose files and code are run, with the commands that are; own-data ends with a model of the hub."""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    fenced = re.findall(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, title or None, text) for language, title, text in fenced]


def commands(text: str) -> list[list[str]]:
    """Return the arguments of the lines of a shell block that call selfdistill."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("selfdistill ")]


SHELL = [
    pytest.param(arguments, id=f"{page.relative_to(ROOT)}: {' '.join(arguments)[:60]}")
    for page in [ROOT / "README.md", *PAGES]
    for block in blocks(page)
    if block.language in ("sh", "bash")
    for arguments in commands(block.text)
]


@pytest.mark.parametrize("arguments", SHELL)
def test_a_command_on_a_page_is_one_that_the_program_understands(arguments: list[str]) -> None:
    assert callable(cli.parse(arguments).run)


def named_in(part: object) -> set[str]:
    """Return the pages in a part of the navigation."""
    if isinstance(part, str):
        return {part}
    children = part.values() if isinstance(part, dict) else part
    assert hasattr(children, "__iter__"), part
    return {page for child in children for page in named_in(child)}


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=yaml.SafeLoader)
    files = {
        path.relative_to(DOCS).as_posix() for path in [*PAGES, *DOCS.rglob("*.ipynb")] if ".ipynb_" not in str(path)
    }
    assert named_in(settings["nav"]) == files


class Resources(HTMLParser):
    """Collects what a page loads from other servers, where its links lead, and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.foreign: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str | None] = {""}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given.get("id"), given.get("name")}
        if tag == "a" and not re.match(r"\w+:|/", given.get("href") or "/"):
            self.links.append(given["href"] or "")
        loaded = given.get("src") if tag != "link" else given.get("href")
        if tag in ("script", "img", "iframe", "link", "source") and (loaded or "").startswith(
            ("http:", "https:", "//")
        ):
            self.foreign.append(f"{tag} {loaded}")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site strictly, once."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed; `make docs` installs it and builds")
    target = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return target


def test_the_site_builds_without_a_broken_link_or_anchor(site: Path) -> None:
    assert (site / "index.html").is_file() and (site / "cards" / "paint.html").is_file()


@pytest.fixture(scope="session")
def read(site: Path) -> dict[Path, Resources]:
    """Return what the site's pages load and where they lead."""
    return {page: Resources(page) for page in site.rglob("*.html")}


def test_no_page_of_the_site_loads_anything_from_elsewhere(read: dict[Path, Resources]) -> None:
    for page, found in read.items():
        assert not found.foreign, f"{page.name}: {found.foreign[:3]}"


def test_every_link_within_the_site_leads_to_a_page_and_a_place_on_it(read: dict[Path, Resources]) -> None:
    """Also those of notebooks, which mkdocs does not look at."""
    for page, found in read.items():
        for link in found.links if page.name != "404.html" else ():
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert target not in read or anchor in read[target].anchors, f"{page.name}: {link}"


@pytest.mark.parametrize(
    "page", sorted(set((DOCS / "api").glob("*.md")) - {DOCS / "api" / "index.md"}), ids=lambda page: page.stem
)
def test_an_api_page_has_every_public_name_of_its_package(page: Path, site: Path) -> None:
    names = getattr(importlib.import_module(f"selfdistill.{page.stem}"), "__all__", [])
    anchors = set(re.findall(r"id=\"selfdistill\.([\w.]+)\"", (site / "api" / f"{page.stem}.html").read_text("utf-8")))
    assert not [name for name in names if not {f"{page.stem}.{name}", f"{page.stem}.{name}.{name}"} & anchors]


def test_the_api_pages_show_docstrings_without_sphinx_s_roles(site: Path) -> None:
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html")}
    assert "token_divergence" in pages["objectives"] and "load_recipe" in pages["training"]
    for name, page in pages.items():
        assert not re.search(r":(class|func|mod|meth|data):", page), name


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_what_a_how_to_page_shows_works(name: str, tmp_path: Path) -> None:
    """Write its files, run its Python and its commands in the page's order, in a folder with recipes/."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    script = tmp_path / "page.py"
    code = []
    for block in blocks(DOCS / "how-to" / f"{name}.md"):
        if block.title is not None:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            code.append(block.text)
        elif block.language == "sh":
            code += [f"assert main({words!r}) == 0\n" for words in commands(block.text) if words[0] in RUN[name]]
    script.write_text("from selfdistill.cli import main\n" + "".join(code), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
