"""Checks of the Triton tile operations against the float64 dense reference; test_triton_tiles.py runs them.

A module of its own because Triton decides when it is imported whether kernels are interpreted, and other tests' modules
import Triton: on a machine without CUDA this one runs in a process in which the variable was set first.
"""

import math
import os

import pytest
import torch

ON_CUDA = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
if not ON_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"

from selfdistill.models.head import MixedProjection, Projection  # noqa: E402
from selfdistill.objectives import triton_kernels  # noqa: E402
from selfdistill.objectives.divergence import (  # noqa: E402
    compare_log_probabilities,
    entropy,
    log_probabilities,
    token_divergence,
)
from selfdistill.objectives.head_pass import HeadGradients, HeadInputs, head_pass  # noqa: E402
from selfdistill.objectives.settings import DivergenceSettings  # noqa: E402
from selfdistill.objectives.torch_tiles import TorchTiles  # noqa: E402
from selfdistill.objectives.triton_tiles import TritonTiles  # noqa: E402

DEVICE = "cuda" if ON_CUDA else "cpu"
BLOCK = triton_kernels.BLOCK.value
LINE = triton_kernels.LINE.value
EXACT = {"rtol": 1e-12, "atol": 1e-12}

SETTINGS = [
    {"divergence": "forward_kl"},
    {"divergence": "forward_kl", "entry_clip": 1e-4},
    {"divergence": "forward_kl", "temperature": 0.7, "entry_clip": 50.0},
    {"divergence": "reverse_kl"},
    {"divergence": "reverse_kl", "temperature": 1.3, "entry_clip": 1e-4},
    {"divergence": "jsd"},
    {"divergence": "jsd", "beta": 0.1, "temperature": 0.7},
    {"divergence": "jsd", "beta": 0.9, "entry_clip": 1e-5},
]
SIZES = [1, 7, BLOCK, BLOCK + LINE + 37]
LONG = BLOCK + 37


def normal(seed, *shape, dtype=torch.float64, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn(shape, generator=generator, dtype=torch.float64)).to(DEVICE, dtype)


def pair(vocabulary, rows=2, dtype=torch.float64, distance=1.0):
    student = normal(1, rows, vocabulary, dtype=dtype, size=2.0)
    return student, student + normal(2, rows, vocabulary, dtype=dtype, size=distance)


def evaluate(student, teacher, settings, weight, **options):
    """The comparison, and the gradient of sum(weight * divergence) with respect to z."""
    tiles = TritonTiles(settings.temperature, **options)
    student_normaliser = tiles.normalise(student).log_normaliser
    teacher_normaliser = tiles.normalise(teacher).log_normaliser
    compared = tiles.compare(student, teacher, student_normaliser, teacher_normaliser, settings)
    gradient = tiles.gradient(
        student,
        student_normaliser,
        -weight * compared.coefficient_sum,
        teacher=teacher,
        teacher_normaliser=teacher_normaliser,
        coefficient_scale=weight,
        settings=settings,
    )
    return compared, gradient


def dense(student, teacher, chosen, weight):
    """The same by autograd on the reference, in float64."""
    student, teacher = student.double().requires_grad_(), teacher.double()
    value = token_divergence(student, teacher, **chosen)
    (gradient,) = torch.autograd.grad((value * weight.double()).sum(), student)
    return value.detach(), gradient * chosen.get("temperature", 1.0)


def check_against_dense(student, teacher, chosen, tolerance=EXACT):
    settings = DivergenceSettings(**chosen)
    weight = normal(3, len(student), dtype=student.dtype)
    compared, gradient = evaluate(student, teacher, settings, weight)
    value, expected = dense(student, teacher, chosen, weight)
    sides = [log_probabilities(side.double(), settings.temperature) for side in (student, teacher)]
    torch.testing.assert_close(compared.divergence.double(), value, **tolerance)
    torch.testing.assert_close(gradient.double(), expected, **tolerance)
    torch.testing.assert_close(compared.student_entropy.double(), entropy(sides[0]), **tolerance)
    torch.testing.assert_close(compared.teacher_entropy.double(), entropy(sides[1]), **tolerance)
    reference = compare_log_probabilities(*sides, settings)
    torch.testing.assert_close(compared.clip_fraction.double(), reference.clip_fraction, **tolerance)
    return compared


@pytest.mark.parametrize("chosen", SETTINGS)
def test_every_divergence_equals_the_dense_reference_in_value_and_gradient(chosen):
    compared = check_against_dense(*pair(LONG), chosen)
    if chosen.get("entry_clip", 1.0) < 1:  # what is checked are rows of which some summands are clipped, and some not
        assert ((compared.clip_fraction > 0) & (compared.clip_fraction < 0.5)).all()
    else:
        assert (compared.clip_fraction == 0).all()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("vocabulary", SIZES)
