"""A teacher is the student with other weights: which ones, when they move, and that they leave no trace."""

import copy

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from selfdistill.models.head import Projection, projection_of
from selfdistill.scoring import Forwarding, response_states
from selfdistill.teachers import (
    Initial,
    Live,
    MovingAverage,
    NoTeacher,
    SelfTeacher,
    Teacher,
    TrustRegion,
    start_teacher,
)
from selfdistill.teachers.weights import swapped, trainable

ROWS = [((5, 6, 7, 8), (9, 10, 11)), ((12, 13), (14, 15, 16, 17, 18))]
PARTS = [Initial(), MovingAverage(), Live(), TrustRegion(rate=0.3)]


def start(part: Teacher, model: nn.Module) -> SelfTeacher:
    teacher = start_teacher(part, model)
    assert teacher is not None
    return teacher


def teacher_logits(teacher: SelfTeacher) -> Tensor:
    scores = teacher.score(ROWS, Forwarding(100))
    return scores.projection.logits(torch.cat(scores.states))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return projection_of(model).logits(response_states(model, ROWS))


@torch.no_grad()
def move(model: nn.Module, scale: float = 0.05, seed: int = 3) -> None:
    """Stand in for training: change every trainable weight."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(model).values():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(scale * noise.to(parameter.dtype))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def with_adapters(model: nn.Module, **settings: object) -> nn.Module:
    torch.manual_seed(5)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "up_proj"], **settings)
    return peft.get_peft_model(model, config)


def untied(model: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = False
    torch.manual_seed(6)
    return Qwen3ForCausalLM(config)


@pytest.fixture(params=["full, tied embeddings", "full, untied embeddings", "lora"])
def student(request: pytest.FixtureRequest, tiny_model: Qwen3ForCausalLM) -> nn.Module:
    if request.param == "lora":
        return with_adapters(tiny_model)
    return tiny_model if request.param == "full, tied embeddings" else untied(tiny_model)


def test_the_initial_teacher_has_the_weights_from_before_training(student: nn.Module) -> None:
    before = logits(student)
    teacher = start(Initial(), student)
    move(student)
    assert not torch.allclose(logits(student), before, atol=1e-2)
    torch.testing.assert_close(teacher_logits(teacher), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_the_initial_teacher_is_the_student_in_memory_not_what_its_name_would_load(
    tiny_model: Qwen3ForCausalLM, tmp_path: object, lora: bool
) -> None:
    tiny_model.save_pretrained(str(tmp_path))
    loaded = Qwen3ForCausalLM.from_pretrained(str(tmp_path))
    as_named = logits(loaded)
    move(loaded, seed=8)  # changed in memory before training starts
    in_memory = logits(loaded)
    student = with_adapters(loaded) if lora else loaded
    teacher = start(Initial(), student)
    move(student)
    torch.testing.assert_close(teacher_logits(teacher), in_memory, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(teacher_logits(teacher), as_named, atol=1e-2)


def test_the_initial_teacher_copies_nothing_under_lora(tiny_model: Qwen3ForCausalLM) -> None:
    assert start(Initial(), with_adapters(tiny_model)).state_dict() == {}


@pytest.mark.parametrize("tied", [True, False])
def test_the_teachers_head_is_the_teachers(tiny_model: Qwen3ForCausalLM, tied: bool) -> None:
    student = tiny_model if tied else untied(tiny_model)
    head = projection_of(student).weight.detach().clone()
    teacher = start(Initial(), student)
    move(student)
    projection = teacher.score(ROWS, Forwarding(100)).projection
    assert isinstance(projection, Projection)
    assert torch.equal(projection.weight, head)
    assert not torch.equal(projection_of(student).weight, head)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.kind)
def test_scoring_leaves_the_student_as_it_was(student: nn.Module, part: Teacher) -> None:
    teacher = start(part, student)
    move(student)
    student.train()
    weights, trained = values(student), set(trainable(student))
    teacher.score(ROWS, Forwarding(100))
    assert_equal_weights(values(student), weights)
    assert set(trainable(student)) == trained
    assert all(module.training for module in student.modules())


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.kind)
def test_the_students_weights_come_back_when_scoring_fails(student: nn.Module, part: Teacher) -> None:
    teacher = start(part, student)
    move(student)
    weights, own_logits = values(student), logits(student)
    with pytest.raises(IndexError):
        teacher.score([((5,), (10_000_000, 5))], Forwarding(100))
    assert_equal_weights(values(student), weights)
    assert torch.equal(logits(student), own_logits)


def test_weights_are_restored_when_one_of_them_cannot_be_put_in_place(tiny_model: Qwen3ForCausalLM) -> None:
    weights = values(tiny_model)
    first, second = list(weights)[:2]
    broken = {first: torch.zeros_like(weights[first]), second: "not a tensor"}
    with pytest.raises(AttributeError), swapped(tiny_model, broken):  # type: ignore[arg-type]
        pass
    assert_equal_weights(values(tiny_model), weights)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.kind)
def test_no_gradient_reaches_the_teacher(student: nn.Module, part: Teacher) -> None:
    teacher = start(part, student)
    scores = teacher.score(ROWS, Forwarding(100))
    logits_of_teacher = scores.projection.logits(torch.cat(scores.states))
    assert not logits_of_teacher.requires_grad
    assert not any(value.requires_grad for value in teacher.state_dict().values())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_the_teacher_scores_without_dropout(tiny_model: Qwen3ForCausalLM) -> None:
    student = with_adapters(tiny_model, lora_dropout=0.5, init_lora_weights=False).train()
    teacher = start(MovingAverage(), student)
    assert torch.equal(teacher_logits(teacher), teacher_logits(teacher))
    assert student.training


@pytest.mark.parametrize("every", ["batch", "step"])
@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_the_moving_average_has_its_closed_form(student: nn.Module, every: str, rate: float) -> None:
    student = student.double()
    teacher = start(MovingAverage(rate=rate, every=every), student)
    history = [values(student)]
    for step in range(6):
        move(student, seed=step)
        teacher.after_step()
        if every == "step" or step % 2 == 1:  # two optimiser steps per batch
            history.append(values(student))
        if step % 2 == 1:
            teacher.after_batch()
    updates = len(history) - 1
    for name, average in teacher.state_dict().items():
        expected = (1 - rate) ** updates * history[0][name]
        for update in range(1, updates + 1):
            expected = expected + rate * (1 - rate) ** (updates - update) * history[update][name]
        torch.testing.assert_close(average, expected, atol=1e-12, rtol=1e-12)


def test_the_moving_average_scores_with_the_averaged_weights(student: nn.Module) -> None:
    teacher = start(MovingAverage(rate=0.25), student)
    before = values(student)
    move(student)
    teacher.after_batch()
    other = copy.deepcopy(student)
    with torch.no_grad():
        for name, parameter in trainable(other).items():
            parameter.copy_(0.75 * before[name] + 0.25 * values(student)[name])
    torch.testing.assert_close(teacher_logits(teacher), logits(other), atol=1e-5, rtol=1e-5)


def test_a_float32_average_follows_changes_below_one_ulp_of_bf16(tiny_model: Qwen3ForCausalLM) -> None:
    student = tiny_model.bfloat16()
    teacher = start(MovingAverage(rate=0.01), student)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = trainable(student)[name]
    with torch.no_grad():
        weight.fill_(1.0)
        teacher.load_state_dict({key: value.detach().float() for key, value in trainable(student).items()})
        weight.fill_(1.0078125)  # the next bf16 number; a hundredth of the way there cannot be written in bf16
    teacher.after_batch()
    average = teacher.state_dict()[name]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, torch.full_like(average, 1.000078125), atol=1e-7, rtol=0)
    for _ in range(400):
        teacher.after_batch()
    assert teacher.state_dict()[name].to(torch.bfloat16).eq(weight).all()  # in bf16 it would never have arrived
    assert teacher.score(ROWS, Forwarding(100)).states[0].dtype == torch.bfloat16


def test_the_average_of_adapters_starts_at_the_students_own_factors(tiny_model: Qwen3ForCausalLM) -> None:
    student = with_adapters(tiny_model)
    teacher = start(MovingAverage(), student)
    average = teacher.state_dict()
    assert set(average) == set(trainable(student))
    assert all(torch.equal(average[name], parameter) for name, parameter in trainable(student).items())
    assert any(value.abs().max() > 0 for name, value in average.items() if "lora_A" in name)
    assert torch.equal(teacher_logits(teacher), logits(student.eval()))


def test_the_live_teacher_is_the_student_at_every_moment(student: nn.Module) -> None:
    teacher = start(Live(), student)
    for seed in range(2):
        move(student, seed=seed)
        torch.testing.assert_close(teacher_logits(teacher), logits(student), atol=1e-6, rtol=1e-6)
    assert teacher.state_dict() == {}


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_trust_region_logits_lie_between_those_of_two_separate_models(student: nn.Module, rate: float) -> None:
    student = student.double()
    initial = copy.deepcopy(student)
    teacher = start(TrustRegion(rate=rate), student)
    move(student)
    expected = (1 - rate) * logits(initial) + rate * logits(student)
    torch.testing.assert_close(teacher_logits(teacher), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.kind)
def test_a_teacher_survives_a_restart(student: nn.Module, part: Teacher) -> None:
    fresh = copy.deepcopy(student)
    teacher = start(part, student)
    move(student)
    teacher.after_step()
    teacher.after_batch()
    saved = {name: value.clone() for name, value in teacher.state_dict().items()}
    expected = teacher_logits(teacher)

    restarted = start(part, fresh)
    with torch.no_grad():
        for name, parameter in trainable(fresh).items():
            parameter.copy_(trainable(student)[name])
    restarted.load_state_dict(saved)
    assert torch.equal(teacher_logits(restarted), expected)
    move(fresh)
    restarted.after_batch()
    assert_equal_weights({name: value for name, value in saved.items()}, teacher.state_dict())  # nothing is shared


@pytest.mark.parametrize("part", [Initial(), MovingAverage(), TrustRegion()], ids=lambda part: part.kind)
def test_another_models_teacher_is_refused(tiny_model: Qwen3ForCausalLM, part: Teacher) -> None:
    teacher = start(part, tiny_model)
    name, *others = teacher.state_dict()
    weights = teacher.state_dict()
    with pytest.raises(ValueError, match="missing, unknown or of another shape"):
        teacher.load_state_dict({other: weights[other] for other in others})
    with pytest.raises(ValueError, match=name):
        teacher.load_state_dict(weights | {name: weights[name][:1]})


def test_a_method_without_a_teacher_gets_none(tiny_model: Qwen3ForCausalLM) -> None:
    assert start_teacher(NoTeacher(), tiny_model) is None
