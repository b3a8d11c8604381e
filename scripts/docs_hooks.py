"""What the site does to a page that plain Markdown on a code host does not need (mkdocs' ``hooks``).

In: a page. Out: links to files of the repository that are not part of the site become plain text with the file's path;
a converted notebook's links to other pages lead to them (a missing one is a warning, which a strict build refuses),
and what it would load from another server is left out.
"""

from __future__ import annotations

import logging
import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)\s#]*)(#[^)\s]*)?\)")
_REMOTE_SCRIPT = re.compile(r"<script[^>]*\bsrc=\"https?://[^>]*>\s*</script>")
_SOURCE = re.compile(r"href=\"(?!https?:)([^\"#]+\.(?:md|ipynb))(#[^\"]*)?\"")
_LOG = logging.getLogger("mkdocs.hooks.docs")  # mkdocs counts the warnings below its own name


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page with links that lead out of ``docs/`` as text and path."""
    folder = posixpath.dirname(page.file.src_uri)
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _without_outside(part, folder) for part in parts)


def on_page_content(html: str, page: Any, files: Any, **_: Any) -> str:
    """Return a notebook's page with its links as pages, and without MathJax, which nbconvert takes from a server."""

    def resolved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), match[1]))
        if files.get_file_from_path(target) is None:
            _LOG.warning("%s links to %s, which is not there", page.file.src_uri, target)
            return match[0]
        return f'href="{posixpath.splitext(match[1])[0]}.html{match[2] or ""}"'

    return _REMOTE_SCRIPT.sub("", _SOURCE.sub(resolved, html))


def _without_outside(text: str, folder: str) -> str:
    def plain(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, match[2]))
        if target.startswith("docs/"):
            return match[0]
        return f"`{target}`" if match[1].strip("`") == target else f"{match[1]} (`{target}`)"

    return _LINK.sub(plain, text)
