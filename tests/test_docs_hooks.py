"""The scripts that make the site of docs/: links that leave it, notebooks' links, docstrings."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(path: str) -> SimpleNamespace:
    return SimpleNamespace(file=SimpleNamespace(src_uri=path))


class Files:
    def get_file_from_path(self, path: str) -> str | None:
        return path if path in ("papers.md", "notebooks/other.ipynb") else None


def test_a_link_out_of_the_docs_becomes_text_with_the_path() -> None:
    on_page_markdown = script("docs_hooks").on_page_markdown
    assert (
        on_page_markdown("see [the card](../src/a/README.md#b)", page("papers.md"))
        == "see the card (`src/a/README.md`)"
    )
    assert on_page_markdown("[benchmarks/README.md](../benchmarks/README.md)", page("p.md")) == "`benchmarks/README.md`"


def test_a_link_within_the_docs_and_what_looks_like_one_in_code_stay() -> None:
    on_page_markdown = script("docs_hooks").on_page_markdown
    for text in ("[data](../data.md)", "```md\n[x](../../README.md)\n```", "![x](../../images/a.png)"):
        assert on_page_markdown(text, page("how-to/own-data.md")) == text


def test_a_notebook_s_links_lead_to_pages_and_it_loads_nothing() -> None:
    html = '<a href="../papers.md#x">a</a><a href="other.ipynb">b</a><script src="https://cdn/x.js"></script>'
    done = script("docs_hooks").on_page_content(html, page("notebooks/first.ipynb"), Files())
    assert done == '<a href="../papers.html#x">a</a><a href="other.html">b</a>'


def test_a_notebook_s_link_to_a_page_that_is_not_there_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        script("docs_hooks").on_page_content('<a href="../gone.md">a</a>', page("notebooks/first.ipynb"), Files())
    assert "notebooks/first.ipynb links to gone.md" in caplog.text


def test_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe", reason="griffe is not installed")
    as_markdown = script("docs_docstrings").as_markdown
    assert as_markdown("As :func:`.a.b` and ``c``.") == "As `a.b` and `c`."
    assert as_markdown("Line:\n\n::\n\n    a -> b\n\nEnd.") == "Line:\n\n```text\n    a -> b\n```\nEnd."
    assert as_markdown("Raises:\n    DataError: one\n    two.\n") == "Raises:\n    DataError: one two.\n"
