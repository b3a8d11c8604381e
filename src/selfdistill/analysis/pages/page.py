"""A page in one file: markup, styles, scripts and data, for any browser, offline, from ``file://``.

What a model or a data set wrote reaches a page in two ways only: through :func:`text` into markup, and through
:func:`data_block` into JSON that scripts put on the page as text nodes. A content security policy that names the
digests of the page's own scripts lets nothing else run, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Control characters other than tab and newline, marks that change the direction of text, what has no width, and halves
of surrogate pairs."""


def page(
    title: str,
    body: str,
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> str:
    """Return an HTML document.

    Args:
        title: shown in the browser's tab; any text.
        body: markup; untrusted parts of it have gone through :func:`text`.
        styles: style sheets, after the one that all pages share.
        scripts: after the one that all pages share; they find ``data`` by ``readData(name)``.
        data: by element id, what is embedded as JSON.
    """
    blocks = "\n".join(data_block(name, value) for name, value in (data or {}).items())
    sources = [asset("base.js"), *scripts]
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {' '.join(map(_digest, sources))}"
    )
    sheets = "\n".join((asset("base.css"), *styles))
    code = "\n".join(f"<script>{source}</script>" for source in sources)
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{sheets}\n</style>\n</head>\n"
        f"<body>\n{body}\n{blocks}\n{code}\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Return untrusted text as markup that shows it: nothing in it is a tag, an entity or invisible."""
    return html.escape(visible(str(value)), quote=True)


def visible(value: str) -> str:
    """Return ``value`` with characters that cannot be seen, or that turn text around, written out: ⟨U+202E⟩."""
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", value)


def data_block(name: str, value: Any) -> str:
    """Return JSON in an element that no browser runs, and that nothing in a string can close."""
    raw = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        raw = raw.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{html.escape(name)}">{raw}</script>'


def asset(name: str) -> str:
    """Return a style sheet or script of this package."""
    return files("selfdistill.analysis.pages").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
