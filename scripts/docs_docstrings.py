"""Docstrings as the site's Markdown (an extension of griffe, which reads the sources without importing them).

In: a docstring with Sphinx's roles and double backticks, which editors and ``help()`` show well. Out: the same with
code spans, and literal blocks as fences.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":\w+:`~?\.?([^`]*)`")
_LITERAL = re.compile(r"^::\n\n((?:[ ]+.*(?:\n|$)|\n)+)", re.MULTILINE)
_SECTION = re.compile(r"^(Raises:\n)((?:[ ]+.*(?:\n|$))+)", re.MULTILINE)
_CONTINUED = re.compile(r"\n    (?![ ]|[\w. ]+: )")


class MarkdownDocstrings(griffe.Extension):
    """Rewrites every docstring once it has been read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Return a docstring with code spans and fences instead of roles, double backticks and literal blocks."""
    text = _ROLE.sub(r"`\1`", docstring).replace("``", "`")
    text = _SECTION.sub(lambda match: match[1] + _CONTINUED.sub(" ", match[2]), text)
    return _LITERAL.sub(lambda match: f"```text\n{match[1].rstrip()}\n```\n", text)
