"""The tokenizer and the chat template of the embedded model.

Out: a ``PreTrainedTokenizerFast`` in which digits and symbols are single tokens and every word of the privileged
templates is one token, with or without the space before it, so that an English heading costs a few tokens. Any other
ASCII word falls apart into its longest known pieces, down to letters; decode(encode(text)) == text for all of ASCII's
printable characters, tabs and line ends. Everything else becomes ``<unk>``.
"""

from __future__ import annotations

import re
import string
from dataclasses import fields

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfdistill.contexts.templates import OMISSION_MARKER, HindsightTemplate, SolutionTemplate

PAD, START, END, END_OF_TEXT, UNKNOWN = "<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<unk>"
THINK, END_THINK = "<think>", "</think>"
ANSWER_MARK = "####"

FEEDBACK_SENTENCES = (
    "The answer line is missing.",
    "The final answer {wrong} is wrong.",
    "The final answer {wrong} is wrong; the expected answer is {answer}.",
    "Your answer {wrong} is not correct. Expected {answer}.",
    "The response was cut off before its final answer.",
    "No answer line was found. End with a line such as #### {wrong}.",
    "Step 1 of your attempt has an error.",
)
"""What verifiers may say of an attempt; the corpus shows them, so that the model has met the words."""

_OTHER_WORDS = """
a an and any are as at be but by can could did do does each every first for from given has have here how if in into its
last let line lines number numbers of on one only or out parse parsed part partial question questions read reason
reference response responses result results right second see should so sum sums than that then there they think this to
total two unparseable user using value was we were what which with without work worked write you your assistant system
helpful correctly incorrect calculate compute check carefully again below above example hint hidden steps text try
verified attempts
"""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set content = message.content -%}
{%- if message.role == 'assistant' and '</think>' in content -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""
"""Qwen's turns; thinking is switched off by an empty block only where ``enable_thinking=False`` asks for it."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer, with its chat template."""
    pieces = [PAD, START, END, END_OF_TEXT, THINK, END_THINK, UNKNOWN, *_vocabulary()]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    # WordPiece without a continuation prefix is greedy longest match: known words whole, others in letters at worst.
    backend = Tokenizer(
        models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix="", max_input_chars_per_word=10_000)
    )
    pattern = Regex(rf"{re.escape(OMISSION_MARKER)}|{ANSWER_MARK}| ?[A-Za-z]+|[\s\S]")
    backend.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in (THINK, END_THINK)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[START, END_OF_TEXT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
    )


def _vocabulary() -> list[str]:
    """Return characters, then the two marks, then words, in a fixed order without repetition."""
    templates = (SolutionTemplate(), HindsightTemplate())
    sentences = [getattr(template, part.name) for template in templates for part in fields(template)]
    words = re.findall(r"[A-Za-z]+", " ".join([*sentences, *FEEDBACK_SENTENCES, _OTHER_WORDS]))
    forms = [form for word in words for form in (word, word.lower(), word.capitalize())]
    characters = [*"\n\t\r ", *string.digits, *string.punctuation, *string.ascii_letters]
    spaced = [space + form for form in forms for space in ("", " ")]
    return list(dict.fromkeys([*characters, ANSWER_MARK, OMISSION_MARKER, *spaced]))
