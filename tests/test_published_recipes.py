"""The recipes of the papers' tables: from one place, with the published settings, and each of them takes a step.

A step builds everything but the weights: a random model of the same architecture with two layers, and rows of the
tasks' real formats. A random model never succeeds, so every other sibling's response is replaced by a right one; then
the task's own verifier, the contexts, the weighting and the routing all have something to do.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Olmo3Config,
    Olmo3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from selfdistill import methods
from selfdistill.models.embedded import embedded_path
from selfdistill.questions import load_data
from selfdistill.rollouts import TransformersSampler
from selfdistill.rollouts.sampler import Completion
from selfdistill.training import start as start_module
from selfdistill.training.comparison import make_plan
from selfdistill.training.progress import NullProgress
from selfdistill.training.recipe import Recipe, load_recipe
from selfdistill.training.run import start, take_step
from selfdistill.training.studies import read_study

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
PUBLISHED = sorted(path for folder in ("paint", "sc_sdpo") for path in (RECIPES / folder).rglob("*.yaml"))
STUDIES = sorted((RECIPES / "studies").glob("*.yaml"))
SIZES = ("qwen3-8b", "qwen3-4b", "qwen3-1.7b")
TASKS = ("chemistry", "physics", "biology", "materials", "tool_use")
CONFIGURATIONS = (
    "grpo",
    "grpo_unnormalized",
    "sdpo",
    "paced",
    "hard_filter",
    "srpo",
    "sc_sdpo-alpha1",
    "sc_sdpo",
)


def named(path: Path) -> str:
    return str(path.relative_to(RECIPES).with_suffix(""))


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the script would write: path below recipes/ -> text."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    files: dict[str, str] = importlib.import_module("make_published_recipes").files()
    return files


def test_the_files_are_what_the_script_writes(generated: dict[str, str]) -> None:
    for name, text in generated.items():
        assert (RECIPES / name).read_text(encoding="utf-8") == text, f"{name}: run scripts/make_published_recipes.py"
    there = {str(path.relative_to(RECIPES)) for path in (*PUBLISHED, *STUDIES)}
    assert there == {name for name in generated if not name.startswith("common/")}


def test_there_is_a_recipe_for_every_row_of_the_tables() -> None:
    rows = {named(path) for path in PUBLISHED}
    table1 = {f"paint/table1/{size}/{method}" for size in SIZES for method in ("sft", "grpo", "opsd", "paint")}
    assert table1 == {row for row in rows if row.startswith("paint/table1/")}
    ablations = [row.split("/")[-1] for row in rows if row.startswith("paint/ablations/")]
    assert [sum(name.startswith(kind) for name in ablations) for kind in ("ratio-", "placement-", "k")] == [7, 4, 7]
    science = {f"sc_sdpo/table1/{task}/{name}" for task in TASKS for name in CONFIGURATIONS}
    assert science == {row for row in rows if row.startswith("sc_sdpo/table1/")}
    olmo = {f"sc_sdpo/table2/{task}/{name}" for task in TASKS for name in ("sdpo", "sc_sdpo")}
    assert olmo == {row for row in rows if row.startswith("sc_sdpo/table2/")}


@pytest.mark.parametrize("path", [path for path in PUBLISHED if "paint" in path.parts], ids=named)
def test_paint_s_rows_have_the_published_settings(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.model.lora is not None
    assert (recipe.model.lora.r, recipe.model.lora.alpha) == (64, 128)
    train = recipe.train
    assert (train.steps, train.questions_per_step, train.learning_rate, train.evaluate_every) == (100, 32, 5e-6, 20)
    assert (train.grad_clip, train.weight_decay, train.warmup_steps, train.schedule) == (0.1, 0.0, 0, "constant")
    evaluation = recipe.evaluation
    assert (evaluation.samples, evaluation.sampling.temperature, evaluation.sampling.top_p) == (12, 1.0, 0.95)
    assert (evaluation.sampling.max_new_tokens, evaluation.thinking) == (38_912, True)
    sampling = recipe.rollouts.sampling
    drawn = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens, recipe.rollouts.thinking)
    if recipe.method.name == "grpo":
        assert (*drawn, recipe.method.source.group_size) == (1.2, 1.0, 0, 16_384, True, 8)
    else:
        assert (*drawn, recipe.method.source.group_size) == (1.1, 0.95, 20, 1024, False, 1)


def test_paint_s_table_names_its_models_and_methods() -> None:
    models = {"qwen3-8b": "Qwen/Qwen3-8B", "qwen3-4b": "Qwen/Qwen3-4B", "qwen3-1.7b": "Qwen/Qwen3-1.7B"}
    for size, model in models.items():
        for method in ("sft", "grpo", "opsd", "paint"):
            recipe = load_recipe(RECIPES / "paint" / "table1" / size / f"{method}.yaml")
            clip = {"distillation.entry_clip": 0.06} if (size, method) == ("qwen3-8b", "opsd") else {}
            assert recipe.model.path == model
            assert recipe.method == methods.build(method, **clip)
    assert methods.build("opsd").distillation.entry_clip == 0.05
    assert methods.build("paint").context.thinking is True


@pytest.mark.parametrize("name", ["ratio-0.50-0.25", "placement-middle", "k0.03-f0.01"])
def test_an_ablation_changes_what_its_name_says(name: str) -> None:
    method = load_recipe(RECIPES / "paint" / "ablations" / f"{name}.yaml").method
    off = {"interpolation_fraction": 0.0, "interpolation_strength": 0.0}
    changed: dict[str, dict[str, Any]] = {
        "ratio-0.50-0.25": {"hidden_correct": 0.5, "hidden_wrong": 0.25, **off},
        "placement-middle": {"placement": "middle", **off},
        "k0.03-f0.01": {"interpolation_fraction": 0.01},
    }
    assert method == methods.build("paint", **changed[name])


@pytest.mark.parametrize("path", [path for path in PUBLISHED if "sc_sdpo" in path.parts], ids=named)
def test_sc_sdpo_s_rows_have_the_published_settings(path: Path) -> None:
    recipe = load_recipe(path)
    sampling = recipe.rollouts.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (1.0, 1.0, 0, 2048)
    assert recipe.rollouts.max_prompt_tokens == 2048
    train = recipe.train
    rate = 5e-6 if recipe.method.name == "srpo" else 1e-5
    assert (train.steps, train.questions_per_step, train.learning_rate, train.warmup_steps) == (200, 32, rate, 10)
    assert (train.grad_clip, train.weight_decay, train.schedule, train.updates_per_batch) == (1.0, 0.01, "constant", 1)
    evaluation = recipe.evaluation
    assert (evaluation.samples, evaluation.sampling.temperature, evaluation.sampling.top_p) == (16, 0.6, 0.95)
    assert recipe.model.lora is None and recipe.method.source.group_size == 8
    name, _, alpha = path.stem.partition("-alpha")
    settings = {"alpha": 1.0} if alpha else {}
    if not name.startswith("grpo"):
        settings["feedback"] = "off"
    assert recipe.method == methods.build("sc_sdpo" if name == "qwen3" else recipe.method.name, **settings)
    thinks_by_template = recipe.model.path == "allenai/Olmo-3-7B-Instruct"
    assert recipe.rollouts.thinking is (None if thinks_by_template else False)
    assert recipe.model.path == ("allenai/Olmo-3-7B-Instruct" if "table2" in path.parts else "Qwen/Qwen3-8B")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_rows_of_a_study_can_be_compared(path: Path, tmp_path: Path) -> None:
    study = read_study(path)
    plan = make_plan(study, [], out=tmp_path)
    names = [row.name for group in study.groups for row in group.rows]
    assert [entry.label for rows in plan.rows for entry in rows] == names
    assert all(job.recipe.name == entry.label for rows in plan.rows for entry in rows for job in entry.jobs)


def test_the_page_about_experiments_names_what_exists_and_its_study_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    for name in re.findall(r"recipes/[\w./-]+\.yaml", page):
        assert (ROOT / name).is_file(), name
    text = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert text is not None
    written = tmp_path / "study.yaml"
    written.write_text(text[1].replace("../embedded", str(RECIPES / "embedded")), encoding="utf-8")
    plan = make_plan(read_study(written), [], out=tmp_path)
    assert [entry.label for entry in plan.rows[0]] == ["frozen", "averaged", "paint"]


REAL = ROOT.parent / "shared" / "data"
FILES = {
    "chemistry": ("science/sciknoweval_chemistry_train.jsonl", "science/sciknoweval_chemistry_test.jsonl", 1890, 210),
    "biology": ("science/sciknoweval_biology_train.jsonl", "science/sciknoweval_biology_test.jsonl", 450, 50),
    "materials": ("science/sciknoweval_material_train.jsonl", "science/sciknoweval_material_test.jsonl", 841, 94),
    "tool_use": ("tools/tooluse_extra_eval_real.jsonl", "tools/sdpo_tooluse_test.jsonl", 104, 68),
}
"""Task -> training and evaluation questions, and how many the files have."""


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not beside the project")
@pytest.mark.parametrize("task", FILES)
def test_a_published_recipe_reads_the_real_questions(task: str) -> None:
    train, held_out, asked, kept_back = FILES[task]
    files = [f"data.train={json.dumps(str(REAL / train))}", f"data.eval={json.dumps(str(REAL / held_out))}"]
    data = load_data(load_recipe(RECIPES / "sc_sdpo" / "table1" / task / "sc_sdpo.yaml", files).data)
    assert len(data.eval) == kept_back
    assert asked - kept_back <= len(data.train) <= asked  # less what is also an evaluation question


SCIENCE = [
    {
        "idx": index,
        "kind": "mcq",
        "dataset": "sciknoweval",
        "answer": "B",
        "elo": 1500,
        "prompt": f"Which has {index} atoms?\n\nA: one\nB: two\nC: three\nD: four\nPlease reason step by step.",
        "description": "The solution will be evaluated in a mcq environment.",
        "tests": "-",
        "embedding": [],
        "system": "\nGiven a question and four options, please select the right answer. Respond in this format:"
        "\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>\n",
    }
    for index in range(2, 7)
]
TOOLS = [
    {
        "idx": index,
        "kind": "tooluse",
        "dataset": "tooluse",
        "answer": json.dumps([{"Action": "find", "Action_Input": json.dumps({"name": "otter"})}]),
        "elo": 1500,
        "prompt": "Your task is to answer the user's question using available tools.\nYou have access to the following "
        'tools:\nName: Zoo\nDescription: animals\nDocumentation:\nfind: Find one.\nParameters: {"name": "string"}\n\n'
        f"Begin!\nQuestion: Where is otter {index}?",
        "description": "The same again.",
        "tests": None,
        "system": None,
    }
    for index in range(5)
]
MATHS = [
    {
        "prompt": f"What is {index} + 12 - {index}?",
        "solution": f"First, {index} - {index} = 0.\nThen 0 + 12 = 12, so the answer is \\boxed{{12}}.",
        "answer": "12",
    }
    for index in range(13, 18)
]
RIGHT = {
    "science": "<reasoning>\nIt is so.\n</reasoning>\n<answer>\nB\n</answer>",
    "tools": 'Thought: look\nAction: find\nAction Input: {"name": "otter"}',
    "maths": "The answer is \\boxed{12}.",
}
"""A right response to every row of a task."""
SMALL = (
    "train.questions_per_step=2",
    "rollouts.sampling.max_new_tokens=12",
    "evaluation.sampling.max_new_tokens=12",
    "model.device=cpu",
)
FAMILIES = {
    "Qwen": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "allenai": (Olmo3Config, Olmo3ForCausalLM, {"layer_types": ["sliding_attention", "full_attention"]}),
}
"""Owner of the published weights -> architecture."""


@pytest.fixture(scope="session")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with two layers of random weights, by the owner of the published ones; Qwen has a thinking switch."""
    folders = {}
    for owner, (config, model, rest) in FAMILIES.items():
        tokenizer = AutoTokenizer.from_pretrained(embedded_path())
        if owner != "Qwen":
            tokenizer.chat_template = (
                "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\n' + message.content + "
                "'<|im_end|>\n' -}}{%- endfor -%}"
                "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
            )
        folders[owner] = tmp_path_factory.mktemp(owner)
        random_model(config, model, len(tokenizer), tokenizer.eos_token_id, rest).save_pretrained(folders[owner])
        tokenizer.save_pretrained(folders[owner])
    return folders


