"""Sampling with transformers' own ``generate``.

``generate`` does the decoding (cache, positions under left padding, stopping); one logits processor makes the choice of
each row from that row's own random stream, keeps its log-probability, and hands ``generate`` scores whose arg-max is
the choice. In: prompt ids and seeds. Out: completions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from selfdistill.errors import DataError, ModelError, RecipeError
from selfdistill.rollouts.chat import ChatFormat
from selfdistill.rollouts.choice import UniformStreams, choose
from selfdistill.rollouts.sampler import Completion, Sampling

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class TransformersSampler:
    """A :class:`~selfdistill.rollouts.sampler.Sampler` over a transformers (or peft) model, where the model is.

    Args:
        model: a decoder-only model. It is put into evaluation mode while it samples and given back as it was; the
            sampling settings of its generation config (temperature, penalties, beams ...) are not used.
        chat: says which ids end a turn and which id fills a batch.
        batch_tokens: most tokens of a batch, counted as rows x (longest prompt + new tokens): it bounds the cache.
        max_rows: most rows of a batch.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        chat: ChatFormat,
        *,
        batch_tokens: int = 32_768,
        max_rows: int = 256,
    ) -> None:
        if batch_tokens < 1 or max_rows < 1:
            raise RecipeError(f"batch_tokens {batch_tokens} and max_rows {max_rows} must both be at least 1")
        self._model: Any = model
        self._chat = chat
        self._batch_tokens = batch_tokens
        self._max_rows = max_rows

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Return one completion per seed; see :meth:`selfdistill.rollouts.sampler.Sampler.sample`.

        Raises:
            DataError: an empty prompt.
            RecipeError: a prompt and ``max_new_tokens`` together exceed the model's context.
            ModelError: the model's logits are not finite.
        """
        self._check(prompts, sampling)
        requests = [
            _Request(prompt, seed, (index, sibling))
            for index, (prompt, own_seeds) in enumerate(zip(prompts, seeds, strict=True))
            for sibling, seed in enumerate(own_seeds)
        ]
        done: dict[tuple[int, int], Completion] = {}
        with torch.no_grad(), _ready_to_generate(self._model):
            for batch in self._batches(requests, sampling.max_new_tokens):
                for request, completion in zip(batch, self._generate(batch, sampling, on_tokens), strict=True):
                    done[request.place] = completion
        return [[done[index, sibling] for sibling in range(len(own))] for index, own in enumerate(seeds)]

    def _check(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        longest = max(map(len, prompts), default=0)
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if any(len(prompt) == 0 for prompt in prompts):
            raise DataError("a prompt has no tokens; a question needs at least one message with content")
        if context is not None and longest + sampling.max_new_tokens > context:
            raise RecipeError(
                f"a prompt of {longest} tokens and max_new_tokens {sampling.max_new_tokens} exceed the model's context "
                f"of {context} tokens; lower max_new_tokens or drop questions with long prompts"
            )

    def _batches(self, requests: Sequence[_Request], new_tokens: int) -> Iterator[list[_Request]]:
        """Cut the requests, shortest prompts first, into batches within both limits (a lone row is always allowed)."""
        batch: list[_Request] = []
        for request in sorted(requests, key=lambda request: len(request.prompt)):
            rows = len(batch) + 1
            over = rows > self._max_rows or rows * (len(request.prompt) + new_tokens) > self._batch_tokens
            if batch and over:
                yield batch
                batch = []
            batch.append(request)
        if batch:
            yield batch

    def _generate(
        self, batch: Sequence[_Request], sampling: Sampling, on_tokens: Callable[[int], None] | None
    ) -> list[Completion]:
        device = self._model.get_input_embeddings().weight.device
        ends, pad = self._chat.end_of_turn_ids, self._chat.pad_id
        ids, mask = _left_padded([request.prompt for request in batch], pad)
        choice = SeededChoice([request.seed for request in batch], sampling, ends, on_tokens)
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,  # the choice is the processor's
            use_cache=True,
            eos_token_id=list(ends),
            pad_token_id=pad,
        )
        sequences = self._model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([choice]),
        )
        responses = sequences[:, ids.shape[1] :].tolist()
        logprobs = choice.logprobs().tolist()
        return [_completion(*row, ends) for row in zip(responses, logprobs, strict=True)]


class SeededChoice(LogitsProcessor):
    """Chooses every row's next token from that row's random stream, and remembers the log-probabilities."""

    def __init__(
        self,
        seeds: list[int],
        sampling: Sampling,
        ends: Sequence[int],
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        self._streams = UniformStreams(seeds)
        self._sampling = sampling
        self._ends = torch.tensor(ends)
        self._on_tokens = on_tokens
        self._unfinished = torch.ones(len(seeds), dtype=torch.bool)
        self._logprobs: list[Float[Tensor, " rows"]] = []

    def __call__(
        self, input_ids: Int64[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        """Return scores that are 0 at the chosen id and minus infinity elsewhere."""
        ids, logprobs = choose(scores, self._streams.next(scores.device), self._sampling)
        self._logprobs.append(logprobs)
        if self._on_tokens is not None:  # reading the count waits for the device, so only on request
            self._unfinished = self._unfinished.to(scores.device)
            self._on_tokens(int(self._unfinished.sum()))
            self._unfinished &= ~torch.isin(ids, self._ends.to(scores.device))
        return torch.full_like(scores, -torch.inf).scatter_(-1, ids[:, None], 0)

    def logprobs(self) -> Float[Tensor, "rows steps"]:
        """Return the log-probabilities of all choices so far; those after a row's end mean nothing."""
        return torch.stack(self._logprobs, dim=1)


@dataclass(frozen=True, slots=True)
class _Request:
    """One wanted completion."""

    prompt: Sequence[int]
    seed: int
    place: tuple[int, int]
    """Index of the prompt and of the sibling."""


def _left_padded(
    prompts: Sequence[Sequence[int]], pad: int
) -> tuple[Int64[Tensor, "rows tokens"], Int64[Tensor, "rows tokens"]]:
    """Return ids and mask with every prompt at the right edge, so that all rows continue at the same column."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _completion(ids: list[int], logprobs: list[float], ends: Sequence[int]) -> Completion:
    """Cut a generated row after its first end-of-turn id, which is kept."""
    length = next((position + 1 for position, token in enumerate(ids) if token in ends), None)
    kept = tuple(logprobs[: length or len(ids)])
    if not all(map(math.isfinite, kept)):
        raise ModelError("the model's logits are not finite; check its weights, and its precision (try bfloat16)")
    return Completion(tuple(ids[:length]), kept, "length" if length is None else "stop")


@contextmanager
def _ready_to_generate(model: Any) -> Iterator[None]:
    """Put the model into evaluation mode under an empty generation config, and give it back as it was.

    ``generate`` fills everything that a call leaves open from the model's own config: a published temperature or a
    repetition penalty would silently change the distribution. A peft model writes its config into the model that it
    wraps, so both are put back. In evaluation mode layers keep their cache even under gradient checkpointing.
    """
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    configs = [owner.generation_config for owner in owners]
    modes = [(module, module.training) for module in model.modules()]
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig()
        model.eval()
        yield
    finally:
        for owner, config in zip(owners, configs, strict=True):
            owner.generation_config = config
        for module, mode in modes:
            module.training = mode
