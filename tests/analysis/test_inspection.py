import copy
import json
import math

import pytest
import torch

from selfdistill.analysis.choosing import chosen_group
from selfdistill.analysis.inspection import inspect
from selfdistill.analysis.subject import open_subject
from selfdistill.cli import main
from selfdistill.contexts.anchors import anchor_overlap
from selfdistill.errors import DataError, TrainingError
from selfdistill.teachers.weights import snapshot
from selfdistill.training.loop import Clock
from selfdistill.training.progress import NullProgress
from selfdistill.training.run import train
from selfdistill.weighting import pass_rate_weights

RECIPES = "recipes/embedded"
QUICK = [
    "train.steps=2",
    "train.questions_per_step=4",
    "train.save_every=1",
    "data.eval_limit=4",
    "evaluation.samples=2",
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["paint", "sc_sdpo"])
def double(request):
    """A subject in float64, so that a plain forward pass is a reference."""
    with open_subject(f"{RECIPES}/{request.param}.yaml", ["model.device=cpu"]) as subject:
        subject.trainer.policy.model.double()
        yield subject


def logits(subject, prompt, response):
    """The logits that predict each response token, by one forward pass over everything."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        made = subject.trainer.policy.model(input_ids=ids).logits[0]
    return made[len(prompt) - 1 : len(prompt) + len(response) - 1]


def test_every_column_is_what_two_plain_forward_passes_say(double):
    group, _ = chosen_group(double)
    xray = inspect(double, group, update=False)
    plan = double.plan([group])
    looked_at = [(row, one) for row, one in zip(plan.rows, xray.rollouts, strict=True) if one.tokens is not None]
    assert len(looked_at) > 1
    temperature = xray.settings["distillation temperature"]
    for row, one in looked_at:
        response = row.rollout.response_ids
        student = (logits(double, row.rollout.prompt_ids, response) / temperature).log_softmax(-1)
        teacher = (logits(double, row.prompt.token_ids, response) / temperature).log_softmax(-1)
        ids = torch.tensor(response).unsqueeze(-1)
        student_entropy, teacher_entropy = (-(side.exp() * side).sum(-1) for side in (student, teacher))
        expected = {
            "student_entropy": student_entropy,
            "teacher_entropy": teacher_entropy,
            "entropy_ratio": teacher_entropy / student_entropy.clamp_min(1e-6),
        }
        if double.recipe.rollouts.sampling.temperature == temperature:
            expected["student_logprob"] = student.gather(-1, ids).squeeze(-1)
            expected["teacher_logprob"] = teacher.gather(-1, ids).squeeze(-1)
            expected["log_ratio"] = expected["teacher_logprob"] - expected["student_logprob"]
        for name, values in expected.items():
            torch.testing.assert_close(one.tokens.columns[name], values.float(), rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(one.tokens.ids, torch.tensor(response))
        for top, side in ((one.tokens.student, student), (one.tokens.teacher, teacher)):
            values, places = side.exp().topk(10, dim=-1)
            torch.testing.assert_close(top.probabilities, values.float(), rtol=1e-5, atol=1e-7)
            assert torch.equal(top.ids[:, 0], places[:, 0])


def test_interpolated_positions_show_the_mixed_target(double):
    part = double.recipe.method.distillation
    group, _ = chosen_group(double)
    xray = inspect(double, group, update=False)
    for row, one in zip(double.plan([group]).rows, xray.rollouts, strict=True):
        if one.tokens is None:
            continue
        if not part.interpolates:
            assert not one.tokens.selected.any() and len(one.tokens.interpolated.ids) == 0
            continue
        response = row.rollout.response_ids
        assert int(one.tokens.selected.sum()) == math.ceil(part.interpolation_fraction * len(response))
        student, teacher = (
            logits(double, prompt, response) for prompt in (row.rollout.prompt_ids, row.prompt.token_ids)
        )
        mixed = (1 - part.interpolation_strength) * teacher + part.interpolation_strength * student
        target = (mixed / xray.settings["distillation temperature"]).softmax(-1)[one.tokens.selected]
        torch.testing.assert_close(one.tokens.interpolated.probabilities, target.topk(10).values.float())


def test_the_effect_is_that_of_a_real_update_and_everything_is_put_back(double):
    group, _ = chosen_group(double)
    state = double.state
    weights, moments = snapshot(state.model), copy.deepcopy(state.optimizer.state_dict())
    teacher = {name: value.clone() for name, value in state.teacher.weights.items()}
    xray = inspect(double, group)
    assert all(torch.equal(value, weights[name]) for name, value in snapshot(state.model).items())
    assert all(torch.equal(value, teacher[name]) for name, value in state.teacher.weights.items())
    assert state.optimizer.state_dict()["state"].keys() == moments["state"].keys()
    assert (state.step, state.skipped_updates) == (0, 0)

    double.trainer.update(double.plan([group]), state, Clock(NullProgress()))
    try:
        state.model.eval()
        for row, one in zip(double.plan([group]).rows, xray.rollouts, strict=True):
            if one.tokens is None:
                continue
            response = row.rollout.response_ids
            made = logits(double, row.rollout.prompt_ids, response) / double.recipe.rollouts.sampling.temperature
            own = made.log_softmax(-1).gather(-1, torch.tensor(response).unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(one.tokens.columns["student_logprob_after"], own.float(), rtol=1e-4, atol=1e-5)
            assert not torch.equal(one.tokens.columns["student_logprob_after"], one.tokens.columns["student_logprob"])
    finally:
        with torch.no_grad():
            for name, parameter in state.model.named_parameters():
                parameter.copy_(weights[name])
        state.optimizer.load_state_dict(moments)
        for name, value in state.teacher.weights.items():
            value.copy_(teacher[name])


def test_the_hidden_part_and_the_anchors_are_those_of_the_prompt():
    with open_subject(f"{RECIPES}/paint.yaml") as subject:
        group, _ = chosen_group(subject)
        xray = inspect(subject, group, update=False)
    for one in xray.rollouts:
        context = one.context
        assert "".join(part for part, _ in context.solution_parts) == xray.solution
        hidden = sum(len(part) for part, is_hidden in context.solution_parts if is_hidden)
        assert hidden == math.floor(context.hidden_ratio * len(xray.solution) + 0.5)
        found = [anchor.found for anchor in context.anchors]
        assert sum(found) / len(found) == context.overlap == anchor_overlap(xray.solution, one.text)


@pytest.mark.parametrize("method", ["grpo", "srpo", "sft", "paced", "opsd"])
def test_every_kind_of_method_can_be_looked_at(method):
    with open_subject(f"{RECIPES}/{method}.yaml") as subject:
        xray = inspect(subject, chosen_group(subject)[0])
    scored = [one for one in xray.rollouts if one.tokens is not None]
    assert scored and xray.update
    for one in scored:
        assert (one.tokens.teacher is not None) == (one.objective == "distillation")
        assert set(one.tokens.ids.tolist()) <= xray.vocabulary.keys()


def test_a_lone_success_has_no_signal_and_no_tokens():
    with open_subject(f"{RECIPES}/sc_sdpo.yaml", ["method.context.feedback='off'"]) as subject:
        for question in subject.data.train[:60]:
            group = subject.draw([question], 4)[0]
            if sum(verdict.success for verdict in group.verdicts) == 1:
                break
        else:
            pytest.skip("no lone success among these questions")
        xray = inspect(subject, group)
    for one in xray.rollouts:
        assert (one.tokens is None) == one.success


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from selfdistill.training.recipe import load_recipe

    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.set_num_threads(1)
    recipe = load_recipe(f"{RECIPES}/sc_sdpo.yaml", [*QUICK, f"output.folder={folder}"])
    train(recipe)
    return folder


def test_a_run_shows_the_rollouts_that_it_saved_token_for_token(finished):
    saved = [json.loads(line) for line in (finished / "rollouts.jsonl").read_text().splitlines()]
    last = [one for one in saved if one["step"] == 2]
    with open_subject(str(finished), checkpoint="1") as subject:
        group, weight = chosen_group(subject, saved_step=2)
        xray = inspect(subject, group)
    own = [one for one in last if one["question"] == group.question.id]
    assert [list(one.response_ids) for one in group.rollouts] == [one["response_ids"] for one in own]
    assert [one.success for one in group.verdicts] == [one["success"] for one in own]
    assert weight == own[0]["weight"] == xray.rollouts[0].weight
    assert xray.weights == "checkpoint after step 1"


def test_a_checkpoint_draws_what_its_run_drew_next(finished):
    saved = [json.loads(line) for line in (finished / "rollouts.jsonl").read_text().splitlines()]
    second = next(one for one in saved if one["step"] == 2)
    with open_subject(str(finished), checkpoint="1") as subject:
        group, _ = chosen_group(subject, question=second["question"], siblings=subject.recipe.method.source.group_size)
    assert list(group.rollouts[second["sibling"]].response_ids) == second["response_ids"]


def test_the_folder_of_a_run_is_left_as_it_was(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with open_subject(str(finished)) as subject:
        inspect(subject, chosen_group(subject)[0])
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_what_cannot_be_looked_at_is_one_clear_error(finished, tmp_path):
    with open_subject(str(finished)) as subject:
        with pytest.raises(DataError, match=r"--question: there is no question 'nobody'"):
            chosen_group(subject, question="nobody")
        with pytest.raises(DataError, match=r"nothing of step 99 .*output\.save_rollouts=all"):
            chosen_group(subject, saved_step=99)
        with pytest.raises(DataError, match="of step 2 these were saved"):
            chosen_group(subject, saved_step=2, question="nobody")
    with pytest.raises(TrainingError, match=r"no run folder.*recipe\.yaml"), open_subject(str(tmp_path)):
        pass
    with pytest.raises(TrainingError, match="choose of last, best"), open_subject(str(finished), checkpoint="77"):
        pass


def test_the_command_writes_a_page_and_says_what_is_on_it(finished, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["inspect", str(finished), "--rollouts", "4", "--no-update", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "checkpoint after step 2" in printed and "rollout 3:" in printed and str(out) in printed
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "http://" not in page and "https://" not in page


def test_saved_rollouts_are_those_of_a_run(capsys):
    assert main(["inspect", f"{RECIPES}/paint.yaml", "--from-step", "1"]) == 1
    assert "--from-step is about the rollouts that a run has saved" in capsys.readouterr().err


def test_a_question_is_weighed_beside_those_of_the_latest_batch(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    counts = rows[-1]["pass_rate_histogram"]
    with open_subject(str(finished)) as subject:
        group, weight = chosen_group(subject)
        rates = [place / (len(counts) - 1) for place, count in enumerate(counts) for _ in range(count)]
        expected = pass_rate_weights([group.pass_rate, *rates])[0]
    assert weight == pytest.approx(expected)


def test_a_recipe_has_no_checkpoint(capsys):
    assert main(["inspect", f"{RECIPES}/paint.yaml", "--checkpoint", "best"]) == 1
    assert "--checkpoint is 'best', but" in capsys.readouterr().err
