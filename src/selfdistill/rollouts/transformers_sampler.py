"""Sampling with a transformers model: continuous decoding where its cache allows that, ``generate`` where not.

In: prompt ids and seeds. Out: completions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationMixin

from selfdistill.errors import DataError, RecipeError
from selfdistill.rollouts.chat import ChatFormat
from selfdistill.rollouts.decoding import Decoder
from selfdistill.rollouts.generate import generate
from selfdistill.rollouts.grouped_attention import grouped_attention
from selfdistill.rollouts.requests import Limits, Request, Terms
from selfdistill.rollouts.row_cache import attention_windows
from selfdistill.rollouts.sampler import Completion, Engine, Place, Sampling

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class TransformersSampler(Engine):
    """An :class:`~selfdistill.rollouts.sampler.Engine` over a transformers (or peft) model, where the model is.

    Args:
        model: a decoder-only model. It is put into evaluation mode while it samples and given back as it was; the
            sampling settings of its generation config (temperature, penalties, beams ...) are not used.
        chat: says which ids end a turn and which id fills a batch.
        batch_tokens: most tokens side by side, counted as rows x (longest prompt + new tokens): it bounds the cache.
        max_rows: most rows side by side.
    """

    in_policy = True

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
        self._limits = Limits(max_rows, batch_tokens)

    @property
    def whole_rounds(self) -> bool:
        """On a CPU, where a resumed run is the undisturbed one bit for bit: rows that are decoded together share sums.

        On an accelerator no two runs have the same bits anyway, and finished responses are worth more.
        """
        device: torch.device = self._model.get_input_embeddings().weight.device
        return device.type == "cpu" and self._limits.rows > 1

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

        Raises:
            DataError: an empty prompt.
            RecipeError: a prompt and ``max_new_tokens`` together exceed the model's context.
            ModelError: the model's logits are not finite.
        """
        self._check(prompts, sampling)
        requests = [
            Request(prompt, seed, (index, sibling))
            for index, (prompt, own_seeds) in enumerate(zip(prompts, seeds, strict=True))
            for sibling, seed in enumerate(own_seeds)
        ]
        requests.sort(key=lambda request: len(request.prompt))
        ends = (*self._chat.end_of_turn_ids, *sampling.stop_token_ids)
        terms = Terms(sampling, ends, self._chat.pad_id, on_tokens)
        with _evaluating(self._model):
            yield from self._decode(requests, terms)

    def sync(self, version: str) -> None:
        """Do nothing: the model is the policy itself."""

    def close(self) -> None:
        """Do nothing: the model is the policy's."""

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

    def _decode(self, requests: Sequence[Request], terms: Terms) -> Iterator[tuple[tuple[int, int], Completion]]:
        base = _base(self._model)
        windows = attention_windows(base.config.get_text_config()) if _steps_alone(base) else None
        if windows is None:
            yield from generate(self._model, requests, terms, self._limits)
            return
        with grouped_attention(base):
            yield from Decoder(self._model, windows, terms, self._limits).run(requests)


def _base(model: Any) -> Any:
    """Return the transformers model, which a peft model wraps."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _steps_alone(model: Any) -> bool:
    """Whether ids, mask, positions and cache are all that a step of this model takes.

    Models that prepare their inputs themselves, or that bring their own code, are left to ``generate``.
    """
    cls: Any = next(
        one for one in type(model).__mro__ if not issubclass(one, FSDPModule)
    )  # what it was before it was divided
    return (
        cls.__module__.startswith("transformers.")
        and cls.prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation
        and {"position_ids", "past_key_values", "logits_to_keep"} <= inspect.signature(cls.forward).parameters.keys()
    )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Put the model into evaluation mode, and give every module's mode back.

    In evaluation mode layers keep their cache even under gradient checkpointing.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
