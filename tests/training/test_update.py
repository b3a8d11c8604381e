"""Loss and gradient are what the papers' formulas say, whatever the micro-batches; what has no signal costs nothing."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from selfdistill.contexts import PrivilegedPrompt
from selfdistill.errors import TrainingError
from selfdistill.methods import Method, build, names
from selfdistill.models.loading import ModelConfig, Policy
from selfdistill.objectives.heads import HeadName
from selfdistill.objectives.losses import TokenLosses
from selfdistill.questions.question import Question
from selfdistill.rollouts.chat import ChatFormat
from selfdistill.rollouts.rollout import Rollout
from selfdistill.teachers import SelfTeacher, start_teacher
from selfdistill.teachers.weights import trainable
from selfdistill.training.config import ScoringConfig
from selfdistill.training.metrics import TokenMeans
from selfdistill.training.plan import Row, make_plan
from selfdistill.training.update import Scoring, accumulate_gradients, gradient_norm
from selfdistill.verifiers.verdict import Group, Verdict

TEMPERATURE = 1.1
VOCABULARY = 57
TOP_K = 20
REWARDS = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
PROMPTED = [[False, True, True, True], [True] * 4, [True] * 4, [False] * 4]  # a lone success, and no success at all
PRIOR = {"q0": 0.25, "q1": 0.75, "q2": 0.5, "q3": 0.0}
EXACT = {"atol": 1e-10, "rtol": 1e-9}


@dataclass
class Batch:
    """Rollouts drawn by an earlier policy, their privileged prompts, a student and a separate copy of its teacher."""

    policy: Policy
    method: Method
    groups: list[Group]
    prompts: list[list[PrivilegedPrompt | None]]
    teacher: SelfTeacher | None
    teacher_model: nn.Module

    def rows(self) -> tuple[Row, ...]:
        (rows,) = make_plan(self.method, self.groups, self.prompts, PRIOR).parts(1, self.method.reduction)
        return rows

    def pairs(self) -> list[tuple[Rollout, PrivilegedPrompt | None, Verdict, int]]:
        return [
            (rollout, prompt, verdict, number)
            for number, (group, prompts) in enumerate(zip(self.groups, self.prompts, strict=True))
            for rollout, prompt, verdict in zip(group.rollouts, prompts, group.verdicts, strict=True)
        ]


def built(name: str, **settings: Any) -> Method:
    """A method whose top-k support fits the tiny vocabulary."""
    method = build(name)
    if method.distillation is not None and method.distillation.support != "full":
        settings = {"top_k": TOP_K} | settings
    return build(name, **settings)


@torch.no_grad()
def move(model: nn.Module, seed: int, scale: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def logits(model: nn.Module, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """The model's own logits at the positions before each response token, one unpadded sequence at a time."""
    everything = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
    return everything[len(prompt) - 1 : -1]


def of_ids(log_probs: Tensor, ids: Sequence[int]) -> Tensor:
    return log_probs[torch.arange(len(ids)), torch.tensor(ids)]


@torch.no_grad()
def fake_rollouts(model: nn.Module) -> tuple[list[Group], list[list[PrivilegedPrompt | None]]]:
    generator = torch.Generator().manual_seed(11)

    def ids(low: int, high: int) -> tuple[int, ...]:
        count = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(4, VOCABULARY, (count,), generator=generator).tolist())

    groups, prompts = [], []
    for number, (rewards, prompted) in enumerate(zip(REWARDS, PROMPTED, strict=True)):
        question = Question(f"q{number}", ({"role": "user", "content": "1+1"},), "1+1=2", "2")
        asked, rollouts = ids(2, 9), []
        for sibling in range(len(rewards)):
            response = ids(1, 13)
            exact = of_ids(torch.log_softmax(logits(model, asked, response) / TEMPERATURE, -1), response)
            drawn = exact + 0.4 * torch.randn(len(response), generator=generator)  # off-policy, to both sides
            rollouts.append(Rollout(question, sibling, asked, response, tuple(drawn.tolist()), "2", "stop"))
        groups.append(Group(question, tuple(rollouts), tuple(Verdict(reward, reward > 0) for reward in rewards)))
        prompts.append([PrivilegedPrompt((), asked + ids(1, 30), "2", "x") if flag else None for flag in prompted])
    return groups, prompts


