"""`selfdistill export` writes a checkpoint as the folder that training itself writes at its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfdistill.checkpoints import CheckpointFolder, read_checkpoint
from selfdistill.cli import main
from selfdistill.training.run import train
from selfdistill.training.run_folder import RunFolder


@pytest.mark.parametrize("settings", [(), ("model.dtype=bfloat16",), ("model.lora={r: 2, alpha: 4}",)])
def test_the_last_checkpoint_is_exported_as_the_final_model(settings, make_recipe, tmp_path: Path, capsys) -> None:
    recipe = make_recipe("sft", *settings)
    train(recipe)
    folder, out = RunFolder(recipe.folder), tmp_path / "out"
    assert main(["export", str(folder.path), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"step 2: {out}\n"
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in folder.final.iterdir())
    for path in folder.final.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_best_checkpoint_and_a_step_are_exported(make_recipe, tmp_path: Path) -> None:
    recipe = make_recipe("sft", "train.save_every=1", "train.steps=3", "output.save_model=false")
    train(recipe)
    checkpoints = RunFolder(recipe.folder).checkpoints
    (checkpoints / "best.json").write_text(json.dumps({"step": 2, "score": 0.5}))
    for which, name in {"best": "best", "2": "step"}.items():
        assert main(["export", str(recipe.folder), "--out", str(tmp_path / name), "--checkpoint", which]) == 0
    weights = read_checkpoint(CheckpointFolder(checkpoints).of(2)).weights
    exported = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "best").named_parameters())
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[name], value) for name, value in weights.items())
    assert (tmp_path / "step" / "model.safetensors").read_bytes() == (
        tmp_path / "best" / "model.safetensors"
    ).read_bytes()


def test_what_cannot_be_exported_is_said(make_recipe, tmp_path: Path, capsys) -> None:
    recipe = make_recipe("sft", "train.steps=1", "train.keep_best=false", "output.save_model=false")
    run, out = str(recipe.folder), str(tmp_path / "out")

    def refused(*arguments: str) -> str:
        assert main(["export", *arguments]) == 1
        return capsys.readouterr().err

    assert "is no run folder" in refused(run, "--out", out)
    train(recipe)
    capsys.readouterr()
    assert "holds something already; choose a new folder" in refused(run, "--out", run)
    assert "train.keep_best is false; choose a step of 1, or last" in refused(run, "--out", out, "--checkpoint", "best")
    assert "there is no '7' in" in refused(run, "--out", out, "--checkpoint", "7")
    tensors = RunFolder(recipe.folder).checkpoints / "step-000001" / "__0_0.distcp"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert "its __0_0.distcp has " in refused(run, "--out", out)
    assert not Path(out).exists()
