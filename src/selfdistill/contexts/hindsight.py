"""Hindsight: a sibling's success and feedback as the self-teacher's context (SDPO, arXiv 2601.20802; METHODS 5).

In: a group (one question, its rollouts, their verdicts). Out: one privileged prompt per rollout, or None where there is
neither a demonstration nor feedback. The rollout itself is never shown, neither as a demonstration nor as a failed
attempt. What siblings and verifiers wrote is untrusted text; the chat format keeps control tokens in it from acting.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from selfdistill.contexts.prompt import PrivilegedPrompt
from selfdistill.contexts.rendering import PromptFrame, render
from selfdistill.contexts.templates import HindsightTemplate
from selfdistill.contexts.thinking import remove_thinking
from selfdistill.randomness import python_random
from selfdistill.validation import PART
from selfdistill.verifiers.verdict import Group, Verdict


@dataclass(frozen=True, config=PART, kw_only=True)
class SiblingSuccess:
    """A successful sibling as a demonstration, and feedback on a failed attempt (SDPO, arXiv 2601.20802; METHODS 5)."""

    kind: Literal["sibling_success"] = "sibling_success"
    demonstration: Literal["random", "first", "shortest"] = "random"
    """Which successful sibling is shown: a seeded draw, the lowest index, or the shortest text (in characters)."""
    threshold: float = Field(0.5, allow_inf_nan=False)
    """Least reward of a demonstration (published 0.5). Its verdict must ALSO be a success: partial credit is none."""
    feedback: Literal["failed_without_demonstration", "with_demonstration", "off"] = "failed_without_demonstration"
    """When feedback on a failed attempt is shown: in place of a missing demonstration, also beside one, or never."""
    allow_privileged_feedback: bool = True
    """Whether feedback that prints the expected answer may be shown; the prompt's source then says so."""
    thinking: bool | None = None
    """Whether the teacher's prompt opens a thinking block; null: as the run sets it."""
    template: HindsightTemplate = HindsightTemplate()
    """Words around demonstration and feedback."""

    requires: ClassVar[tuple[str, ...]] = ()

    @property
    def compares_siblings(self) -> bool:
        """Whether one rollout per question says nothing: without feedback there is only what siblings show."""
        return self.feedback == "off"

    def contextualise(self, group: Group, frame: PromptFrame, seed: int) -> list[PrivilegedPrompt | None]:
        """Return each rollout's prompt; None without demonstration and feedback, so that a lone success gets none.

        The candidates are put in one order per group and every rollout takes the first that is not itself. That is a
        uniform draw among the others under ``random``, and leaves at most two different demonstrations per group, whose
        prefixes can be computed once.

        Raises:
            DataError: if the question does not fit into the teacher's context.
        """
        candidates = self._demonstrations(group, seed)
        framed = frame.with_thinking(self.thinking)
        rendered: dict[tuple[int | None, str | None, str], PrivilegedPrompt] = {}
        prompts: list[PrivilegedPrompt | None] = []
        for index, verdict in enumerate(group.verdicts):
            demonstrator = next((candidate for candidate in candidates if candidate != index), None)
            feedback = self._feedback(verdict, demonstrator is not None)
            source = _source(demonstrator, feedback, verdict)
            key = (demonstrator, feedback, source)
            if source and key not in rendered:
                shown = None if demonstrator is None else candidates[demonstrator]
                rendered[key] = self._render(group, framed, shown, feedback, source, demonstrator)
            prompts.append(rendered.get(key))
        return prompts

    def _demonstrations(self, group: Group, seed: int) -> dict[int, str]:
        """Return index -> text to show of every sibling that may be demonstrated, in order of preference."""
        texts = {
            index: remove_thinking(rollout.text)
            for index, (rollout, verdict) in enumerate(zip(group.rollouts, group.verdicts, strict=True))
            if verdict.success and verdict.reward >= self.threshold
        }
        order = [index for index, text in texts.items() if text]
        if self.demonstration == "random":
            python_random(seed, "demonstration", group.question.id).shuffle(order)
        elif self.demonstration == "shortest":
            order.sort(key=lambda index: len(texts[index]))
        return {index: texts[index] for index in order}

    def _feedback(self, verdict: Verdict, demonstrated: bool) -> str | None:
        if verdict.success or self.feedback == "off" or (demonstrated and self.feedback != "with_demonstration"):
            return None
        if verdict.privileged and not self.allow_privileged_feedback:
            return None
        return (verdict.feedback or "").strip() or None

    def _render(
        self,
        group: Group,
        frame: PromptFrame,
        demonstration: str | None,
        feedback: str | None,
        source: str,
        demonstrator: int | None,
    ) -> PrivilegedPrompt:
        def extend(user_turn: str, *shown: str) -> str:
            # What was cut down to nothing loses its heading too.
            remaining = dict(zip(names, shown, strict=True))
            return self.template.extend(
                user_turn, remaining.get("demonstration") or None, remaining.get("feedback") or None
            )

        texts = {"demonstration": demonstration, "feedback": feedback}
        names = [name for name, text in texts.items() if text is not None]
        privileged = [text for text in texts.values() if text is not None]
        sibling = None if demonstrator is None else group.rollouts[demonstrator].sibling
        return render(frame, group.question, extend, privileged, source=source, demonstrator=sibling)


def _source(demonstrator: int | None, feedback: str | None, verdict: Verdict) -> str:
    parts = [] if demonstrator is None else ["demonstration"]
    if feedback is not None:
        parts.append("privileged_feedback" if verdict.privileged else "feedback")
    return "+".join(parts)