@pytest.fixture
def policy(tiny_model: Qwen3ForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tiny_chat: ChatFormat) -> Policy:
    return Policy(tiny_model.double().eval(), tiny_tokenizer, tiny_chat, ModelConfig(), torch.device("cpu"))


@pytest.fixture
def batch(policy: Policy) -> Callable[..., Batch]:
    """Make a batch for a method: the student has moved since the rollouts were drawn and the teacher was started."""

    def make(method: Method) -> Batch:
        groups, prompts = fake_rollouts(policy.model)
        if method.imitation is not None:
            groups = [
                Group(one.question, (replace(one.rollouts[0], logprobs=None),), (Verdict(1.0, True),)) for one in groups
            ]
            prompts = [[None] for _ in groups]
        before = copy.deepcopy(policy.model)
        teacher = start_teacher(method.teacher, policy.model)
        move(policy.model, seed=1)
        if teacher is not None:
            teacher.after_batch()
        share = method.teacher.rate if method.teacher.kind == "moving_average" else 0.0
        with torch.no_grad():
            for name, parameter in trainable(before).items():
                parameter.lerp_(trainable(policy.model)[name], share)
        return Batch(policy, method, groups, prompts, teacher, before)

    return make


def update(one: Batch, budget: int = 10_000, rows: Sequence[Row] | None = None) -> tuple[float, dict[str, Tensor]]:
    """Return the loss and the gradient of one optimiser step's rows."""
    model = one.policy.model
    model.zero_grad(set_to_none=True)
    scoring = Scoring(TEMPERATURE, budget)
    rows = one.rows() if rows is None else rows
    loss = accumulate_gradients(rows, one.method, one.policy, one.teacher, scoring, TokenMeans())
    return loss, gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in trainable(model).items()
    }


def assert_same(first: tuple[float, dict[str, Tensor]], second: tuple[float, dict[str, Tensor]]) -> None:
    assert first[0] == pytest.approx(second[0], abs=1e-10, rel=1e-9)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        torch.testing.assert_close(gradient, second[1][name], **EXACT)


# --- The formulas, written once more, densely and without any of the package's objectives ---------------------------


def paint_losses(student: Tensor, teacher: Tensor, fraction: float, strength: float, clip: float) -> Tensor:
    log_s, log_t = torch.log_softmax(student / TEMPERATURE, -1), torch.log_softmax(teacher / TEMPERATURE, -1)
    ratio = (log_t.exp() * log_t).sum(-1) / (log_s.exp() * log_s).sum(-1).detach()
    count = math.ceil(fraction * len(ratio))
    chosen = sorted(range(len(ratio)), key=lambda n: (-float(ratio[n]), n))[:count]
    target = teacher.clone()
    target[chosen] = (1 - strength) * teacher[chosen] + strength * student[chosen].detach()
    log_p = torch.log_softmax(target / TEMPERATURE, -1)
    return (log_p.exp() * (log_p - log_s)).clamp(max=clip).sum(-1)


def sdpo_losses(student: Tensor, teacher: Tensor, rollout: Rollout, cap: float = 2.0) -> Tensor:
    log_s, log_t = torch.log_softmax(student / TEMPERATURE, -1), torch.log_softmax(teacher / TEMPERATURE, -1)
    ids = log_s.topk(TOP_K, -1).indices
    kept_s, kept_t = log_s.exp().gather(-1, ids), log_t.exp().gather(-1, ids)
    p_s = torch.cat([kept_s, 1 - kept_s.sum(-1, keepdim=True)], -1)
    p_t = torch.cat([kept_t, 1 - kept_t.sum(-1, keepdim=True)], -1)
    mixture = (p_s + p_t) / 2
    divergence = 0.5 * (p_s * (p_s / mixture).log()).sum(-1) + 0.5 * (p_t * (p_t / mixture).log()).sum(-1)
    return divergence * importance(log_s, rollout).detach().clamp(max=cap)


