"""TRL's SDPOTrainer with the rollouts of :mod:`benchmarks.update_batch`: its own step, only generation is replaced.

What is called is what its training loop calls per micro-batch, ``training_step``: it prepares the batch (tokenises,
scores, builds teacher prompts), forwards student and teacher, and differentiates. No optimiser step.

Its settings are the fastest that it has for this: no autocast, no activation checkpointing (its default; a variant
turns it on), no pass for old log-probabilities (one generation per optimiser step), sdpa attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from benchmarks.update_batch import CLOSING, DEMONSTRATION, UpdateBatch, as_text, in_memory, load_model, make_tokenizer

Mode = Literal["topk_logits", "full_logits"]


def make_trainer(batch: UpdateBatch, folder: Path, mode: Mode, *, checkpointing: bool = False) -> Any:
    """Return an SDPOTrainer whose generation gives the batch's responses, and whose rewards are the batch's."""
    import torch
    from datasets import Dataset
    from transformers.utils import logging
    from trl.experimental.sdpo import SDPOTrainer

    logging.set_verbosity_error()
    responses = [list(rollout.response_ids) for rollout in batch.rollouts]
    rewards = [verdict.reward for group in batch.groups for verdict in group.verdicts]

    class FixedRollouts(SDPOTrainer):
        def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
            assert [tuple(ids) for ids in prompt_ids] == [one.prompt_ids for one in batch.rollouts]
            return prompt_ids, responses

    def score(completions: list[str], **others: Any) -> list[float]:
        return rewards

    trainer: Any = FixedRollouts(
        model=load_model(folder, torch.device(batch.settings.device)),
        reward_funcs=score,
        args=_config(batch, folder, mode, checkpointing),
        train_dataset=Dataset.from_list([{"prompt": as_text(group.rollouts[0].prompt_ids)} for group in batch.groups]),
        processing_class=make_tokenizer(batch.settings.vocabulary),
    )
    in_memory(trainer.teacher_model)
    # Its training loop sets this before each optimiser step.
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer


def _config(batch: UpdateBatch, folder: Path, mode: Mode, checkpointing: bool) -> Any:
    from trl.experimental.sdpo import SDPOConfig

    settings = batch.settings
    return SDPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=settings.device == "cpu",
        bf16=False,  # weights have the dtype that is asked for
        report_to="none",
        seed=settings.seed,
        shuffle_dataset=False,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=len(batch.rollouts) // settings.micro_batch,
        gradient_checkpointing=checkpointing,
        num_generations=settings.rollouts,
        max_completion_length=settings.longest,
        temperature=1.0,
        distillation_mode=mode,
        distillation_topk=settings.top_k if mode == "topk_logits" else None,
        distillation_add_tail=True,
        distillation_alpha=0.5,
        teacher_model_kind="ema",
        success_reward_threshold=0.5,
        reprompt_template="{prompt}{solution}{feedback} " + as_text([CLOSING]),
        solution_template=f" {as_text([DEMONSTRATION])} {{successful_previous_attempt}}",
        diagnostics_warning_interval=0,
    )


def update_phase(trainer: Any, batch: UpdateBatch) -> float:
    """Run the micro-batches of one optimiser step and return the loss; gradients are left in the model."""
    trainer.model.zero_grad(set_to_none=True)
    trainer._step, trainer._buffered_inputs = 0, None
    inputs = [{"prompt": as_text(rollout.prompt_ids)} for rollout in batch.rollouts]
    steps = trainer.args.gradient_accumulation_steps
    return sum(float(trainer.training_step(trainer.model, inputs, None)) for _ in range(steps))


def same_teacher_prompts(trainer: Any, batch: UpdateBatch) -> bool:
    """Say whether, after a run, TRL's teacher read the very ids that ours reads."""
    expected = [prompt for prompts in batch.prompts for prompt in prompts]
    found = []
    for inputs in trainer._buffered_inputs:
        responses = inputs["completion_ids"].shape[1]
        for ids, mask in zip(inputs["teacher_input_ids"], inputs["teacher_attention_mask"], strict=True):
            prompt, real = ids[:-responses], mask[:-responses].bool()
            found.append(tuple(prompt[real].tolist()))
    pairs = zip(found, expected, strict=True)
    return all(prompt is None or ids == prompt.token_ids for ids, prompt in pairs)
