"""A limit on thinking: a response that has not closed its thinking block in time has it closed for it, and answers.

In: any sampler. Out: a sampler that follows ``Sampling.thinking_budget``. Qwen3 limits thinking in this way
(arXiv 2505.09388, section 4.3). What is inserted was not drawn, so that such responses carry no log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from selfdistill.contexts.thinking import ends_inside_thinking
from selfdistill.randomness import derive
from selfdistill.rollouts.chat import ChatFormat
from selfdistill.rollouts.sampler import Completion, Place, Sampler, Sampling

CLOSING = "\n</think>\n\n"
"""Put behind thinking that takes too long."""
HELD_TOKENS = 8_000_000
"""Most tokens that are kept between the two requests of the responses that go on."""
_HEADER_IDS = 16
"""Of a prompt's end: where a template that opens the thinking block itself does so."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A response that used up its thinking budget."""

    place: Place
    seed: int
    ids: tuple[int, ...]
    """What was drawn, and the inserted closing if the block was open."""


class ThinkingBudget(Sampler):
    """Draws from ``sampler``, with a limit on thinking where the settings have one.

    Args:
        sampler: draws both parts of a response.
        chat: its tokenizer says what the closing's ids are.
    """

    def __init__(self, sampler: Sampler, chat: ChatFormat) -> None:
        self._sampler, self._chat = sampler, chat
        self._closing = tuple(int(i) for i in chat.tokenizer.encode(CLOSING, add_special_tokens=False))

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        logprobs: bool = True,
        on_tokens: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Place, Completion]]:
        """Yield one completion per seed; see :meth:`selfdistill.rollouts.sampler.Sampler.stream`.

        A response that goes on after its budget is a second request, with a seed derived from its own.
        """
        budget = sampling.thinking_budget
        if budget is None or budget >= sampling.max_new_tokens:
            whole = replace(sampling, thinking_budget=None)
            yield from self._sampler.stream(prompts, seeds, whole, logprobs=logprobs, on_tokens=on_tokens)
            return
        first = replace(sampling, thinking_budget=None, max_new_tokens=budget)
        for part in _parts(seeds, max(1, HELD_TOKENS // budget)):
            own_prompts, own_seeds = [prompts[index] for index in part], [seeds[index] for index in part]
            cut: list[_Cut] = []
            for (row, sibling), done in self._sampler.stream(
                own_prompts, own_seeds, first, logprobs=logprobs, on_tokens=on_tokens
            ):
                place = part[row], sibling
                if done.finish_reason == "stop":
                    yield place, done
                else:
                    cut.append(_Cut(place, own_seeds[row][sibling], self._closed(own_prompts[row], done.ids)))
            yield from self._answers(cut, prompts, sampling, on_tokens)

    def _answers(
        self,
        cut: Sequence[_Cut],
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_tokens: Callable[[int], None] | None,
    ) -> Iterator[tuple[Place, Completion]]:
        """Let responses go on, those together that have the same number of tokens left."""
        for length in sorted({len(one.ids) for one in cut}):
            left = sampling.max_new_tokens - length
            same = [one for one in cut if len(one.ids) == length]
            if left < 1:  # no room for an answer behind the closing
                yield from ((one.place, Completion(one.ids[: sampling.max_new_tokens], None, "length")) for one in same)
                continue
            rest = replace(sampling, thinking_budget=None, max_new_tokens=left)
            longer = [(*prompts[one.place[0]], *one.ids) for one in same]
            own = [[derive(one.seed, "answer") >> 1] for one in same]
            for (row, _), done in self._sampler.stream(longer, own, rest, logprobs=False, on_tokens=on_tokens):
                one = same[row]
                yield one.place, Completion((*one.ids, *done.ids), None, done.finish_reason)

    def _closed(self, prompt: Sequence[int], ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return ``ids`` with the closing behind them if they stop within a thinking block."""
        header = self._chat.decode(prompt[-_HEADER_IDS:], skip_special_tokens=False).rstrip()
        # Only a tag that ends the prompt is the template's; any other may be text that a question quotes.
        opened = header.endswith(">") and ends_inside_thinking(header[header.rfind("<") :])
        text = self._chat.decode(ids, skip_special_tokens=False)
        return (*ids, *self._closing) if ends_inside_thinking(text, opened) else ids


def _parts(seeds: Sequence[Sequence[int]], rows: int) -> Iterator[list[int]]:
    """Cut the prompts' indices into parts of at most ``rows`` completions; a prompt is never cut."""
    part: list[int] = []
    taken = 0
    for index, own in enumerate(seeds):
        if part and taken + len(own) > rows:
            yield part
            part, taken = [], 0
        part.append(index)
        taken += len(own)
    if part:
        yield part