def test_a_vocabulary_may_have_any_size(name, vocabulary):
    check_against_dense(*pair(vocabulary, rows=1), {"divergence": name})


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_forbidden_ids_are_treated_as_the_reference_treats_them(name):
    student, teacher = pair(LONG, rows=4)
    student[0, 5] = teacher[0, 5] = -math.inf
    student[1, 5:BLOCK] = teacher[1, 5:BLOCK] = -math.inf
    student[2, ::3] = -math.inf
    teacher[3, :BLOCK] = -math.inf
    check_against_dense(student, teacher, {"divergence": name, "entry_clip": 0.5})


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_logits_that_are_far_apart_overflow_nowhere(name):
    student, teacher = pair(50, dtype=torch.float32)
    student[0, 3], teacher[0, 4], student[1, 7] = 2e4, 2e4, -3e4
    check_against_dense(student, teacher, {"divergence": name}, {"rtol": 1e-5, "atol": 1e-5})


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize(("distance", "digits"), [(1e-3, 2e-7), (2e-2, 2e-7), (0.1, 1e-6)])
def test_float32_keeps_the_digits_of_a_small_divergence(name, distance, digits):
    student, teacher = pair(LONG, dtype=torch.float32, distance=distance)
    student, teacher = student * 3 + 40, teacher * 3 + 60  # normalisers far from 0, whose rounding is 2e-6
    weight = torch.ones(len(student), device=DEVICE)
    compared, gradient = evaluate(student, teacher, DivergenceSettings(divergence=name), weight)
    value, expected = dense(student, teacher, {"divergence": name}, weight)
    allowed = 5 * digits if ON_CUDA else digits  # the GPU's exponential is right to 22 bits
    assert (compared.divergence.double() - value).abs().max() < allowed
    if distance > 1e-2:
        assert torch.nn.functional.cosine_similarity(gradient.double(), expected).min() > 0.99999


@pytest.mark.parametrize(("temperature", "sharpness"), [(1.0, 1.0), (0.6, 2.5)])
@pytest.mark.parametrize("vocabulary", SIZES)
def test_rows_are_normalised_at_any_sharpness(vocabulary, temperature, sharpness):
    logits = normal(4, 3, vocabulary, size=30.0)
    tiles = TritonTiles(temperature)
    expected = (logits * sharpness / temperature).logsumexp(-1)
    torch.testing.assert_close(tiles.log_sum_exp(logits, sharpness), expected, **EXACT)
    assert torch.equal(tiles.normalise(logits).argmax, logits.argmax(-1))


@pytest.mark.parametrize("ids", [[0, 1], [5, 4, 900], [LINE, 2 * LINE, BLOCK + 3], [LONG - 1, 3], [3, BLOCK + 3]])
def test_ties_of_the_largest_logit_go_to_the_lowest_id(ids):
    logits = normal(5, 1, LONG, dtype=torch.float32).clamp(max=3.0)
    logits[0, ids] = 4.0
    assert TritonTiles(0.7).normalise(logits).argmax.tolist() == [min(ids)]


def test_a_row_of_forbidden_ids_alone_has_an_id_and_no_mass():
    logits = torch.full((2, 100), -math.inf, device=DEVICE)
    logits[1, 60] = -5.0
    statistics = TritonTiles().normalise(logits)
    assert statistics.argmax.tolist() == [0, 60]
    assert statistics.log_normaliser.tolist() == [-math.inf, -5.0]


def test_a_row_with_nan_becomes_nan_and_leaves_its_neighbours_alone():
    student, teacher = pair(100, rows=3)
    student[1, 40] = math.nan
    ones = normal(0, 3).fill_(1)
    compared, gradient = evaluate(student, teacher, DivergenceSettings(divergence="jsd"), ones)
    for column in (compared.student_entropy, compared.divergence, gradient.sum(-1)):
        assert column.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("vocabulary", SIZES)
def test_entropy_and_single_logits_equal_the_reference(vocabulary):
    logits, tiles = normal(6, 3, vocabulary, size=3.0), TritonTiles(0.8)
    normaliser = tiles.normalise(logits).log_normaliser
    expected = log_probabilities(logits, 0.8)
    torch.testing.assert_close(tiles.entropy(logits, normaliser), entropy(expected), **EXACT)
    ids = torch.tensor([[0, vocabulary - 1]] * 3, device=DEVICE)
    found = tiles.at_ids(logits, ids) - normaliser.unsqueeze(-1)
    torch.testing.assert_close(found, expected.gather(-1, ids), **EXACT)