def importance(log_s: Tensor, rollout: Rollout) -> Tensor:
    return (of_ids(log_s, rollout.response_ids) - torch.tensor(rollout.logprobs, dtype=torch.float64)).exp()


def grpo_losses(student: Tensor, rollout: Rollout, advantage: float) -> Tensor:
    ratio = importance(torch.log_softmax(student / TEMPERATURE, -1), rollout)
    clipped = torch.where(ratio < 0.8, torch.full_like(ratio, 0.8), ratio)
    clipped = torch.where(ratio > 1.28, torch.full_like(ratio, 1.28), clipped)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def both(one: Batch, rollout: Rollout, prompt: PrivilegedPrompt) -> tuple[Tensor, Tensor]:
    student = logits(one.policy.model, rollout.prompt_ids, rollout.response_ids)
    return student, logits(one.teacher_model, prompt.token_ids, rollout.response_ids).detach()


def advantages(rewards: Sequence[float], normalize: bool = True) -> list[float]:
    values = torch.tensor(rewards, dtype=torch.float64)
    centred = values - values.mean()
    std = values.std(correction=0)
    return (centred / std if normalize and std > 0 else centred).tolist()


def reference(one: Batch) -> Tensor:
    """The method's loss as a plain sum over rollouts and tokens; differentiable."""
    name, total = one.method.name, torch.zeros((), dtype=torch.float64)
    pairs = one.pairs()
    tokens = sum(len(rollout.response_ids) for rollout, *_ in pairs)
    if name == "sft":
        for rollout, *_ in pairs:
            student = logits(one.policy.model, rollout.prompt_ids, rollout.response_ids)
            total = total - of_ids(torch.log_softmax(student, -1), rollout.response_ids).sum() / tokens
        return total
    if name.startswith("grpo"):
        for rollout, _, _, number in pairs:
            advantage = advantages(REWARDS[number], name == "grpo")[rollout.sibling]
            student = logits(one.policy.model, rollout.prompt_ids, rollout.response_ids)
            total = total + grpo_losses(student, rollout, advantage).sum() / tokens
        return total
    if name == "srpo":
        return srpo_reference(one, tokens)
    rates = [group.pass_rate for group in one.groups]
    spread, prior = [math.sqrt(rate * (1 - rate)) for rate in rates], [rate * (1 - rate) for rate in PRIOR.values()]
    informative = sum(0 < rate < 1 for rate in rates)
    weights = {
        "sc_sdpo": [informative * value / sum(spread) for value in spread],
        "paced": [len(prior) * value / sum(prior) for value in prior],
        "hard_filter": [float(0.2 <= rate <= 0.8) for rate in rates],
    }
    for rollout, prompt, _, number in pairs:
        if prompt is None:
            continue
        student, teacher = both(one, rollout, prompt)
        if name in ("paint", "opsd"):
            part = one.method.distillation
            assert part is not None and part.entry_clip is not None
            settings = (part.interpolation_fraction, part.interpolation_strength, part.entry_clip)
            losses = paint_losses(student, teacher, *settings)
        else:
            losses = sdpo_losses(student, teacher, rollout)
        total = total + weights.get(name, [1.0] * 4)[number] * losses.mean() / len(pairs)
    return total


