import math

import pytest
import torch

from selfdistill.analysis.divergences import MEASURES, study, token_measures
from selfdistill.analysis.scored import score
from selfdistill.analysis.subject import open_subject
from selfdistill.cli import main
from selfdistill.errors import RecipeError

RECIPES = "recipes/embedded"


@pytest.fixture(scope="module")
def subject():
    torch.set_num_threads(1)
    with open_subject(f"{RECIPES}/sc_sdpo.yaml") as opened:
        opened.trainer.policy.model.double()
        yield opened


def test_the_four_measures_are_those_of_a_dense_computation(subject):
    group = subject.draw([subject.question(None)], 8)[0]
    scored = score(subject, subject.plan([group]).rows)[0]
    measured = token_measures(scored)
    model = subject.trainer.policy.model
    start = 0
    for row in scored.rows:
        response = row.rollout.response_ids
        sides = []
        for prompt in (row.rollout.prompt_ids, row.prompt.token_ids):
            with torch.no_grad():
                made = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
            sides.append((made[len(prompt) - 1 : len(prompt) + len(response) - 1]).log_softmax(-1))
        student, teacher = sides
        places = student.topk(min(100, student.shape[-1] - 1), dim=-1).indices
        own, told = ([side.gather(-1, places)] for side in sides)
        for kept, side in ((own, student), (told, teacher)):
            kept.append((1 - side.gather(-1, places).exp().sum(-1, keepdim=True)).clamp_min(1e-300).log())
        p, q = torch.cat(own, -1), torch.cat(told, -1)
        middle = (0.5 * (p.exp() + q.exp())).log()
        ids = torch.tensor(response).unsqueeze(-1)
        s, t = student.gather(-1, ids).squeeze(-1), teacher.gather(-1, ids).squeeze(-1)
        expected = {
            "reverse_kl": (p.exp() * (p - q)).sum(-1),
            "jsd": 0.5 * (p.exp() * (p - middle)).sum(-1) + 0.5 * (q.exp() * (q - middle)).sum(-1),
            "log_ratio": t - s,
            "contrast": 0.5 * (s - (0.5 * (s.exp() + t.exp())).log()),
        }
        for name, values in expected.items():
            got = measured[name][start : start + len(response)]
            torch.testing.assert_close(got, values, rtol=1e-6, atol=1e-9, msg=name)
        start += len(response)


def test_a_study_counts_every_token_once_and_says_what_it_leaves_out(subject):
    found = study(subject, questions=4)
    assert found["questions"] == 4 and found["siblings"] == 8
    assert len(found["rollouts"]) + found["without_context"] == 32
    tokens = {side: sum(one["tokens"] for one in found["rollouts"] if one["success"] == side) for side in (True, False)}
    for name in MEASURES:
        histogram = found["histograms"][name]
        assert (sum(histogram["correct"]), sum(histogram["wrong"])) == (tokens[True], tokens[False])
        assert len(histogram["edges"]) == len(histogram["correct"]) + 1
    assert all(math.isfinite(one[name]) for one in found["rollouts"] for name in MEASURES)
    assert {one["pass_rate"] for one in found["rollouts"]} <= {k / 8 for k in range(9)}


def test_a_method_without_a_teacher_has_nothing_to_measure():
    with open_subject(f"{RECIPES}/grpo.yaml") as opened, pytest.raises(RecipeError, match="'grpo' has no self-teacher"):
        study(opened, questions=1)


def test_the_report_measures_a_run_when_asked_and_says_why_not(tmp_path, capsys):
    quick = ["train.steps=1", "train.questions_per_step=2", "data.eval_limit=2", "evaluation.samples=2"]
    for method in ("sc_sdpo", "grpo"):
        assert main(["train", f"{RECIPES}/{method}.yaml", *quick, f"output.folder={tmp_path / method}"]) == 0
    capsys.readouterr()
    runs = [str(tmp_path / method) for method in ("sc_sdpo", "grpo")]
    assert main(["report", *runs, "--measure", "2", "--out", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    assert "grpo: its method has no self-teacher" in printed
    assert "Divergence by pass rate" in printed and "not there: Divergence" not in printed
    assert (tmp_path / "sc_sdpo" / "analysis" / "divergences.json").exists()