def random_model(
    config: type[PreTrainedConfig], model: type[PreTrainedModel], vocabulary: int, end: int, rest: dict[str, Any]
) -> PreTrainedModel:
    torch.manual_seed(0)
    return model(
        config(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=0,
            **rest,
        )
    )


class Planted(TransformersSampler):
    """Draws from the model, and then gives every other sibling a right response instead."""

    right = ""

    def stream(self, prompts, seeds, sampling, **options):
        ids = (*self._chat.encode(self.right), self._chat.end_of_turn_ids[0])
        for (prompt, sibling), drawn in super().stream(prompts, seeds, sampling, **options):
            planted = Completion(ids, (-2.0,) * len(ids), "stop")
            yield (prompt, sibling), planted if sibling % 2 else drawn


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder laid out as the checkout that the recipes name, with rows of ours; maths is the user's own."""
    for task in ("chemistry", "physics", "biology", "material"):
        write_rows(tmp_path / "datasets" / "sciknoweval" / task, SCIENCE)
    write_rows(tmp_path / "datasets" / "tooluse", TOOLS)
    write_rows(tmp_path / "maths", MATHS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        start_module,
        "make_engine",
        lambda policy, recipe, folder, world: Planted(policy.model, policy.chat, max_rows=64),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write train.json and test.json, one row per line as their authors have them."""
    folder.mkdir(parents=True)
    for name, part in (("train", rows[:3]), ("test", rows[3:])):
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")


def small(path: Path, models: dict[str, Path]) -> Recipe:
    """Return a published recipe with random weights and few tokens; everything else is as published."""
    published = load_recipe(path)
    own = [f"model.path={json.dumps(str(models[published.model.path.split('/')[0]]))}", "output.folder=run"]
    if published.data.task == "maths":
        own += ["data.train=maths/train.json", "data.eval=maths/test.json"]
    return load_recipe(path, [*SMALL, *own])


@pytest.mark.parametrize("path", PUBLISHED, ids=named)
def test_a_published_recipe_takes_a_step(
    path: Path, random_models: dict[str, Path], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(path, random_models)
    monkeypatch.setattr(Planted, "right", RIGHT[recipe.data.task])
    with start(recipe, resume=False, progress=NullProgress()) as run:
        assert (len(run.data.train), len(run.data.eval)) == (3, 2)
        metrics = take_step(run)
    assert math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
    assert metrics["grad_norm"] > 0 and metrics["skipped_updates"] == 0
    if recipe.method.source.group_size == 8:
        assert metrics["pass_rate"] == 0.5
        assert metrics["forwarded_share"] == 1.0