def srpo_reference(one: Batch, tokens: int) -> Tensor:
    distilled, entropies, total = [], [], torch.zeros((), dtype=torch.float64)
    for rollout, prompt, verdict, number in one.pairs():
        if prompt is not None and not verdict.success:
            student, teacher = both(one, rollout, prompt)
            log_t = torch.log_softmax(teacher / TEMPERATURE, -1)
            distilled.append(sdpo_losses(student, teacher, rollout))
            entropies.append(-(log_t.exp() * log_t).sum(-1))
        else:
            student = logits(one.policy.model, rollout.prompt_ids, rollout.response_ids)
            total = total + grpo_losses(student, rollout, advantages(REWARDS[number])[rollout.sibling]).sum()
    weights = (-torch.cat(entropies)).exp()
    return (total + (torch.cat(distilled) * weights / weights.mean()).sum()) / tokens


METHODS = {
    **{name: {} for name in names()},
    "paint, a third softened by a quarter": {"interpolation_fraction": 0.34, "interpolation_strength": 0.25},
}


@pytest.mark.parametrize("case", METHODS)
def test_loss_and_gradient_are_those_of_the_dense_formula(batch: Callable[..., Batch], case: str) -> None:
    one = batch(built(case.split(",")[0], **METHODS[case]))
    loss, gradient = update(one)
    one.policy.model.zero_grad(set_to_none=True)
    expected = reference(one)
    expected.backward()
    assert abs(loss) > 1e-6
    assert_same((loss, gradient), (expected.item(), gradients(one.policy.model)))


@pytest.mark.parametrize("name", names())
def test_the_step_does_not_depend_on_micro_batches_padding_or_row_order(batch: Callable[..., Batch], name: str) -> None:
    one = batch(built(name))
    together = update(one)
    assert any(gradient.abs().max() > 1e-8 for gradient in together[1].values())
    for budget in (1, 37, 80):
        assert_same(update(one, budget), together)
    rows = list(one.rows())
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(4)).tolist()
    assert_same(update(one, 50, [rows[index] for index in order]), together)


