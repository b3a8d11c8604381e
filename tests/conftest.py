"""Fixtures for every package: a random two-layer Qwen3 with a tokenizer of single characters and a chat template."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from selfdistill.rollouts.chat import ChatFormat

_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
_CHARACTERS = "0123456789+-*/=#();.,:?! \nabcdefghijklmnopqrstuvwxyz<>|_"
_TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}"""


# The machine may be busy: a property that holds must not fail for being slow.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


TOGETHER = {
    "tests/vllm_real/": "vLLM servers that these tests share",
    "tests/parallel/test_ray.py": "Ray clusters: several at a time are slow, and look at each other's leftovers",
    "tests/parallel/test_same_numbers.py": "one pair of processes that makes all runs",
    "tests/verifiers/test_maths_hostile.py": "answers that take long to refuse, once",
    "tests/test_docs_site.py": "one build of the site",
}
"""Tests that go to one worker, because of what they share; every other test goes wherever there is room."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep tests that share something expensive together, those with vLLM first.

    xdist's own groups (``--dist loadgroup``) have no effect under pytest 9.2, which ignores the names that they give.
    """
    from xdist.scheduler import LoadScopeScheduling

    class SharersTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((beginning for beginning in TOGETHER if nodeid.startswith(beginning)), nodeid)

    return SharersTogether(config, log)


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate([*_SPECIALS, *_CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_TEMPLATE,
    )


@pytest.fixture
def tiny_chat(tiny_tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    return ChatFormat(tiny_tokenizer)


@pytest.fixture
def tiny_model(tiny_tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Random weights, large enough for next-token distributions that are far from uniform; float32, training mode."""
    config = Qwen3Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).train()
