"""Words that turn a question and privileged text into the self-teacher's prompt.

The wording is ours; what each template means is fixed by the papers. A template is data: a recipe can replace any part
(``method.context.template.heading=...``).
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from selfdistill.validation import PART

OMISSION_MARKER = "[... omitted ...]"
"""Stands where PAINT hid a part of the solution."""


@dataclass(frozen=True, config=PART, kw_only=True)
class SolutionTemplate:
    """OPSD and PAINT: the question, then a (partial) reference solution, then the request to solve it again."""

    heading: str = "Here is a reference solution to this problem:"
    """Introduces the privileged text."""
    closing: str = "Now solve the problem yourself, step by step."
    """The last line, never truncated."""

    def extend(self, user_turn: str, shown: str) -> str:
        """Return the last user turn of the privileged prompt."""
        return f"{user_turn}\n\n{self.heading}\n{shown}\n\n{self.closing}"


@dataclass(frozen=True, config=PART, kw_only=True)
class HindsightTemplate:
    """SDPO: the question, a demonstration and / or feedback under headings, then the request to solve it correctly."""

    demonstration_heading: str = "Correct solution:"
    """Says that what follows is a correct solution."""
    feedback_heading: str = "Feedback on your earlier unsuccessful attempt:"
    """Says that what follows is feedback on the earlier, unsuccessful attempt."""
    closing: str = "Now solve the original question correctly."
    """The last line, never truncated."""

    def extend(self, user_turn: str, demonstration: str | None, feedback: str | None) -> str:
        """Return the last user turn of the privileged prompt; parts that are None are left out with their headings."""
        parts = [user_turn]
        if demonstration is not None:
            parts.append(f"{self.demonstration_heading}\n{demonstration}")
        if feedback is not None:
            parts.append(f"{self.feedback_heading}\n{feedback}")
        parts.append(self.closing)
        return "\n\n".join(parts)