def test_without_a_teacher_the_gradient_is_scaled_probability():
    logits, scale, tiles = normal(7, 3, LONG), normal(8, 3), TritonTiles(0.8)
    gradient = tiles.gradient(logits, tiles.normalise(logits).log_normaliser, scale)
    torch.testing.assert_close(gradient, scale.unsqueeze(-1) * (logits / 0.8).softmax(-1), **EXACT)


def test_a_bfloat16_gradient_is_the_float32_one_rounded_once():
    student, teacher = pair(LONG, dtype=torch.float32)
    weight = normal(3, 2, dtype=torch.float32)
    settings = DivergenceSettings(divergence="forward_kl")
    _, gradient = evaluate(student, teacher, settings, weight, operand_dtype=torch.bfloat16)
    _, wide = evaluate(student, teacher, settings, weight)
    assert gradient.dtype == torch.bfloat16 and gradient.stride(0) % 16 == 0
    step = 2**-8 if ON_CUDA else 2**-7  # the interpreter cuts digits off instead of rounding
    assert ((gradient.float() - wide).abs() <= step * wide.abs()).all()
    _, expected = dense(student, teacher, {"divergence": "forward_kl"}, weight)
    assert torch.nn.functional.cosine_similarity(gradient.double(), expected).min() > 0.99999


def test_the_gradient_reuses_its_memory_and_leaves_the_logits_alone():
    student, teacher = pair(100, rows=4)
    before, tiles = student.clone(), TritonTiles()
    normaliser = tiles.normalise(student).log_normaliser
    first = tiles.gradient(student, normaliser, normaliser)
    second = tiles.gradient(teacher[:3], normaliser[:3], normaliser[:3])
    assert first.data_ptr() == second.data_ptr() and second.shape == (3, 100)
    assert torch.equal(student, before)
    larger = tiles.gradient(student.repeat(2, 1), normaliser.repeat(2), normaliser.repeat(2))
    assert larger.shape == (8, 100)


def test_rows_may_lie_apart_in_memory_and_nothing_is_written_between_them():
    wide = normal(9, 6, 300)
    student, teacher = wide[::2, 16:260], wide[1::2, 16:260]
    check_against_dense(student, teacher, {"divergence": "jsd"})
    out = torch.full((3, 300), 7.0, dtype=torch.float64, device=DEVICE)
    head = Projection(normal(1, 244, 5), normal(2, 244), scale=0.5, softcap=3.0)
    hidden = normal(3, 3, 5)
    TritonTiles().project(head, hidden, out[:, 16:260])
    torch.testing.assert_close(out[:, 16:260], head.logits(hidden))
    assert (out[:, :16] == 7).all() and (out[:, 260:] == 7).all()


@pytest.mark.skipif(not ON_CUDA, reason="needs 9 GB that are really there; run on a machine with CUDA")
def test_rows_may_lie_further_apart_than_32_bits_can_count():
    wide = torch.zeros(2**31 + 128, device=DEVICE)
    logits = wide.as_strided((2, 100), (2**31 + 16, 1))
    logits[1] = normal(1, 100, dtype=torch.float32)
    statistics = TritonTiles().normalise(logits)
    torch.testing.assert_close(statistics.log_normaliser, logits.logsumexp(-1))


def test_two_runs_agree_bit_by_bit_in_any_tile():
    student, teacher = pair(LONG, rows=3, dtype=torch.float32)
    settings, weight = DivergenceSettings(divergence="jsd", entry_clip=1e-4), normal(3, 3, dtype=torch.float32)
    compared, gradient = evaluate(student, teacher, settings, weight)
    again, same = evaluate(student, teacher, settings, weight)
    part, rows = evaluate(student[2:].clone(), teacher[2:].clone(), settings, weight[2:])
    for one, two, three in zip((*compared, gradient), (*again, same), (*part, rows), strict=True):
        assert torch.equal(one, two) and torch.equal(one[2:], three)


def test_no_rows_are_no_work():
    empty, none, tiles = normal(0, 0, 50), normal(0, 0), TritonTiles()
    assert tiles.normalise(empty).argmax.shape == (0,)
    assert tiles.gradient(empty, none, none).shape == (0, 50)


