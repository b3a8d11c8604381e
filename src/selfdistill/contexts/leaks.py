"""Leaks: responses that mention a reference which the student cannot see (METHODS 10).

In: a response (untrusted text). Out: whether it talks about a reference solution, hint, demonstration or feedback. The
teacher reads such text, the student does not; a student that begins to cite it has learned the teacher's manner instead
of the mathematics. Time is linear in the text.
"""

from __future__ import annotations

import re

_WORK = r"(?:solution|demonstration|worked example)"
_SHOWN = r"(?:provided|given|supplied|partial|above|masked|truncated|shown|official|hidden)"
_CITES = r"(?:shows?|states?|says?|suggests?|indicates?|mentions?|points? out|tells?|gives?|uses?)"
_ATTEMPT = r"(?:attempt|try|answer|solution|response)"

_PHRASES = (
    rf"\breference (?:{_WORK}|answer|text)s?\b",
    rf"\b(?:the|this|that|your) {_SHOWN} (?:(?:partial|reference|correct|worked) )?{_WORK}\b",
    r"\b(?:provided|supplied) (?:final )?answer(?! (?:choice|option))\b",
    rf"\b{_WORK} (?:above|(?:shown|given|provided|presented) (?:above|earlier|here|to me|to us|in the prompt))\b",
    rf"\b(?:according to|as (?:shown|given|stated|described) in) the (?:correct )?{_WORK}\b(?! (?:set|space)\b)",
    rf"\bas the (?:correct )?{_WORK} {_CITES}\b",
    r"\b(?:the|this|that|given|provided) hints?\b",
    rf"\bfeedback on (?:(?:the|my|your|our|this|an|earlier|previous|last|unsuccessful|failed) ){{1,4}}{_ATTEMPT}\b",
    rf"\b(?:according to )?(?:the|this|your) (?:given |provided )?feedback (?:above|{_CITES})\b",
    rf"\b(?:my|your|the) (?:earlier|previous) (?:unsuccessful|failed) {_ATTEMPT}\b",
    r"\[ ?(?:\.\.\.|…) ?omitted ?(?:\.\.\.|…) ?\]",
    r"\bthe omitted (?:part|portion|section|step)s?\b",
)
_MENTION = re.compile("|".join(_PHRASES), re.IGNORECASE)


def mentions_reference(text: str) -> bool:
    """Say whether ``text`` mentions a reference, hint, demonstration, feedback or omission that only the teacher sees.

    Talk about a solution of the problem itself ("the solution is x = 3", "the solution set", "a correct solution") and
    about the response's own steps ("my previous attempt") does not count.
    """
    return _MENTION.search(" ".join(text.split())) is not None
