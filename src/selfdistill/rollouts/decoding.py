"""Continuous decoding: rows leave the batch when their response ends, and waiting requests take their places.

Siblings share one pass over their prompt. A row's choices come from its own random stream, whatever its neighbours and
whenever it entered. In: requests, shortest prompt first. Out: completions by place, as they finish.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from selfdistill.rollouts.choice import UniformStreams, choose
from selfdistill.rollouts.grouped_attention import takes_ready_mask
from selfdistill.rollouts.requests import Limits, Request, Terms, completion, left_padded
from selfdistill.rollouts.row_cache import RowCache
from selfdistill.rollouts.sampler import Completion

_RESERVE = 64
"""Columns that the cache has in reserve after a move, or an eighth of what it holds, if that is more."""

Choices = tuple[Int64[Tensor, " rows"], Float[Tensor, " rows"]]
"""Ids and log-probabilities of one step."""


@dataclass(slots=True)
class _Row:
    """A response under way."""

    request: Request
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False

    @property
    def stored(self) -> int:
        """Tokens that the cache holds of it: all but the newest, which the next step reads."""
        return len(self.request.prompt) + len(self.ids) - 1

    def append(self, token: int, logprob: float, terms: Terms) -> bool:
        """Add a token and say whether it counts: what is drawn after the end does not."""
        if self.finished:
            return False
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.finished = token in terms.ends or len(self.ids) == terms.sampling.max_new_tokens
        return True


@dataclass(frozen=True, slots=True)
class _Pace:
    """When the loop looks up from its steps."""

    steps: int
    """Steps between two looks at what was drawn."""
    free: float
    """Share of the places that must be free before waiting requests enter."""


def _pace(device: torch.device) -> _Pace:
    """Return what suits the device.

    To look at what was drawn is to wait for an accelerator, whose steps cost the same with few rows as with many. On
    the CPU a step costs what its rows and their columns cost, and rows that enter together have fewer columns.
    """
    return _Pace(steps=1, free=0.75) if device.type == "cpu" else _Pace(steps=8, free=0.25)


class Decoder:
    """Decodes requests with a transformers model; for one call of :meth:`run`.

    Args:
        model: in evaluation mode.
        windows: of its layers, from :func:`~selfdistill.rollouts.row_cache.attention_windows`.
        terms: what the responses have in common.
        limits: how much is decoded side by side.
    """

    def __init__(self, model: Any, windows: Sequence[int | None], terms: Terms, limits: Limits) -> None:
        self._model = model
        self._windows = windows
        self._terms = terms
        self._limits = limits
        self._device = model.get_input_embeddings().weight.device
        # transformers would look at the flags of every row to make this mask, and so wait for the device.
        self._mask_is_ready = takes_ready_mask(model) and not any(windows)
        self._pace = _pace(self._device)
        self._rows: list[_Row] = []
        self._streams = UniformStreams([])
        self._cache = RowCache(windows)
        self._next = torch.empty(0, dtype=torch.long, device=self._device)
        self._starts = torch.empty(0, dtype=torch.long, device=self._device)

    @torch.no_grad()
    def run(self, requests: Sequence[Request]) -> Iterator[tuple[tuple[int, int], Completion]]:
        """Yield the completion of every request as it finishes.

        Raises:
            ModelError: the model's logits are not finite.
        """
        waiting = list(requests)
        while waiting or self._rows:
            count = self._admissible(waiting)
            if count:
                entering, waiting = waiting[:count], waiting[count:]
                self._enter(entering)
            else:
                self._advance()
            yield from self._leave()

    def _admissible(self, waiting: Sequence[Request]) -> int:
        """Return how many requests enter now: none until that is worth a pass over their prompts."""
        count = self._limits.admit(len(self._rows), waiting, self._terms.sampling.max_new_tokens)
        few = count < min(len(waiting), self._pace.free * (len(self._rows) + count))
        return 0 if few else count

    def _enter(self, requests: Sequence[Request]) -> None:
        """Read the distinct prompts, draw each new row's first token, and put the rows beside those under way."""
        prompts = {request.place[0]: request.prompt for request in requests}
        numbers = {index: number for number, index in enumerate(prompts)}
        ids, mask = left_padded(list(prompts.values()), self._terms.pad)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        prefilled = RowCache(self._windows)
        padded = None if bool(mask.all()) else mask.to(self._device)
        logits = self._logits(ids.to(self._device), padded, positions.to(self._device), prefilled)
        which = torch.tensor([numbers[request.place[0]] for request in requests], device=self._device)
        streams = UniformStreams([request.seed for request in requests])
        chosen = choose(logits[which], streams.next(self._device), self._terms.sampling)

        parts = [(prefilled, which)]
        if self._rows:
            parts.insert(0, (self._cache, torch.arange(len(self._rows), device=self._device)))
        entering = [_Row(request) for request in requests]
        self._rows += entering
        self._streams.join(streams)
        self._next = torch.cat([self._next, chosen[0]])
        self._read(entering, [chosen])
        self._arrange(parts)

    def _advance(self) -> None:
        """Draw the next token of every row, or the next few."""
        left = min(self._terms.sampling.max_new_tokens - len(row.ids) for row in self._rows)
        if self._cache.room == 0:
            self._arrange([(self._cache, torch.arange(len(self._rows), device=self._device))])
        self._read(self._rows, [self._step() for _ in range(min(self._pace.steps, self._cache.room, left))])

    def _step(self) -> Choices:
        width = self._cache.width
        columns = torch.arange(width + 1, device=self._device)
        visible = columns >= self._starts[:, None]
        mask = visible[:, None, None, :] if self._mask_is_ready else visible
        positions = (width - self._starts)[:, None]
        logits = self._logits(self._next[:, None], mask, positions, self._cache)
        chosen = choose(logits, self._streams.next(self._device), self._terms.sampling)
        self._next = chosen[0]
        return chosen

    def _logits(
        self,
        ids: Int64[Tensor, "rows tokens"],
        mask: Tensor | None,
        positions: Int64[Tensor, "rows tokens"],
        cache: RowCache,
    ) -> Float[Tensor, "rows vocab"]:
        """Return the logits behind the last token, and store the tokens in the cache."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _read(self, rows: Sequence[_Row], steps: Sequence[Choices]) -> None:
        """Hand the drawn tokens to their rows."""
        counted = 0
        drawn, their_logprobs = (torch.stack(each).tolist() for each in zip(*steps, strict=True))  # one transfer each
        for ids, logprobs in zip(drawn, their_logprobs, strict=True):
            for row, token, logprob in zip(rows, ids, logprobs, strict=True):
                counted += row.append(token, logprob, self._terms)
        if self._terms.on_tokens is not None and counted:
            self._terms.on_tokens(counted)

    def _leave(self) -> Iterator[tuple[tuple[int, int], Completion]]:
        """Yield the finished rows and close the gaps with the last rows."""
        gone = [row for row in self._rows if row.finished]
        if not gone:
            return
        for row in gone:
            yield row.request.place, completion(row.ids, row.logprobs, self._terms.ends)
        order = _closed_up([not row.finished for row in self._rows])
        kept = torch.tensor(order, dtype=torch.long, device=self._device)
        self._rows = [self._rows[index] for index in order]
        self._streams.keep(order)
        self._cache.keep(order)
        self._next, self._starts = self._next[kept], self._starts[kept]

    def _arrange(self, parts: Sequence[tuple[RowCache, Tensor]]) -> None:
        """Move all rows into a cache without columns that no row needs, and with room for the next ones."""
        stored = torch.tensor([row.stored for row in self._rows])
        width = int(stored.max())
        left = max(self._terms.sampling.max_new_tokens - len(row.ids) for row in self._rows)
        self._cache = RowCache.gathered(parts, width, min(left, max(_RESERVE, width // 8)))
        self._starts = (width - stored).to(self._device)


def _closed_up(kept: Sequence[bool]) -> list[int]:
    """Return the indices of the kept rows such that as many as possible stay in their place."""
    count = sum(kept)
    movers = [index for index in range(count, len(kept)) if kept[index]]
    return [index if kept[index] else movers.pop() for index in range(count)]