HEADS = [
    Projection(normal(1, 45, 6)),
    Projection(normal(1, 45, 6), scale=0.3),
    Projection(normal(1, 45, 6), normal(2, 45), scale=0.3),
    Projection(normal(1, 45, 6), normal(2, 45), scale=0.3, softcap=2.0),
]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mixed", [False, True])
def test_projected_logits_are_the_heads_own(head, mixed):
    hidden = normal(3, 4, 12 if mixed else 6)
    head = MixedProjection(head, Projection(normal(4, 45, 6), head.bias, softcap=head.softcap), 0.3) if mixed else head
    out = torch.full((4, 45), math.nan, dtype=torch.float64, device=DEVICE)
    TritonTiles(0.5).project(head, hidden, out)
    torch.testing.assert_close(out, head.logits(hidden))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_of_narrow_operands_have_wide_sums(dtype):
    head, hidden = Projection(normal(1, 45, 64, dtype=dtype)), normal(2, 4, 64, dtype=dtype)
    out = torch.full((4, 45), math.nan, device=DEVICE)
    tiles = TritonTiles(operand_dtype=dtype)
    tiles.project(head, hidden, out)
    torch.testing.assert_close(out.double(), hidden.double() @ head.weight.double().T, rtol=1e-5, atol=1e-5)

    gradient = tiles.gradient(out, tiles.normalise(out).log_normaliser, out.new_ones(4))
    weight_gradient = torch.ones(45, 64, device=DEVICE)
    tiles.add_weight_gradient(gradient, hidden, weight_gradient)
    expected = 1 + gradient.double().T @ hidden.double()
    torch.testing.assert_close(weight_gradient.double(), expected, rtol=1e-5, atol=1e-5)
    back = tiles.hidden_gradient(head, gradient)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back.double(), gradient.double() @ head.weight.double(), rtol=1e-5, atol=1e-5)


def test_weights_of_another_dtype_are_cast_in_blocks(monkeypatch):
    monkeypatch.setattr("selfdistill.objectives.triton_tiles.CAST_ELEMENTS", 64 * 10)
    head, hidden = Projection(normal(1, 45, 64, dtype=torch.bfloat16)), normal(2, 4, 64)
    out = torch.full((4, 45), math.nan, dtype=torch.float64, device=DEVICE)
    tiles = TritonTiles()
    tiles.project(head, hidden, out)
    torch.testing.assert_close(out, hidden @ head.weight.double().T)
    torch.testing.assert_close(tiles.hidden_gradient(head, out), out @ head.weight.double())


def test_the_slope_of_a_soft_cap_is_its_derivative():
    raw = normal(1, 3, 20, size=3.0).requires_grad_()
    capped = 2.5 * torch.tanh(raw / 2.5)
    (slope,) = torch.autograd.grad(capped.sum(), raw)
    torch.testing.assert_close(TritonTiles(0.7).cap_slope(capped.detach(), 2.5), slope)


@pytest.mark.parametrize(
    ("chosen", "softcap", "strength"),
    [
        ({"divergence": "jsd", "temperature": 0.7, "entry_clip": 0.01}, None, 0.0),
        ({"divergence": "forward_kl", "token_clip": 0.5}, 3.0, 0.4),
        ({"divergence": "reverse_kl", "support": "student_topk", "top_k": 5}, None, 0.0),
        ({"divergence": "forward_kl", "support": "student_topk", "top_k": 5, "tail": False}, None, 0.4),
        ({"divergence": "forward_kl", "support": "teacher_topk", "top_k": 5, "temperature": 1.4}, 3.0, 0.0),
        (None, 3.0, 0.0),
    ],
)
def test_a_whole_head_pass_is_the_same_with_either_backend(chosen, softcap, strength):
    weight, bias = normal(1, 45, 6).requires_grad_(), normal(2, 45).requires_grad_()
    head = Projection(weight, bias, scale=0.8, softcap=softcap)
    settings = None if chosen is None else DivergenceSettings(**chosen)
    inputs = HeadInputs(
        normal(3, 5, 6),
        head,
        ids=torch.arange(5, device=DEVICE) * 8,
        temperature=1.0 if settings is None else settings.temperature,
        teacher_hidden=None if settings is None else normal(4, 5, 6),
        teacher=None if settings is None else Projection(normal(5, 45, 6)),
        settings=settings,
        strength=strength,
    )

    def loss(record, _):
        return record.student_logprob if record.divergence is None else record.divergence + 0.2 * record.student_logprob

    found = []
    for operations in (TorchTiles(inputs.temperature), TritonTiles(inputs.temperature)):
        gradients = HeadGradients.wanted_by(inputs)
        passed = head_pass(inputs, loss, gradients, rows_per_tile=3, operations=operations)
        fields = [getattr(passed.record, name) for name in passed.record.__dataclass_fields__]
        found.append([*fields, passed.hidden_gradient, gradients.weight, gradients.bias])
    for torchs, tritons in zip(*found, strict=True):
        if torchs is None:
            assert tritons is None
        else:
            torch.testing.assert_close(tritons, torchs, rtol=1e-10, atol=1e-12)
