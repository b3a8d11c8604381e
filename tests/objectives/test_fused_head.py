"""The fused head: exact where rounded logits fail, as many matrix products as promised, and nothing else to notice."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from selfdistill.errors import SelfDistillError
from selfdistill.models.head import MixedProjection, Projection
from selfdistill.objectives import linear_reference, linear_token_divergence, linear_token_logprobs, token_divergence
from selfdistill.objectives.head_pass import HeadInputs, head_pass, same_head, tile_rows
from selfdistill.objectives.settings import DivergenceSettings

KINDS = [
    {"divergence": "forward_kl"},
    {"divergence": "forward_kl", "entry_clip": 0.01},
    {"divergence": "reverse_kl"},
    {"divergence": "jsd"},
    {"divergence": "jsd", "support": "student_topk", "top_k": 100},
]


def randn(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def readable(student, teacher, head, **chosen):
    """The readable path, called as the fused one is."""
    names = chosen.keys() & set(DivergenceSettings.__dataclass_fields__)
    settings = {"divergence": "forward_kl"} | {name: chosen.pop(name) for name in names}
    return linear_reference.linear_token_divergence(student, teacher, head, DivergenceSettings(**settings), **chosen)


def bf16_case(divergence, tokens=48, width=64, vocabulary=3000):
    """Hidden states and a head in bf16, the teacher as far from the student as asked, in nats of forward KL."""
    student, weight = randn(0, tokens, width).bfloat16(), (0.35 * randn(1, vocabulary, width)).bfloat16()
    noise, low, high = randn(2, tokens, width), 1e-4, 4.0
    for _ in range(30):
        size = math.sqrt(low * high)
        teacher = (student.double() + size * noise).bfloat16()
        mean = dense(student, teacher, weight, {"divergence": "forward_kl"})[0].mean()
        low, high = (size, high) if mean < divergence else (low, size)
    return student, teacher, weight


def dense(student, teacher, weight, kind):
    """Value and gradient in float64, from logits of everything."""
    leaf = student.double().requires_grad_()
    value = token_divergence(leaf @ weight.double().T, teacher.double() @ weight.double().T, **kind)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def cosine(one, other):
    return float(torch.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", [3e-4, 2e-3, 2e-2, 0.2])
def test_bf16_inputs_keep_value_and_direction_at_every_distance_of_teacher_and_student(kind, distance):
    student, teacher, weight = bf16_case(distance)
    value, gradient = dense(student, teacher, weight, kind)
    leaf = student.clone().requires_grad_()
    record = linear_token_divergence(leaf, teacher, weight, **kind)
    record.divergence.sum().backward()
    torch.testing.assert_close(record.divergence.detach().double(), value, atol=1e-5, rtol=0)
    assert cosine(leaf.grad, gradient) > 0.9999


def test_logits_rounded_to_bf16_would_not_have_passed():
    """The test above has teeth: the usual shortcut fails it."""
    student, teacher, weight = bf16_case(3e-4)
    value, gradient = dense(student, teacher, weight, {"divergence": "forward_kl"})
    leaf = student.clone().requires_grad_()
    rounded = token_divergence(leaf @ weight.T, teacher @ weight.T, divergence="forward_kl")
    rounded.sum().backward()
    assert (rounded.detach() - value).abs().max() > 1e-5 and cosine(leaf.grad, gradient) < 0.99


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_give_the_same_bits(kind, trained):
    def run():
        hidden = randn(0, 40, 16, dtype=torch.float32).requires_grad_()
        weight = randn(1, 5000, 16, dtype=torch.float32).requires_grad_(trained)
        record = linear_token_divergence(hidden, randn(2, 40, 16, dtype=torch.float32), weight, **kind)
        record.divergence.sum().backward()
        return record.divergence.detach(), hidden.grad, weight.grad if trained else hidden.grad

    assert all(torch.equal(*pair) for pair in zip(run(), run(), strict=True))


TOKENS, WIDTH, VOCABULARY = 32, 8, 50


class Products(TorchDispatchMode):
    """Adds up the multiplications of all matrix products."""

    def __init__(self):
        super().__init__()
        self.multiplications = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            left, right = args[-2:]
            self.multiplications += left.shape[0] * left.shape[1] * right.shape[1]
        return func(*args, **(kwargs or {}))


def products(function):
    """How many products of [N, H] with the head a function takes."""
    with Products() as counted:
        function()
    return counted.multiplications / (TOKENS * WIDTH * VOCABULARY)


@pytest.mark.parametrize("kind", [*KINDS[:4], {"divergence": "jsd", "support": "student_topk", "top_k": 7}])
@pytest.mark.parametrize(("trained", "expected"), [(False, 3), (True, 4)])
def test_a_divergence_takes_three_matrix_products_and_a_fourth_for_a_trained_head(kind, trained, expected):
    hidden, weight = randn(0, TOKENS, WIDTH).requires_grad_(), randn(1, VOCABULARY, WIDTH).requires_grad_(trained)

    def run():
        record = linear_token_divergence(hidden, randn(2, TOKENS, WIDTH), weight, **kind)
        record.divergence.mean().backward()

    assert products(run) == expected


@pytest.mark.parametrize(("trained", "expected"), [(False, 2), (True, 3)])
def test_a_policy_gradient_takes_one_product_less(trained, expected):
    hidden, weight = randn(0, TOKENS, WIDTH).requires_grad_(), randn(1, VOCABULARY, WIDTH).requires_grad_(trained)
    ids, advantages = torch.arange(TOKENS), randn(3, TOKENS)

    def run():
        record = linear_token_logprobs(hidden, weight, ids, token_weights=advantages)
        (record.student_logprob * advantages).sum().backward()

    assert products(run) == expected


def test_interpolation_looks_again_at_the_selected_tokens_only():
    hidden, weight = randn(0, TOKENS, WIDTH).requires_grad_(), randn(1, VOCABULARY, WIDTH)
    selected = torch.zeros(TOKENS)
    selected[5] = 1

    def run():
        record = linear_token_divergence(
            hidden, randn(2, TOKENS, WIDTH), weight, selected=selected.bool(), strength=0.03
        )
        record.divergence.sum().backward()

    assert products(run) == 3 + 3 / TOKENS


def test_without_gradients_only_logits_are_made():
    student, teacher, weight = randn(0, TOKENS, WIDTH), randn(2, TOKENS, WIDTH), randn(1, VOCABULARY, WIDTH)
    assert products(lambda: linear_token_divergence(student, teacher, weight)) == 2


def both(hidden, teacher, head, upstream, **chosen):
    """Value and gradients of one weighted loss, by the fused and by the readable path."""
    results = []
    for function in (linear_token_divergence, readable):
        extra = (
            chosen if function is linear_token_divergence else {k: v for k, v in chosen.items() if k != "token_weights"}
        )
        leaves = [
            hidden.detach().requires_grad_(),
            *(one.detach().requires_grad_() for one in (head.weight, head.bias)),
        ]
        own = Projection(leaves[1], leaves[2], head.scale, head.softcap)
        record = function(leaves[0], teacher, own, **extra, rows_per_chunk=4)
        gradients = torch.autograd.grad((record.divergence * upstream).sum(), leaves)
        results.append((record, gradients))
    return results


def assert_equal(results):
    (fused, ours), (readable, theirs) = results
    for name in fused.__dataclass_fields__:
        one, other = getattr(fused, name), getattr(readable, name)
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@given(
    divergence=st.sampled_from(["forward_kl", "reverse_kl", "jsd"]),
    support=st.sampled_from(["full", "student_topk", "teacher_topk"]),
    tail=st.booleans(),
    top_k=st.integers(1, 13),
    beta=st.floats(0.05, 0.95),
    temperature=st.floats(0.3, 3.0),
    clip=st.sampled_from([None, "entry_clip", "token_clip"]),
    bound=st.floats(1e-3, 1.0),
    softcap=st.sampled_from([None, 3.0]),
    weighted=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_the_fused_head_equals_the_readable_one_for_every_setting(
    divergence, support, tail, top_k, beta, temperature, clip, bound, softcap, weighted, seed
):
    head = Projection(randn(seed, 13, 5), randn(seed + 1, 13), scale=0.7, softcap=softcap)
    hidden, teacher, upstream = randn(seed + 2, 9, 5), randn(seed + 3, 9, 5), randn(seed + 4, 9)
    chosen = {"divergence": divergence, "support": support, "tail": tail, "temperature": temperature}
    chosen |= {"top_k": None if support == "full" else top_k, "response_ids": torch.arange(9)}
    chosen |= {} if clip is None else {clip: bound}
    chosen |= {"beta": beta, "token_weights": upstream if weighted else None}
    assert_equal(both(hidden, teacher, head, upstream, **chosen))


@pytest.mark.parametrize("forbidden", ["student", "teacher", "both"])
@pytest.mark.parametrize(
    "kind",
    [
        *({"divergence": name} for name in ("forward_kl", "reverse_kl", "jsd")),
        {"divergence": "jsd", "support": "student_topk", "top_k": 3},
        {"divergence": "forward_kl", "support": "teacher_topk", "top_k": 3},
    ],
)
def test_forbidden_ids_give_no_nan_and_what_the_readable_path_gives(kind, forbidden):
    hole = torch.zeros(13, dtype=torch.float64)
    hole[[2, 5, 12]] = -torch.inf
    none = torch.zeros(13, dtype=torch.float64)
    weight, hidden, teacher = randn(0, 13, 5), randn(1, 9, 5), randn(2, 9, 5)
    student_head = Projection(weight, none if forbidden == "teacher" else hole)
    teacher_head = Projection(weight, none if forbidden == "student" else hole)
    gradients = []
    for function in (linear_token_divergence, readable):
        leaf = hidden.clone().requires_grad_()
        record = function(leaf, teacher, student_head, teacher_weight=teacher_head, rows_per_chunk=4, **kind)
        assert all(
            getattr(record, name).isfinite().all() for name in ("divergence", "student_entropy", "teacher_entropy")
        )
        gradients.append((record.divergence.detach(), *torch.autograd.grad(record.divergence.sum(), leaf)))
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs)


def test_a_loss_that_the_weights_did_not_foresee_is_differentiated_all_the_same():
    head, hidden, teacher = Projection(randn(0, 13, 5), randn(5, 13)), randn(1, 9, 5), randn(2, 9, 5)
    assert_equal(both(hidden, teacher, head, randn(3, 9), token_weights=randn(4, 9)))
    assert_equal(both(hidden, teacher, head, 2.5 * torch.ones(9)))
    assert_equal(both(hidden, teacher, head, torch.zeros(9)))


@pytest.mark.parametrize("trained", [False, True])
def test_divergence_and_log_probability_may_both_be_in_the_loss(trained):
    gradients = []
    for function in (linear_token_divergence, readable):
        hidden, weight = randn(1, 9, 5).requires_grad_(), randn(0, 13, 5).requires_grad_(trained)
        record = function(hidden, randn(2, 9, 5), weight, response_ids=torch.arange(9), logprob_temperature=0.8)
        loss = (record.divergence * randn(3, 9)).sum() - (record.student_logprob * randn(4, 9)).sum()
        gradients.append(torch.autograd.grad(loss, [hidden, weight] if trained else [hidden]))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_backward_pass_can_be_repeated():
    hidden, weight = randn(1, 9, 5).requires_grad_(), randn(0, 13, 5).requires_grad_()
    loss = 3 * linear_token_divergence(hidden, randn(2, 9, 5), weight).divergence.sum()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, (hidden, weight)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wider", [torch.float32, torch.float64])
def test_a_teacher_in_a_wider_dtype_is_not_rounded_to_the_students(wider):
    hidden, weight = randn(0, 9, 5).bfloat16(), randn(1, 30, 5).bfloat16()
    teacher = (hidden.double() + 1e-3 * randn(2, 9, 5)).to(wider)
    ours = linear_token_divergence(hidden, teacher, weight).divergence
    theirs = readable(hidden, teacher, weight).divergence
    assert ours.dtype == theirs.dtype == wider and theirs.min() > 0
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-4)


def test_autocast_does_not_round_the_logits():
    hidden, teacher, weight = (randn(seed, *shape).float() for seed, shape in enumerate([(9, 5), (9, 5), (30, 5)]))
    plain = linear_token_divergence(hidden, teacher, weight).divergence
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_token_divergence(hidden, teacher, weight).divergence, plain)


def test_a_head_in_another_dtype_is_cast_block_by_block(monkeypatch):
    monkeypatch.setattr("selfdistill.objectives.torch_tiles.CAST_ELEMENTS", 7 * 5)
    hidden, teacher, weight = (randn(seed, *shape).float() for seed, shape in enumerate([(9, 5), (9, 5), (30, 5)]))
    narrow = weight.bfloat16()
    gradients = []
    for head in (narrow, narrow.float()):
        leaf = hidden.clone().requires_grad_()
        record = linear_token_divergence(leaf, teacher, head)
        gradients.append((record.divergence.detach(), *torch.autograd.grad(record.divergence.sum(), leaf)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_trained_bf16_head_gets_a_gradient_that_was_added_up_in_float32():
    student, teacher, weight = bf16_case(2e-2, tokens=200)
    weight.requires_grad_()
    linear_token_divergence(
        student.clone().requires_grad_(), teacher, weight, rows_per_chunk=3
    ).divergence.sum().backward()
    wide = weight.detach().double().requires_grad_()
    token_divergence(
        student.double() @ wide.T, (teacher.double() @ wide.T).detach(), divergence="forward_kl"
    ).sum().backward()
    assert weight.grad.dtype == torch.bfloat16 and cosine(weight.grad, wide.grad) > 0.99999


def test_one_head_is_recognised_as_such_through_detached_views():
    weight = randn(0, 13, 5)
    assert same_head(Projection(weight), Projection(weight.detach()))
    assert not same_head(Projection(weight), Projection(weight.clone()))
    assert not same_head(Projection(weight), Projection(weight, scale=2.0))
    assert not same_head(Projection(weight), Projection(weight, softcap=2.0))
    assert not same_head(Projection(weight), MixedProjection(Projection(weight), Projection(weight), 0.5))


def test_a_tile_is_bounded_in_bytes_and_never_more_than_a_third_of_the_tokens():
    def rows(tokens, vocabulary, teacher=True):
        weight = torch.empty(1, 2).expand(vocabulary, 2)
        hidden = torch.empty(1, 2).expand(tokens, 2)
        settings = DivergenceSettings(divergence="jsd")
        inputs = HeadInputs(
            hidden, Projection(weight), teacher_hidden=hidden, teacher=Projection(weight), settings=settings
        )
        return tile_rows(inputs if teacher else HeadInputs(hidden, Projection(weight)))

    assert rows(9, 100) == 3 and rows(400, 100) == 134 and rows(1, 100) == 1 and rows(0, 100) == 1
    assert 200 < rows(10**6, 152_000) <= rows(10**7, 152_000) < 230 < 400 < rows(10**6, 152_000, teacher=False) < 450
    assert rows(100, 2**22) == 8  # a large head
    assert rows(60, 152_000) == 20
    wide = Projection(torch.empty(1, 1).expand(20_000, 1000))
    assert [tile_rows(HeadInputs(torch.empty(n, 1000), wide)) for n in (60, 150, 400)] == [60, 50, 134]
    assert rows(10**6, 10**9) == 1


def test_a_token_loss_of_log_probabilities_at_another_temperature_is_refused():
    inputs = HeadInputs(
        randn(0, 9, 5), Projection(randn(1, 13, 5)), ids=torch.arange(9), temperature=2.0, logprob_temperature=1.0
    )
    with pytest.raises(SelfDistillError, match="one temperature"):
        head_pass(inputs, lambda record, rows: -record.student_logprob)


def test_token_weights_of_another_length_are_refused():
    with pytest.raises(SelfDistillError, match="token_weights"):
        linear_token_divergence(randn(0, 9, 5), randn(1, 9, 5), randn(2, 13, 5), token_weights=torch.ones(8))
