"""Make the embedded model.

    python scripts/make_embedded_model.py [--steps STEPS] [--out FOLDER] [--seed SEED]

In: nothing but this repository. Out: a folder that transformers loads: a Qwen3 of 0.87 million parameters (float32,
3.5 MB), its tokenizer, chat template and generation settings, and a model card with the measured figures. Takes
about 400 seconds on two idle CPU cores (697 on two busy ones) and a minute more to measure. The result depends on the
seed, on the number of steps and, through float rounding, on the number of threads and the machine's kernels.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from embedded_corpus import Example, make_examples, render_prompt
from embedded_tokenizer import END, END_OF_TEXT, FEEDBACK_SENTENCES, PAD, build_tokenizer
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)

from selfdistill.contexts.masking import mask_solution
from selfdistill.contexts.templates import HindsightTemplate, SolutionTemplate
from selfdistill.models.embedded import embedded_path
from selfdistill.questions.arithmetic import arithmetic_rows

BATCH = 128
MICRO_BATCHES = 4
LEARNING_RATE = 3e-3
WARM_UP = 40
SAMPLES = 8
SAMPLING = {"max_new_tokens": 56, "num_return_sequences": SAMPLES}
HELD_OUT = 192
THREADS = 2


@dataclass(frozen=True, slots=True)
class Figures:
    """What one way of asking gave on held-out questions at temperature 1."""

    asked: str
    mean_pass_rate: float
    informative: float
    by_level: dict[int, float]


def main() -> None:
    """Build, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="optimiser steps of 128 examples")
    parser.add_argument("--out", type=Path, default=embedded_path(), help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    save(model, tokenizer, options.out)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)

    started = time.perf_counter()
    train(model, tokenizer, steps=options.steps, seed=options.seed, out=options.out)
    seconds = time.perf_counter() - started
    save(model, tokenizer, options.out)
    figures = measure(model, tokenizer)
    card = model_card(figures, options.steps, options.seed, seconds, model.num_parameters())
    (options.out / "README.md").write_text(card)
    print(card)


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """Return the untrained model."""
    ends = tokenizer.convert_tokens_to_ids([END, END_OF_TEXT])
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=ends[0],
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        eos_token_id=ends,
        pad_token_id=config.pad_token_id,
    )
    return model


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write model and tokenizer in transformers' layout."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, *, steps: int, seed: int, out: Path) -> None:
    """Train on fresh examples, each question once; save now and then so that an interrupted run leaves something."""
    rows = arithmetic_rows("train", steps * BATCH, seed)
    draws = random.Random(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP, steps)
    started = time.perf_counter()
    running = 0.0
    model.train()
    for step in range(1, steps + 1):
        examples = make_examples(rows[(step - 1) * BATCH : step * BATCH], tokenizer, draws)
        learned = sum(sum(example.learned) for example in examples)
        for input_ids, targets in micro_batches(examples, int(model.config.pad_token_id)):
            hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
            chosen = targets >= 0
            loss = cross_entropy(model.lm_head(hidden[chosen]), targets[chosen], reduction="sum") / learned
            loss.backward()
            running += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 20 == 0 or step == steps:
            seconds = time.perf_counter() - started
            print(f"step {step:4d}/{steps}  loss {running / (step % 20 or 20):.4f}  {seconds:6.1f} s", flush=True)
            running = 0.0
        if step % 100 == 0:
            save(model, tokenizer, out)
    model.eval()


