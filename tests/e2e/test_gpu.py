from pathlib import Path

import pytest
import torch

from selfdistill.training.recipe import parse_recipe
from selfdistill.training.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses(folder: Path, **model: object) -> list[float]:
    import json

    recipe = parse_recipe(
        {
            "method": {"name": "paint", "distillation": {"entry_clip": None}},
            "model": {"path": "embedded", **model},
            "train": {"steps": 3, "questions_per_step": 8, "evaluate_first": False, "learning_rate": 1e-4},
            "rollouts": {"sampling": {"max_new_tokens": 48}},
            "evaluation": {"questions": 8, "samples": 2, "sampling": {"max_new_tokens": 48}},
            "output": {"folder": str(folder)},
        }
    )
    train(recipe)
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_gpu_gives_the_first_loss_of_a_cpu(tmp_path: Path):
    on_gpu = losses(tmp_path / "cuda", device="cuda")
    on_cpu = losses(tmp_path / "cpu", device="cpu")
    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=1e-3)


@pytest.mark.parametrize("lora", [None, {"r": 8, "alpha": 16}])
def test_bf16_trains_on_a_gpu_with_finite_losses(tmp_path: Path, lora: dict[str, int] | None):
    values = losses(tmp_path / "bf16", device="cuda", dtype="bfloat16", lora=lora)
    assert all(torch.isfinite(torch.tensor(values)))
