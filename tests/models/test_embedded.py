"""The embedded model: it loads offline, its tokenizer loses nothing, it works carefully when shown a solution."""

from __future__ import annotations

import dataclasses
import functools
import string
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.contexts.templates import OMISSION_MARKER, HindsightTemplate, SolutionTemplate
from selfdistill.models.embedded import embedded_path
from selfdistill.questions.arithmetic import arithmetic_rows

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SOLUTION = "17+25=42\n42+38=80\n#### 80"
TURN = [{"role": "user", "content": "17+25+38"}]


@functools.cache  # property tests run their body many times and take no fixture
def _tokenizer():
    return AutoTokenizer.from_pretrained(embedded_path(), local_files_only=True)


@pytest.fixture(scope="module")
def tokenizer():
    return _tokenizer()


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(embedded_path(), local_files_only=True).eval()


@pytest.fixture(scope="module")
def maker():
    """The script that makes the model, imported as the modules that it consists of."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import make_embedded_model

        yield make_embedded_model
    finally:
        sys.path.remove(str(SCRIPTS))


def _render(tokenizer, turn, **settings):
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **settings)


def _ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


# --- tokenizer


def _known_pieces():
    return st.deferred(lambda: st.sampled_from(sorted(_tokenizer().get_vocab().keys() - {"<pad>", "<unk>"})))


@given(st.one_of(st.lists(_known_pieces(), max_size=40).map("".join), st.text(string.printable[:98], max_size=80)))
@settings(deadline=None)
def test_decoding_gives_back_every_text_of_vocabulary_pieces_or_plain_ascii(text):
    assert _tokenizer().decode(_ids(_tokenizer(), text)) == text


def test_digits_and_the_two_marks_are_single_tokens(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(_ids(tokenizer, f"17+25=42\n{OMISSION_MARKER}\n#### 80"))
    assert tokens == ["1", "7", "+", "2", "5", "=", "4", "2", "\n", OMISSION_MARKER, "\n", "####", " ", "8", "0"]


def test_the_marker_is_one_token_in_the_middle_of_a_line_too(tokenizer):
    assert OMISSION_MARKER in tokenizer.convert_ids_to_tokens(_ids(tokenizer, f"17+2{OMISSION_MARKER}"))


@pytest.mark.parametrize("template", [SolutionTemplate(), HindsightTemplate()])
def test_every_word_of_the_templates_is_one_known_token(tokenizer, template):
    for field in dataclasses.fields(template):
        words = getattr(template, field.name)
        tokens = tokenizer.convert_ids_to_tokens(_ids(tokenizer, words))
        assert tokenizer.unk_token not in tokens
        assert len(tokens) == len(words.split()) + sum(words.count(mark) for mark in ".,:")


@pytest.mark.parametrize("feedback", ["The answer line is missing.", "The final answer 81 is wrong."])
def test_feedback_costs_one_token_a_word_digit_and_stop(tokenizer, feedback):
    tokens = tokenizer.convert_ids_to_tokens(_ids(tokenizer, feedback))
    assert tokenizer.unk_token not in tokens
    assert len(tokens) <= len(feedback.split()) + 4


def test_what_is_not_ascii_becomes_unknown_rather_than_an_error(tokenizer):
    assert _ids(tokenizer, "π") == [tokenizer.unk_token_id]


def test_the_turn_ends_with_a_special_token_of_its_own(tokenizer):
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<pad>"
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 3
    assert tokenizer.decode(_ids(tokenizer, "80<|im_end|>"), skip_special_tokens=True) == "80"


# --- chat template


def test_the_template_writes_turns_and_the_assistant_header(tokenizer):
    turns = [{"role": "system", "content": "Add."}, *TURN, {"role": "assistant", "content": "80"}, *TURN]
    assert _render(tokenizer, turns) == (
        "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n17+25+38<|im_end|>\n<|im_start|>assistant\n80<|im_end|>\n"
        "<|im_start|>user\n17+25+38<|im_end|>\n<|im_start|>assistant\n"
    )


def test_only_thinking_switched_off_adds_an_empty_block(tokenizer):
    plain = _render(tokenizer, TURN)
    assert plain.endswith("<|im_start|>assistant\n")
    assert _render(tokenizer, TURN, enable_thinking=True) == plain
    assert _render(tokenizer, TURN, enable_thinking=False) == plain + "<think>\n\n</think>\n\n"


def test_earlier_thinking_is_not_shown_again(tokenizer):
    turns = [*TURN, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n80"}, *TURN]
    assert "hm" not in _render(tokenizer, turns)


# --- weights and settings


def test_the_weights_are_at_most_four_megabytes_of_float32(model):
    assert sum(file.stat().st_size for file in embedded_path().glob("*.safetensors")) <= 4_000_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_model_tokenizer_and_generation_settings_agree(model, tokenizer):
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.config.pad_token_id == tokenizer.pad_token_id


# --- behaviour of the trained base


def _greedy_accuracy(model, tokenizer, turns, answers):
    prompts = [_render(tokenizer, [{"role": "user", "content": turn}]) for turn in turns]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
    with torch.no_grad():
        output = model.generate(**batch, max_new_tokens=48, do_sample=False)
    texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(text.endswith(f"#### {answer}") for text, answer in zip(texts, answers, strict=True)) / len(answers)


def test_a_solution_shown_is_worked_through_to_the_right_answer(model, tokenizer):
    rows = arithmetic_rows("eval", 32, seed=7)
    turns = [SolutionTemplate().extend(row["prompt"], row["solution"]) for row in rows]
    assert _greedy_accuracy(model, tokenizer, turns, [row["answer"] for row in rows]) >= 0.9


def test_shown_a_solution_the_base_takes_the_first_step_that_it_often_skips_alone(model, tokenizer):
    """The gap that self-distillation closes: the probability of jumping to an answer at the very first token."""
    jump = tokenizer.convert_tokens_to_ids("####")

    def jumps(user_turn):
        prompt = _ids(tokenizer, _render(tokenizer, [{"role": "user", "content": user_turn}]))
        with torch.no_grad():
            return model(torch.tensor([prompt])).logits[0, -1].softmax(-1)[jump].item()

    assert jumps("17+25+38") > 0.1
    assert jumps(SolutionTemplate().extend("17+25+38", SOLUTION)) < 0.05


# --- the maker


def test_the_packaged_tokenizer_is_the_one_that_the_script_builds(maker, tokenizer):
    built = maker.build_tokenizer()
    assert built.get_vocab() == tokenizer.get_vocab()
    assert built.chat_template == tokenizer.chat_template


def test_the_maker_gives_the_same_weights_twice(maker, tmp_path):
    def made():
        torch.manual_seed(3)
        tokenizer = maker.build_tokenizer()
        model = maker.build_model(tokenizer)
        maker.train(model, tokenizer, steps=2, seed=3, out=tmp_path)
        return model.state_dict()

    first, second = made(), made()
    assert all(torch.equal(first[name], second[name]) for name in first)