@pytest.mark.parametrize("name", ["paint", "sdpo", "srpo", "grpo"])
def test_float32_models_agree_to_float32(batch: Callable[..., Batch], name: str) -> None:
    one = batch(built(name))
    exact = update(one)
    one.policy.model.float()
    if one.teacher is not None:
        one.teacher.weights = {key: value.float() for key, value in one.teacher.weights.items()}
    for budget in (1, 10_000):
        loss, gradient = update(one, budget)
        assert loss == pytest.approx(exact[0], rel=1e-4, abs=1e-6)
        for key, value in gradient.items():
            torch.testing.assert_close(value.double(), exact[1][key], atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("name", ["paint", "sdpo", "srpo", "grpo", "sft"])
def test_a_bf16_model_is_compared_in_float32(batch: Callable[..., Batch], name: str) -> None:
    class Seen(TokenMeans):
        def add_losses(self, scored: TokenLosses, rollout_logprobs: Tensor | None) -> None:
            dtypes.update(
                value.dtype
                for value in (scored.losses, scored.record.student_logprob, rollout_logprobs)
                if value is not None
            )

    one, dtypes = batch(built(name)), set()
    rows = one.rows()
    one.policy.model.bfloat16()
    loss = accumulate_gradients(rows, one.method, one.policy, one.teacher, Scoring(TEMPERATURE, 100), Seen())
    assert math.isfinite(loss) and dtypes == {torch.float32}


def test_the_policy_clip_acts_on_both_sides(batch: Callable[..., Batch]) -> None:
    """The dense comparison above means something only if the rollouts are off-policy in both directions."""
    one = batch(built("grpo"))
    means = TokenMeans()
    accumulate_gradients(one.rows(), one.method, one.policy, None, Scoring(TEMPERATURE, 10_000), means)
    ratios = torch.cat(
        [
            importance(torch.log_softmax(logits(one.policy.model, r.prompt_ids, r.response_ids) / TEMPERATURE, -1), r)
            for r, *_ in one.pairs()
        ]
    )
    assert (ratios < 0.8).any() and (ratios > 1.28).any()
    assert 0 < means.means()["policy_clip_fraction"] < 1


def test_a_row_with_opposite_signs_of_clip_has_no_gradient_only_where_the_clip_makes_it_worse(
    batch: Callable[..., Batch],
) -> None:
    """A token far above the clip: a positive advantage stops, a negative one still pulls it down."""
    one = batch(built("grpo"))
    row = next(row for row in one.rows() if row.advantage > 0)
    far = replace(row, rollout=replace(row.rollout, logprobs=tuple(-50.0 for _ in row.rollout.response_ids)))
    _, stopped = update(one, rows=[far])
    assert all(float(gradient.abs().max()) == 0 for gradient in stopped.values())
    _, pulled = update(one, rows=[replace(far, advantage=-far.advantage)])
    assert any(float(gradient.abs().max()) > 0 for gradient in pulled.values())


def test_srpo_takes_the_mean_entropy_weight_over_the_whole_step(batch: Callable[..., Batch]) -> None:
    one = batch(built("srpo"))
    rows = [row for row in one.rows() if row.objective == "distillation"]
    assert len(rows) > 2
    whole, _ = update(one, budget=1, rows=rows)
    parts = [update(one, budget=1, rows=[row])[0] for row in rows]
    assert whole != pytest.approx(sum(parts), rel=1e-3)  # a mean per micro-batch would make these equal


@pytest.mark.parametrize("name", ["paint", "opsd", "sdpo", "sc_sdpo", "srpo"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_teacher_with_the_students_weights_and_prompt_teaches_nothing(
    batch: Callable[..., Batch], name: str, divergence: str
) -> None:
    one = batch(built(name, teacher="live", divergence=divergence))
    one.prompts = [
        [
            prompt and replace(prompt, token_ids=rollout.prompt_ids)
            for prompt, rollout in zip(p, g.rollouts, strict=True)
        ]
        for p, g in zip(one.prompts, one.groups, strict=True)
    ]
    rows = [row for row in one.rows() if row.objective == "distillation"]
    loss, gradient = update(one, rows=rows)
    assert loss == pytest.approx(0, abs=1e-12)
    assert all(float(value.abs().max()) < 1e-10 for value in gradient.values())


def forwarded(one: Batch, rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Rows per forward pass, on the student's and on the teacher's side."""
    student: list[int] = []
    teacher: list[int] = []

    def count(_: nn.Module, __: Any, named: dict[str, Any]) -> None:
        (student if torch.is_grad_enabled() else teacher).append(len(named["input_ids"]))

    handle = one.policy.model.model.register_forward_pre_hook(count, with_kwargs=True)
    update(one, budget=60, rows=rows)
    handle.remove()
    return student, teacher


@pytest.mark.parametrize(
    ("name", "by_student", "by_teacher"),
    [
        ("paint", 11, 11),  # 16 rollouts, 5 of them without context
        ("sdpo", 11, 11),
        ("sc_sdpo", 7, 7),  # also without the question that all rollouts solved
        ("hard_filter", 7, 7),
        ("paced", 11, 11),  # q3's prior pass rate is 0, and it has no context either
        ("grpo", 8, 0),  # two groups have equal rewards
        ("srpo", 8, 5),  # the five failures with context are distilled; three successes carry an advantage
        ("sft", 4, 0),
    ],
)
def test_rows_without_signal_are_forwarded_on_neither_side(
    batch: Callable[..., Batch], name: str, by_student: int, by_teacher: int
) -> None:
    one = batch(built(name))
    student, teacher = forwarded(one, one.rows())
    assert (sum(student), sum(teacher)) == (by_student, by_teacher)


@pytest.mark.parametrize("name", ["sc_sdpo", "grpo", "srpo", "sdpo", "hard_filter"])
def test_a_batch_without_any_signal_forwards_nothing_and_changes_nothing(
    batch: Callable[..., Batch], name: str
) -> None:
    one = batch(built(name))
    one.groups, one.prompts = one.groups[3:], one.prompts[3:]  # nobody solved it
    assert one.rows() == ()
    assert forwarded(one, one.rows()) == ([], [])
    assert update(one)[0] == 0.0
    assert all(parameter.grad is None for parameter in one.policy.model.parameters())


def test_gradients_are_added_to_what_the_parameters_hold(batch: Callable[..., Batch]) -> None:
    one = batch(built("opsd"))
    _, once = update(one)
    scoring = Scoring(TEMPERATURE, 10_000)
    accumulate_gradients(one.rows(), one.method, one.policy, one.teacher, scoring, TokenMeans())
    for name, gradient in gradients(one.policy.model).items():
        torch.testing.assert_close(gradient, 2 * once[name], **EXACT)


def test_only_adapters_get_a_gradient_under_lora(batch: Callable[..., Batch], policy: Policy) -> None:
    torch.manual_seed(2)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"])
    adapted = peft.get_peft_model(policy.model, config).double()
    groups, prompts = fake_rollouts(adapted)
    method = built("paint")
    one = Batch(
        replace(policy, model=adapted), method, groups, prompts, start_teacher(method.teacher, adapted), adapted
    )
    move(adapted, seed=1)
    together = update(one)
    assert together[1] and all("lora_" in name for name in together[1])
    assert all(parameter.grad is None for name, parameter in adapted.named_parameters() if "lora_" not in name)
    assert_same(update(one, budget=30), together)


def test_every_response_token_is_reported_once(batch: Callable[..., Batch]) -> None:
    one = batch(built("srpo"))
    counted: list[int] = []
    rows = one.rows()
    accumulate_gradients(
        rows, one.method, one.policy, one.teacher, Scoring(TEMPERATURE, 40), TokenMeans(), counted.append
    )
    assert sum(counted) == sum(len(row.rollout.response_ids) for row in rows)


@pytest.mark.parametrize("name", ["paint", "sc_sdpo", "srpo", "grpo", "sft"])
def test_token_statistics_do_not_depend_on_micro_batches(batch: Callable[..., Batch], name: str) -> None:
    one = batch(built(name))

    def statistics(budget: int) -> dict[str, float]:
        means = TokenMeans()
        accumulate_gradients(one.rows(), one.method, one.policy, one.teacher, Scoring(TEMPERATURE, budget), means)
        return means.means()

    assert statistics(1) == pytest.approx(statistics(10_000), rel=1e-9)


def without_logprobs(rows: Sequence[Row]) -> list[Row]:
    return [replace(row, rollout=replace(row.rollout, logprobs=None)) for row in rows]


def with_the_students_logprobs(model: nn.Module, rows: Sequence[Row]) -> list[Row]:
    def own(rollout: Rollout) -> Rollout:
        dense = torch.log_softmax(logits(model, rollout.prompt_ids, rollout.response_ids) / TEMPERATURE, -1)
        return replace(rollout, logprobs=tuple(of_ids(dense, rollout.response_ids).tolist()))

    return [replace(row, rollout=own(row.rollout)) for row in rows]


@pytest.mark.parametrize("name", ["sdpo", "grpo", "srpo"])
@pytest.mark.parametrize("head", ["fused", "readable"])
def test_on_policy_the_students_own_log_probabilities_serve_the_ratio(
    batch: Callable[..., Batch], name: str, head: HeadName
) -> None:
    """Rollouts that bring none are as good as rollouts that bring exactly the student's."""
    one, means = batch(built(name)), TokenMeans()
    rows = one.rows()
    expected = update(one, rows=with_the_students_logprobs(one.policy.model, rows))
    one.policy.model.zero_grad(set_to_none=True)
    scoring = Scoring(TEMPERATURE, 60, ScoringConfig(head=head))
    loss = accumulate_gradients(without_logprobs(rows), one.method, one.policy, one.teacher, scoring, means)
    assert_same((loss, gradients(one.policy.model)), expected)
    assert means.means()["ratio"] == pytest.approx(1.0, abs=1e-12)


def test_after_an_update_rollouts_without_log_probabilities_are_refused(batch: Callable[..., Batch]) -> None:
    one = batch(built("sdpo"))
    scoring = Scoring(TEMPERATURE, 60, on_policy=False)
    with pytest.raises(TrainingError, match="updates_per_batch=1"):
        accumulate_gradients(without_logprobs(one.rows()), one.method, one.policy, one.teacher, scoring, TokenMeans())


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("padding_free", [False, True])
def test_every_fast_path_equals_the_readable_objective(
    batch: Callable[..., Batch], name: str, padding_free: bool
) -> None:
    """float64: the same numbers to nine digits, in loss, gradients and every statistic."""
    one = batch(built(name))
    rows = one.rows()

    def run(config: ScoringConfig) -> tuple[tuple[float, dict[str, Tensor]], dict[str, float]]:
        one.policy.model.zero_grad(set_to_none=True)
        means = TokenMeans()
        loss = accumulate_gradients(rows, one.method, one.policy, one.teacher, Scoring(TEMPERATURE, 90, config), means)
        return (loss, gradients(one.policy.model)), means.means()

    readable = run(ScoringConfig(head="readable", reuse_prefix=False, padding_free=False))
    fast = run(ScoringConfig(head="fused", reuse_prefix=True, padding_free=padding_free))
    assert_same(fast[0], readable[0])
    assert fast[1] == pytest.approx(readable[1], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["sc_sdpo", "grpo", "srpo"])
def test_a_question_that_siblings_share_is_read_once_and_the_update_is_the_same(
    batch: Callable[..., Batch], name: str
) -> None:
    one = batch(built(name))
    asked = {group.question.id: group.rollouts[0].prompt_ids * 100 for group in one.groups}
    rows = [
        replace(row, rollout=replace(row.rollout, prompt_ids=asked[row.rollout.question.id][:200]))
        for row in one.rows()
    ]

    def run(reuse_prefix: bool) -> tuple[int, float, Tensor]:
        read: list[int] = []

        def count(_: nn.Module, __: Any, named: dict[str, Any]) -> None:
            if torch.is_grad_enabled():
                read.append(named["input_ids"].numel())

        handle = one.policy.model.model.register_forward_pre_hook(count, with_kwargs=True)
        one.policy.model.zero_grad(set_to_none=True)
        scoring = Scoring(TEMPERATURE, 10_000, ScoringConfig(reuse_prefix=reuse_prefix))
        loss = accumulate_gradients(rows, one.method, one.policy, one.teacher, scoring, TokenMeans())
        handle.remove()
        return sum(read), loss, torch.cat([each.flatten() for each in gradients(one.policy.model).values()])

    read_once, loss, gradient = run(reuse_prefix=True)
    read_by_each, expected_loss, expected = run(reuse_prefix=False)
    assert read_once < 0.7 * read_by_each
    # Not to the last digits: the model's norms round to float32, here the sum over siblings, there every summand.
    assert loss == pytest.approx(expected_loss, rel=1e-6, abs=1e-9)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(("clip", "after"), [(None, 5.0), (10.0, 5.0), (1.0, 1.0)])
def test_the_gradient_norm_is_reported_before_clipping(clip: float | None, after: float) -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert gradient_norm(parameters, clip) == pytest.approx(5.0)
    assert torch.cat([parameters[0].grad, parameters[1].grad]).norm().item() == pytest.approx(after, rel=1e-5)


def test_a_gradient_that_is_not_finite_is_seen_in_its_norm() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([float("inf"), 1.0])
    assert not math.isfinite(gradient_norm([parameter], 1.0))
