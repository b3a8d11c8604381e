"""The dense divergence against the papers' vectors, an independent float64 reference, and its own definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.errors import SelfDistillError
from selfdistill.objectives import token_divergence

STUDENT = torch.tensor([[2, 1, 0, -1, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5], [5, -2, 1, 0, 0]])
TEACHER = torch.tensor([[1, 2, 0.5, -1, 0], [3, 0, 0, 0, 0], [4, -1, 1.5, 0.5, 0]])

VECTORS = [
    ({"divergence": "forward_kl"}, [0.380612, 1.098062, 0.079530]),
    ({"divergence": "reverse_kl"}, [0.380612, 1.095748, 0.051828]),
    ({"divergence": "jsd"}, [0.091558, 0.247183, 0.015254]),
    ({"divergence": "jsd", "beta": 0.3}, [0.077355, 0.210682, 0.013974]),
    ({"divergence": "forward_kl", "temperature": 1.1}, [0.310276, 0.954511, 0.084768]),
    ({"divergence": "forward_kl", "entry_clip": 0.06}, [-0.125222, -0.207745, 0.038236]),
    ({"divergence": "jsd", "support": "student_topk", "top_k": 2}, [0.085443, 0.097060, 0.014994]),
    ({"divergence": "reverse_kl", "support": "student_topk", "top_k": 2}, [0.355897, 0.503695, 0.051159]),
    ({"divergence": "forward_kl", "support": "teacher_topk", "top_k": 2}, [0.462117, 0.548789, 0.053047]),
]


@pytest.mark.parametrize(("chosen", "expected"), VECTORS)
def test_a_divergence_reproduces_the_published_vector(chosen, expected):
    actual = token_divergence(STUDENT, TEACHER, **chosen)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, torch.tensor(expected), atol=2e-6, rtol=0)


# An independent reference: plain Python floats, probabilities rather than log-probabilities, sums as they are written.


def softmax(logits):
    exponentials = [math.exp(z - max(logits)) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def on_support(student, teacher, support, top_k, tail):
    if support == "full":
        return student, teacher
    owner = student if support == "student_topk" else teacher
    ids = sorted(range(len(owner)), key=lambda v: -owner[v])[:top_k]
    pair = [[p[v] for v in ids] for p in (student, teacher)]
    if support == "teacher_topk":
        return tuple([p / sum(kept) for p in kept] for kept in pair)
    return tuple([*kept, 1 - sum(kept)] if tail else kept for kept in pair)


def reference_token(zs, zt, *, divergence, beta, temperature, support, top_k, tail, entry_clip, token_clip):
    student, teacher = softmax([z / temperature for z in zs]), softmax([z / temperature for z in zt])
    student, teacher = on_support(student, teacher, support, top_k, tail)
    total = 0.0
    for p, q in zip(student, teacher, strict=True):
        mixture = (1 - beta) * p + beta * q
        summand = {
            "forward_kl": q * math.log(q / p),
            "reverse_kl": p * math.log(p / q),
            "jsd": (1 - beta) * p * math.log(p / mixture) + beta * q * math.log(q / mixture),
        }[divergence]
        total += summand if entry_clip is None else min(summand, entry_clip)
    return total if token_clip is None else min(total, token_clip)


SUPPORTS = [("full", True), ("student_topk", True), ("student_topk", False), ("teacher_topk", True)]
CLIPS = [(None, None), (0.02, None), (None, 0.1)]


def logits(seed, rows=6, vocabulary=9, scale=2.0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize(("support", "tail"), SUPPORTS)
@pytest.mark.parametrize(("entry_clip", "token_clip"), CLIPS)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_every_combination_equals_the_dense_reference(divergence, support, tail, entry_clip, token_clip, temperature):
    zs, zt = logits(1), logits(2)
    chosen = {
        "divergence": divergence,
        "beta": 0.3 if divergence == "jsd" else 0.5,
        "temperature": temperature,
        "support": support,
        "top_k": None if support == "full" else 4,
        "tail": tail,
        "entry_clip": entry_clip,
        "token_clip": token_clip,
    }
    expected = [reference_token(s, t, **chosen) for s, t in zip(zs.tolist(), zt.tolist(), strict=True)]
    actual = token_divergence(zs, zt, **chosen)
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize(("support", "tail"), SUPPORTS)
@pytest.mark.parametrize(("entry_clip", "token_clip"), CLIPS)
def test_the_gradient_is_that_of_the_divergence(divergence, support, tail, entry_clip, token_clip):
    top_k = None if support == "full" else 3
    student, teacher = logits(3, rows=3, vocabulary=6).requires_grad_(), logits(4, rows=3, vocabulary=6)

    def loss(zs):
        return token_divergence(
            zs,
            teacher,
            divergence=divergence,
            beta=0.4,
            temperature=1.3,
            support=support,
            top_k=top_k,
            tail=tail,
            entry_clip=entry_clip,
            token_clip=token_clip,
        )

    assert torch.autograd.gradcheck(loss, (student,))


def test_a_full_divergence_is_a_loss_and_not_an_advantage():
    student = STUDENT.double().requires_grad_()
    token_divergence(student, TEACHER.double(), divergence="forward_kl").sum().backward()
    # The closed form p_S - p_T; an advantage (a detached factor of log p) would give a multiple of a score function.
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - TEACHER.double().softmax(-1))


def test_the_gradient_of_jsd_is_half_the_log_ratio_to_the_mixture():
    student = STUDENT.double().requires_grad_()
    token_divergence(student, TEACHER.double(), divergence="jsd").sum().backward()
    p, q = student.detach().softmax(-1), TEACHER.double().softmax(-1)
    slope = 0.5 * (p / ((p + q) / 2)).log()
    torch.testing.assert_close(student.grad, p * (slope - (p * slope).sum(-1, keepdim=True)))


def test_the_teacher_is_a_constant():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    token_divergence(student, teacher, divergence="jsd").sum().backward()
    assert student.grad is not None and teacher.grad is None


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize(("support", "tail"), SUPPORTS)
def test_a_teacher_equal_to_the_student_gives_no_divergence_and_no_gradient(divergence, support, tail):
    student = STUDENT.clone().requires_grad_()
    top_k = None if support == "full" else 2
    value = token_divergence(student, STUDENT, divergence=divergence, support=support, top_k=top_k, tail=tail)
    value.sum().backward()
    assert value.abs().max() < 1e-7
    if tail:  # without a tail the K true probabilities do not sum to 1, so that moving mass out of them changes the sum
        assert student.grad.abs().max() < 1e-7


def test_a_clipped_summand_has_no_gradient():
    # Where the teacher has all its mass on id 0, every other summand is about 0 and id 0's is far above the clip.
    student = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[60.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    value = token_divergence(student, teacher, divergence="forward_kl", entry_clip=0.05)
    value.sum().backward()
    torch.testing.assert_close(value.detach(), torch.tensor([0.05], dtype=torch.float64))
    assert student.grad.abs().max() < 1e-12


def test_an_unclipped_summand_keeps_its_gradient_beside_a_clipped_one():
    zs, zt, tau = STUDENT[:1].double().requires_grad_(), TEACHER[:1].double(), 0.06
    token_divergence(zs, zt, divergence="forward_kl", entry_clip=tau).sum().backward()
    p, q = zs.detach().softmax(-1), zt.softmax(-1)
    kept = (q * (q / p).log() <= tau).double()
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(zs.grad, p * (kept * q).sum(-1, keepdim=True) - kept * q)


def test_a_clipped_token_has_no_gradient_and_the_others_keep_theirs():
    clipped, free = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    value = token_divergence(clipped, TEACHER, divergence="forward_kl", token_clip=0.2)
    value.sum().backward()
    token_divergence(free, TEACHER, divergence="forward_kl").sum().backward()
    assert value[0].item() == value[1].item() == pytest.approx(0.2)
    assert not clipped.grad[:2].any()
    torch.testing.assert_close(clipped.grad[2], free.grad[2])


def test_the_entry_clip_acts_on_the_tail_bucket_too():
    student, teacher = torch.tensor([[9.0, 0, 0, 0, 0]]), torch.tensor([[0.0, 3, 3, 3, 3]])
    chosen = {"divergence": "forward_kl", "support": "student_topk", "top_k": 1}
    free = token_divergence(student, teacher, **chosen)
    clipped = token_divergence(student, teacher, **chosen, entry_clip=0.5)
    q = teacher.softmax(-1)[0, 0]
    head = q * (q.log() - student.log_softmax(-1)[0, 0])
    assert free > 5
    torch.testing.assert_close(clipped[0], head + 0.5)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize(("support", "tail"), SUPPORTS)
@pytest.mark.parametrize("forbidden_by", ["both", "student", "teacher"])
def test_forbidden_ids_never_make_a_nan(divergence, support, tail, forbidden_by):
    student, teacher = logits(5), logits(6)
    if forbidden_by in ("both", "student"):
        student[:, 3:6] = -math.inf
    if forbidden_by in ("both", "teacher"):
        teacher[:, 3:6] = -math.inf
    student = student.float().requires_grad_()
    top_k = None if support == "full" else 7
    value = token_divergence(student, teacher.float(), divergence=divergence, support=support, top_k=top_k, tail=tail)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()
    if forbidden_by == "both" and support == "full":
        allowed = [0, 1, 2, 6, 7, 8]
        expected = token_divergence(student[:, allowed], teacher[:, allowed].float(), divergence=divergence)
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("top_k", [3, 9])
def test_a_tail_without_mass_keeps_a_finite_and_exact_gradient(divergence, top_k):
    student, teacher = logits(7), logits(8)
    student[:, :3] += 40  # 1 - sum rounds to 0 in float32; with top_k 9 there is no tail at all
    narrow, wide = student.float().requires_grad_(), student.clone().requires_grad_()
    chosen = {"divergence": divergence, "support": "student_topk", "top_k": top_k}
    for zs, zt in ((narrow, teacher.float()), (wide, teacher)):
        token_divergence(zs, zt, **chosen).sum().backward()
    torch.testing.assert_close(narrow.grad.double(), wide.grad, atol=1e-5, rtol=1e-4)


def test_sixteen_bit_logits_are_compared_in_float32():
    student = STUDENT.bfloat16().requires_grad_()
    value = token_divergence(student, TEACHER.bfloat16(), divergence="reverse_kl")
    value.sum().backward()
    assert value.dtype == torch.float32 and student.grad.dtype == torch.bfloat16
    torch.testing.assert_close(value, token_divergence(STUDENT.bfloat16().float(), TEACHER, divergence="reverse_kl"))


def test_leading_dimensions_are_kept_and_may_be_empty():
    student, teacher = STUDENT.repeat(2, 1, 1), TEACHER.repeat(2, 1, 1)
    assert token_divergence(student, teacher, divergence="jsd").shape == (2, 3)
    nothing = torch.zeros(0, 5, requires_grad=True)
    for support, top_k in (("full", None), ("student_topk", 2), ("teacher_topk", 2)):
        value = token_divergence(nothing, nothing, divergence="jsd", support=support, top_k=top_k)
        value.sum().backward()
        assert value.shape == (0,) and nothing.grad.shape == (0, 5)


@pytest.mark.parametrize("beta", [0, 1, 0.0, 1.0, -0.1, 1.5])
def test_a_mixture_without_one_side_names_the_two_kls(beta):
    with pytest.raises(ValueError, match="forward_kl") as caught:
        token_divergence(STUDENT, TEACHER, divergence="jsd", beta=beta)
    assert "reverse_kl" in str(caught.value) and isinstance(caught.value, SelfDistillError)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"divergence": "foward_kl"}, "did you mean 'forward_kl'"),
        ({"divergence": "forward_kl", "support": "student-topk", "top_k": 2}, "did you mean 'student_topk'"),
        ({"divergence": "jsd", "support": "student_topk"}, "needs top_k"),
        ({"divergence": "jsd", "support": "student_topk", "top_k": 6}, "larger than the vocabulary of 5"),
        ({"divergence": "jsd", "support": "teacher_topk", "top_k": 0}, "at least 1"),
        ({"divergence": "jsd", "support": "teacher_topk", "top_k": 2.0}, "whole number"),
        ({"divergence": "jsd", "temperature": 0.0}, "temperature=0.0"),
        ({"divergence": "jsd", "temperature": math.inf}, "temperature=inf"),
        ({"divergence": "jsd", "entry_clip": -0.1}, "entry_clip=-0.1"),
        ({"divergence": "jsd", "token_clip": 0.0}, "token_clip=0.0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_the_remedy(chosen, message):
    with pytest.raises(SelfDistillError, match=message):
        token_divergence(STUDENT, TEACHER, **chosen)


def test_logits_of_two_shapes_are_refused():
    with pytest.raises(SelfDistillError, match=r"\(3, 5\) and \(2, 5\)"):
        token_divergence(STUDENT, TEACHER[:2], divergence="jsd")


ROW = st.lists(st.floats(-15, 15, width=32), min_size=4, max_size=4)


@settings(max_examples=80, deadline=None)
@given(ROW, ROW, st.floats(0.05, 0.95), st.sampled_from(["full", "student_topk", "teacher_topk"]))
def test_without_a_clip_no_divergence_is_negative(student, teacher, beta, support):
    top_k = None if support == "full" else 2
    for divergence in ("forward_kl", "reverse_kl", "jsd"):
        chosen = {"divergence": divergence, "beta": beta, "support": support, "top_k": top_k}
        assert token_divergence(torch.tensor([student]), torch.tensor([teacher]), **chosen).item() >= -2e-6


@settings(max_examples=80, deadline=None)
@given(ROW, ROW)
def test_the_jensen_shannon_divergence_is_symmetric_and_at_most_ln_2(first, second):
    a, b = torch.tensor([first]), torch.tensor([second])
    there, back = token_divergence(a, b, divergence="jsd"), token_divergence(b, a, divergence="jsd")
    torch.testing.assert_close(there, back, atol=1e-6, rtol=1e-5)
    assert there.item() <= math.log(2) + 1e-6
