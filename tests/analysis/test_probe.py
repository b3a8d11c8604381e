import json
from dataclasses import replace

import pytest
import torch

from selfdistill.analysis.probe import probe, verdict
from selfdistill.analysis.subject import open_subject
from selfdistill.cli import main
from selfdistill.errors import RecipeError
from selfdistill.evaluation.bootstrap import Interval
from selfdistill.teachers.weights import snapshot
from selfdistill.training.teacher_accuracy import Answered, held_out_slice, measure_teacher, summarise

RECIPES = "recipes/embedded"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_embedded_self_teacher_knows_more_than_its_student():
    with open_subject(f"{RECIPES}/paint.yaml") as subject:
        before = snapshot(subject.state.model)
        found = probe(subject, questions=16, samples=4)
        assert all(torch.equal(value, before[name]) for name, value in snapshot(subject.state.model).items())
    assert found.where == "held-out" and found.accuracy.questions == 16 and found.accuracy.samples == 4
    assert found.accuracy.gap.low > 0
    assert found.accuracy.gap.mean == pytest.approx(found.accuracy.teacher.mean - found.accuracy.student.mean)
    assert "There is something to learn" in verdict(found.accuracy)
    assert found.tokens["divergence"] > 0 and found.informative is None


def test_questions_without_a_context_are_counted_and_left_out_of_the_comparison():
    found = summarise(
        [
            Answered(student=(True, False), teacher=(True, True), cut=(0, 1), leaks=0),
            Answered(student=(False, False), teacher=(), cut=(2, 0), leaks=0),
        ],
        samples=2,
        level=0.95,
    )
    assert (found.questions, found.covered) == (2, 1)
    assert (found.student.mean, found.teacher.mean, found.student_on_all.mean) == (0.5, 1.0, 0.25)
    assert (found.student_truncated, found.teacher_truncated, found.informative) == (0.5, 0.5, 0.5)


def test_no_context_at_all_is_said_not_divided_by():
    found = summarise([Answered((False,), (), (0, 0), 0)], samples=1, level=0.95)
    assert found.covered == 0 and "No question got a privileged context" in verdict(found)


@pytest.mark.parametrize(
    ("gap", "says"),
    [
        (Interval(-0.1, -0.2, 0.0), "no better than the student"),
        (Interval(0.1, -0.1, 0.3), "cannot be told"),
        (Interval(0.1, 0.05, 0.2), "knows more"),
    ],
)
def test_the_verdict_follows_from_the_interval(gap, says):
    known = summarise([Answered((True,), (True,), (0, 0), 0)], samples=1, level=0.95)
    assert says in verdict(replace(known, gap=gap))


def test_the_teacher_answers_with_its_own_weights():
    with open_subject(f"{RECIPES}/opsd.yaml") as subject:
        asked = subject.data.eval[:8]
        before = measure_teacher(subject.trainer, subject.state.teacher, asked, 2)
        with torch.no_grad():  # a student that has been ruined; its teacher keeps the initial weights
            for parameter in subject.state.model.parameters():
                parameter.zero_()
        after = measure_teacher(subject.trainer, subject.state.teacher, asked, 2)
    assert after.student.mean == 0
    assert after.teacher.mean == before.teacher.mean > 0.5


def test_training_questions_are_asked_where_held_out_ones_lack_what_the_teacher_is_shown():
    with open_subject(f"{RECIPES}/paint.yaml") as subject:
        method = subject.recipe.method
        bare = replace(subject.data, eval=tuple(replace(one, solution=None) for one in subject.data.eval))
        assert held_out_slice(method, subject.data, 3)[1] == "held-out"
        assert held_out_slice(method, bare, 3) == (subject.data.train[:3], "training")


def test_a_method_without_a_teacher_cannot_be_probed(capsys):
    assert main(["probe", f"{RECIPES}/grpo.yaml"]) == 1
    assert "'grpo' has no self-teacher" in capsys.readouterr().err
    with open_subject(f"{RECIPES}/grpo.yaml") as subject, pytest.raises(RecipeError):
        held_out_slice(subject.recipe.method, subject.data, 1)


def test_the_command_prints_the_gap_and_writes_json(tmp_path, capsys):
    out = tmp_path / "probe.json"
    words = ["probe", f"{RECIPES}/sc_sdpo.yaml", "--questions", "8", "--samples", "4", "--no-cost", "--json", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "does the self-teacher know more?" in printed and "informative" in printed
    found = json.loads(out.read_text())
    assert found["gap"]["low"] > 0 and found["batch"]["rollouts"] == 64