def micro_batches(examples: Sequence[Example], pad_id: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (input ids, targets) [rows, longest - 1]; targets are -1 where nothing is learned.

    Examples of like length go together, padded on the right: causal attention never looks there, so no attention mask
    is needed.
    """
    ordered = sorted(examples, key=lambda example: len(example.prompt_ids) + len(example.response_ids))
    size = -(-len(ordered) // MICRO_BATCHES)
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        longest = max(len(example.prompt_ids) + len(example.response_ids) for example in part)
        input_ids = torch.full((len(part), longest), pad_id)
        targets = torch.full((len(part), longest), -1)
        for row, example in enumerate(part):
            ids = torch.tensor(example.prompt_ids + example.response_ids)
            input_ids[row, : len(ids)] = ids
            response = slice(len(example.prompt_ids), len(ids))
            targets[row, response] = torch.where(torch.tensor(example.learned), ids[response], -1)
        yield input_ids[:, :-1], targets[:, 1:]


def measure(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> list[Figures]:
    """Return the figures of held-out questions, asked in the ways that the methods ask."""
    rows = arithmetic_rows("eval", HELD_OUT, seed=1)
    solved, hindsight = SolutionTemplate().extend, HindsightTemplate().extend
    ways: dict[str, Callable[[str, str], str]] = {
        "alone": lambda question, solution: question,
        "full solution": solved,
        "solution, last 35% hidden": lambda question, solution: solved(question, mask_solution(solution, 0.35)),
        "correct sibling": lambda question, solution: hindsight(question, solution, None),
        "feedback only": lambda question, solution: hindsight(question, None, FEEDBACK_SENTENCES[0]),
    }
    figures = []
    for asked, turn in ways.items():
        prompts = [render_prompt(turn(str(row["prompt"]), str(row["solution"])), tokenizer) for row in rows]
        passes = pass_rates(model, tokenizer, prompts, [str(row["answer"]) for row in rows])
        levels = sorted({int(str(row["level"])) for row in rows})
        by_level = {
            level: _mean([p for p, row in zip(passes, rows, strict=True) if row["level"] == level]) for level in levels
        }
        figures.append(Figures(asked, _mean(passes), _mean([float(0 < p < 1) for p in passes]), by_level))
        print(figures[-1], flush=True)
    return figures


@torch.no_grad()
def pass_rates(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> list[float]:
    """Return each prompt's share of right answers among its samples at temperature 1."""
    torch.manual_seed(0)
    model.eval()
    rates = []
    for start in range(0, len(prompts), 32):
        some = list(prompts[start : start + 32])
        batch = tokenizer(some, return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **SAMPLING)
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, answer in enumerate(answers[start : start + 32]):
            samples = texts[index * SAMPLES : (index + 1) * SAMPLES]
            rates.append(_mean([float(text.rpartition("#### ")[2] == answer and "####" in text) for text in samples]))
    return rates


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def model_card(figures: Sequence[Figures], steps: int, seed: int, seconds: float, parameters: int) -> str:
    """Return the folder's README."""
    levels = sorted(figures[0].by_level)
    head = "| asked | pass rate | 0 < p < 1 | " + " | ".join(f"{level} terms" for level in levels) + " |"
    lines = [head, "|---" * (3 + len(levels)) + "|"]
    for row in figures:
        per_level = [f"{row.by_level[level]:.2f}" for level in levels]
        cells = [row.asked, f"{row.mean_pass_rate:.3f}", f"{row.informative:.2f}", *per_level]
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    return f"""# The embedded model

A Qwen3-architecture language model of {parameters:,} parameters (4 layers, width 128, float32) with its own tokenizer
and chat template. It does one thing: sums of two to five terms, worked step by step. It exists so that every method of
this package can be tried in minutes without a download; it is of no other use.

It knows the careful procedure, one step per line, and uses it only sometimes: shown a solution, a part of one, a
correct sibling or feedback it nearly always works carefully; asked alone it often jumps to a guess. That is the gap
which self-distillation closes. What it takes for help are the default words of the templates (`selfdistill.contexts`):
other headings and closing lines move it much less.

Made from nothing but generated text by `python scripts/make_embedded_model.py --steps {steps} --seed {seed}`: {steps}
steps of {BATCH} examples, {seconds:.0f} seconds on two CPU cores. Licence: Apache-2.0, like the package.

{HELD_OUT} questions of the task's `eval` split, which training never sees, {SAMPLES} samples each, temperature 1:

{table}
"""


if __name__ == "__main__":
    main()
