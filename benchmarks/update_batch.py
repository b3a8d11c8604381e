"""One batch for the whole update phase: a random Qwen3, rollouts of log-normal lengths, rewards, teacher prompts.

Everything is seeded token ids. A tokenizer with one word per id stands between them and text, because peers want text:
encoding what it decodes gives the same ids.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from benchmarks.arguments import Settings, setting
from selfdistill.contexts.prompt import PrivilegedPrompt
from selfdistill.models.loading import ModelConfig, Policy
from selfdistill.questions.question import Question
from selfdistill.rollouts.chat import ChatFormat
from selfdistill.rollouts.rollout import Rollout
from selfdistill.verifiers.verdict import Group, Verdict

PAD, END, DEMONSTRATION, CLOSING = 0, 1, 2, 3
"""Ids of the padding, of the end of a turn, and of the words around a demonstration."""
WORDS = 4
"""The first id that a prompt or a response may contain."""

BLOCK = 32
"""Rows after which the lengths repeat, so that a larger batch has the same mixture."""

Signal = Literal["all", "half"]


@dataclass(frozen=True, kw_only=True)
class UpdateSettings(Settings):
    """Sizes of the update benchmark."""

    FOR_CUDA: ClassVar[dict[str, Any]] = {
        "layers": 16,
        "width": 2048,
        "inner": 6144,
        "heads": 16,
        "key_value_heads": 8,
        "head_width": 128,
        "vocabulary": 151_936,
        "longest": 1024,
        "question": 256,
        "dtype": "bfloat16",
    }
    QUICK: ClassVar[dict[str, Any]] = {
        "layers": 1,
        "width": 16,
        "inner": 32,
        "heads": 2,
        "key_value_heads": 1,
        "head_width": 8,
        "vocabulary": 211,
        "rollouts": 4,
        "longest": 12,
        "question": 5,
        "micro_batch": 4,
        "top_k": 20,
    }

    layers: int = setting(8, "of the model")
    width: int = setting(512, "of the model")
    inner: int = setting(1536, "width inside a feed-forward block")
    heads: int = setting(8, "attention heads")
    key_value_heads: int = setting(4, "key and value heads")
    head_width: int = setting(64, "of an attention head")
    vocabulary: int = setting(49_152, "V")
    tied: bool = setting(True, "whether the head is the embedding")
    dtype: str = setting("float32", "of the weights")
    questions: int = setting(4, "in the batch")
    rollouts: int = setting(8, "per question")
    longest: int = setting(220, "tokens of the longest response; the median is a quarter")
    question: int = setting(64, "tokens of a question")
    micro_batch: int = setting(8, "rows of a peer's micro-batch")
    positions: int = setting(0, "positions of our micro-batch; 0: as many as a peer's has, padding included")
    top_k: int = setting(100, "K of the top-k mode")


@dataclass(frozen=True)
class UpdateBatch:
    """What one optimiser step sees."""

    settings: UpdateSettings
    groups: tuple[Group, ...]
    prompts: tuple[tuple[PrivilegedPrompt | None, ...], ...]

    @cached_property
    def rollouts(self) -> list[Rollout]:
        """All rollouts, group by group."""
        return [rollout for group in self.groups for rollout in group.rollouts]

    @property
    def tokens(self) -> int:
        """Response tokens in the batch."""
        return sum(len(rollout.response_ids) for rollout in self.rollouts)

    @property
    def token_budget(self) -> int:
        """Positions of our micro-batch."""
        if self.settings.positions:
            return self.settings.positions
        longest = max(len(one.prompt_ids) + len(one.response_ids) for one in self.rollouts)
        return self.settings.micro_batch * longest

    def drawn_with(self, logprobs: Sequence[tuple[float, ...]]) -> UpdateBatch:
        """Return the batch with the log-probabilities that its responses were drawn with."""
        remaining = iter(logprobs)

        def noted(group: Group) -> Group:
            return replace(group, rollouts=tuple(replace(one, logprobs=next(remaining)) for one in group.rollouts))

        return replace(self, groups=tuple(map(noted, self.groups)))


def make_batch(settings: UpdateSettings, signal: Signal) -> UpdateBatch:
    """Return the rollouts of one batch, every other sibling right.

    With ``half``, every other question is all right or all wrong instead. The teacher sees the first success of the
    group that is not the rollout itself.
    """
    generator = torch.Generator().manual_seed(settings.seed)

    def words(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(WORDS, settings.vocabulary, (count,), generator=generator).tolist())

    rows = settings.questions * settings.rollouts
    lengths = log_normal_lengths(min(rows, BLOCK), settings.longest)
    shuffled = [lengths[index % len(lengths)] for index in torch.randperm(rows, generator=generator)]
    groups, prompts = [], []
    for number in range(settings.questions):
        asked = words(settings.question)
        question = Question(f"q{number}", ({"role": "user", "content": as_text(asked)},), None, None)
        own = shuffled[number * settings.rollouts : (number + 1) * settings.rollouts]
        responses = [(*words(length - 1), END) for length in own]
        rollouts = tuple(
            Rollout(question, sibling, asked, ids, None, as_text(ids[:-1]), "stop")
            for sibling, ids in enumerate(responses)
        )
        rewards = _rewards(number, settings.rollouts, signal)
        groups.append(Group(question, rollouts, tuple(Verdict(reward, reward > 0) for reward in rewards)))
        prompts.append(tuple(_privileged(asked, responses, rewards, index) for index in range(settings.rollouts)))
    return UpdateBatch(settings, tuple(groups), tuple(prompts))


def log_normal_lengths(rows: int, longest: int) -> list[int]:
    """Return the quantiles of a log-normal distribution whose median is a quarter of its largest value here."""
    normal = statistics.NormalDist()
    places = [normal.inv_cdf((index + 0.5) / rows) for index in range(rows)]
    scale = math.log(4) / max(places[-1], 1e-9)
    return [max(2, round(longest / 4 * math.exp(scale * place))) for place in places]


def as_text(ids: Sequence[int]) -> str:
    """Return the words of ids."""
    return " ".join(f"w{index}" for index in ids)


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one word per id: ``w17`` is 17."""
    words = {"<pad>": PAD, "<end>": END} | {f"w{index}": index for index in range(END + 1, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        chat_template="{% for message in messages %}{{ message.content }} {% endfor %}",
    )


def save_model(settings: UpdateSettings, folder: Path) -> None:
    """Write a seeded random model and its tokenizer, so that everybody loads the same weights."""
    logging.disable_progress_bar()
    torch.manual_seed(settings.seed)
    config = Qwen3Config(
        vocab_size=settings.vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.inner,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        head_dim=settings.head_width,
        max_position_embeddings=4 * (settings.longest + settings.question) + 16,
        tie_word_embeddings=settings.tied,
        initializer_range=0.05,  # sharp enough that distributions are not uniform
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model: Any = Qwen3ForCausalLM(config).to(getattr(torch, settings.dtype))
    model.save_pretrained(folder)
    make_tokenizer(settings.vocabulary).save_pretrained(folder)


def load_model(folder: Path, device: torch.device) -> Any:
    """Return the saved model, its weights in memory of their own: a mapped file would only be read by the first run."""
    loader: Any = Qwen3ForCausalLM
    return in_memory(loader.from_pretrained(folder, dtype="auto", attn_implementation="sdpa").to(device))


def in_memory(model: nn.Module) -> nn.Module:
    """Copy the parameters out of whatever file they may be mapped from."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def make_policy(folder: Path, settings: UpdateSettings) -> Policy:
    """Return the saved model as what our training works on."""
    device = torch.device(settings.device)
    tokenizer = make_tokenizer(settings.vocabulary)
    return Policy(load_model(folder, device), tokenizer, ChatFormat(tokenizer), ModelConfig(), device)


def _rewards(question: int, rollouts: int, signal: Signal) -> list[float]:
    if signal == "half" and question % 2 == 0:
        return [float(question % 4 == 0)] * rollouts
    return [float(sibling % 2 == 0) for sibling in range(rollouts)]


def _privileged(
    asked: tuple[int, ...], responses: Sequence[tuple[int, ...]], rewards: Sequence[float], own: int
) -> PrivilegedPrompt | None:
    shown = next((index for index, reward in enumerate(rewards) if reward > 0 and index != own), None)
    if shown is None:
        return None
    demonstration = responses[shown][:-1]
    ids = (*asked, DEMONSTRATION, *demonstration, CLOSING)
    return PrivilegedPrompt((), ids, as_text(demonstration), "demonstration", demonstrator=shown)
