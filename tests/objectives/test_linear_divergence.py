"""The chunked path from hidden states equals the dense divergence, in value and gradient, without holding [N, V]."""

import gc
import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfdistill.errors import SelfDistillError
from selfdistill.models.head import MixedProjection, Projection
from selfdistill.objectives import (
    interpolate_targets,
    linear_entropies,
    linear_token_divergence,
    linear_token_logprobs,
    token_divergence,
)

TOKENS, WIDTH, VOCABULARY = 11, 5, 13


def tensors(seed, *shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def case(seed=0, tokens=TOKENS, dtype=torch.float64):
    student, teacher, weight = tensors(seed, (tokens, WIDTH), (tokens, WIDTH), (VOCABULARY, WIDTH), dtype=dtype)
    return student.requires_grad_(), teacher, weight.requires_grad_()


VARIANTS = [
    {"divergence": "forward_kl"},
    {"divergence": "forward_kl", "temperature": 1.3, "entry_clip": 0.02},
    {"divergence": "reverse_kl", "token_clip": 0.5},
    {"divergence": "jsd", "beta": 0.3},
    {"divergence": "jsd", "support": "student_topk", "top_k": 4},
    {"divergence": "reverse_kl", "support": "student_topk", "top_k": 4, "tail": False},
    {"divergence": "forward_kl", "support": "teacher_topk", "top_k": 4},
]


@pytest.mark.parametrize("chosen", VARIANTS)
@pytest.mark.parametrize("rows_per_chunk", [1, 3, 11, 50, None])
def test_chunks_of_any_size_equal_the_dense_divergence_in_value_and_gradient(chosen, rows_per_chunk):
    student, teacher, weight = case()
    bias = tensors(5, (VOCABULARY,))[0].requires_grad_()
    projection = Projection(weight, bias, scale=0.7, softcap=3.0)
    per_token = tensors(9, (TOKENS,))[0]

    record = linear_token_divergence(student, teacher, projection, **chosen, rows_per_chunk=rows_per_chunk)
    chunked = torch.autograd.grad((record.divergence * per_token).sum(), (student, weight, bias))
    value = token_divergence(capped(student, weight, bias), capped(teacher, weight, bias), **chosen)
    dense = torch.autograd.grad((value * per_token).sum(), (student, weight, bias))

    torch.testing.assert_close(record.divergence, value)
    for ours, theirs in zip(chunked, dense, strict=True):
        torch.testing.assert_close(ours, theirs)


def capped(hidden, weight, bias):
    return 3.0 * torch.tanh(0.7 * (hidden @ weight.T + bias) / 3.0)


def test_the_gradient_passes_gradcheck():
    student, teacher, weight = case(tokens=4)

    fixed = weight.detach().clone()  # the teacher's logits are a constant although the head is shared

    def loss(hidden, matrix):
        record = linear_token_divergence(
            hidden, teacher, matrix, divergence="jsd", teacher_weight=fixed, rows_per_chunk=3
        )
        return record.divergence

    assert torch.autograd.gradcheck(loss, (student, weight))


def test_the_record_holds_what_the_logits_say():
    student, teacher, weight = case()
    ids = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(1))
    chosen = {"divergence": "reverse_kl", "support": "student_topk", "top_k": 3, "temperature": 1.4, "entry_clip": 0.05}
    record = linear_token_divergence(student, teacher, weight, **chosen, response_ids=ids, rows_per_chunk=4)
    p, q = ((hidden @ weight.T / 1.4).softmax(-1).detach() for hidden in (student, teacher))
    torch.testing.assert_close(record.student_entropy, -(p * p.log()).sum(-1))
    torch.testing.assert_close(record.teacher_entropy, -(q * q.log()).sum(-1))
    torch.testing.assert_close(record.student_logprob.detach(), p.log()[range(TOKENS), ids])
    torch.testing.assert_close(record.teacher_logprob, q.log()[range(TOKENS), ids])
    torch.testing.assert_close(record.captured_mass, p.topk(3).values.sum(-1))
    assert record.agreement.tolist() == (p.argmax(-1) == q.argmax(-1)).double().tolist()
    assert ((record.clip_fraction * 4).round() == record.clip_fraction * 4).all() and record.clip_fraction.any()
    carrying = {name for name in record.__dataclass_fields__ if getattr(record, name).requires_grad}
    assert carrying == {"divergence", "student_logprob"}


def test_log_probabilities_may_be_taken_at_the_sampling_temperature():
    student, teacher, weight = case()
    ids = torch.arange(TOKENS)
    record = linear_token_divergence(
        student, teacher, weight, temperature=2.0, logprob_temperature=1.1, response_ids=ids, rows_per_chunk=4
    )
    sampler = (student @ weight.T / 1.1).log_softmax(-1)[range(TOKENS), ids]
    torch.testing.assert_close(record.student_logprob, sampler)


def test_the_chunked_path_reproduces_the_published_vectors():
    student = torch.tensor([[2, 1, 0, -1, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5], [5, -2, 1, 0, 0]])
    teacher = torch.tensor([[1, 2, 0.5, -1, 0], [3, 0, 0, 0, 0], [4, -1, 1.5, 0.5, 0]])
    record = linear_token_divergence(student, teacher, torch.eye(5), rows_per_chunk=2)
    expected = {
        "divergence": [0.380612, 1.098062, 0.079530],
        "student_entropy": [1.206489, 1.599502, 0.174549],
        "teacher_entropy": [1.206489, 0.679836, 0.496087],
    }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(record, name), torch.tensor(values), atol=2e-6, rtol=0)


def test_selected_rows_have_an_interpolated_target_and_the_others_do_not():
    student, teacher, weight = case()
    selected = torch.arange(TOKENS) % 3 == 0
    record = linear_token_divergence(student, teacher, weight, selected=selected, strength=0.25, rows_per_chunk=4)
    zs, zt = student @ weight.T, teacher @ weight.T
    dense = token_divergence(zs, interpolate_targets(zt, zs, selected, 0.25), divergence="forward_kl")
    torch.testing.assert_close(record.divergence, dense)
    chunked = torch.autograd.grad(record.divergence.sum(), (student, weight))
    for ours, theirs in zip(chunked, torch.autograd.grad(dense.sum(), (student, weight)), strict=True):
        torch.testing.assert_close(ours, theirs)
    plain = linear_token_divergence(student, teacher, weight, rows_per_chunk=4)
    torch.testing.assert_close(record.teacher_entropy, plain.teacher_entropy)
    assert torch.equal(record.divergence[~selected], plain.divergence[~selected])
    assert (record.divergence[selected] < plain.divergence[selected]).all()


def test_the_teacher_may_have_its_own_head_and_gets_no_gradient():
    student, teacher, weight = case()
    other = tensors(3, (VOCABULARY, WIDTH))[0].requires_grad_()
    teacher.requires_grad_()
    record = linear_token_divergence(student, teacher, weight, teacher_weight=other, rows_per_chunk=4)
    expected = token_divergence(student @ weight.T, teacher @ other.T, divergence="forward_kl")
    torch.testing.assert_close(record.divergence, expected)
    record.divergence.sum().backward()
    assert teacher.grad is None and other.grad is None and student.grad.any() and weight.grad.any()


def test_a_trust_region_teacher_mixes_two_models_logits():
    student, teacher, weight = case()
    live, first = tensors(4, (TOKENS, WIDTH), (VOCABULARY, WIDTH))
    head = MixedProjection(Projection(first), Projection(weight.detach()), mix=0.2)
    record = linear_token_divergence(
        student, torch.cat([teacher, live], dim=-1), weight, teacher_weight=head, rows_per_chunk=4
    )
    mixed = 0.8 * teacher @ first.T + 0.2 * live @ weight.T
    torch.testing.assert_close(record.divergence, token_divergence(student @ weight.T, mixed, divergence="forward_kl"))


def test_sixteen_bit_hidden_states_keep_the_direction_of_a_tiny_divergence():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 32, generator=generator).bfloat16()
    teacher = (hidden.float() + 0.02 * torch.randn(64, 32, generator=generator)).bfloat16()
    weight = (0.5 * torch.randn(500, 32, generator=generator)).bfloat16()
    narrow = hidden.clone().requires_grad_()
    record = linear_token_divergence(narrow, teacher, weight, rows_per_chunk=10)
    record.divergence.mean().backward()
    wide = hidden.double().requires_grad_()
    exact = token_divergence(wide @ weight.double().T, teacher.double() @ weight.double().T, divergence="forward_kl")
    exact.mean().backward()
    assert 1e-5 < exact.mean() < 1e-2 and record.divergence.dtype == torch.float32
    torch.testing.assert_close(record.divergence.double(), exact, rtol=1e-2, atol=1e-6)
    cosine = torch.cosine_similarity(narrow.grad.double().flatten(), wide.grad.flatten(), dim=0)
    assert cosine > 0.9999


def test_no_tokens_give_empty_fields_and_a_zero_loss_that_backpropagates():
    student, teacher, weight = case(tokens=0)
    ids, selected = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool)
    for chosen in VARIANTS:
        record = linear_token_divergence(
            student, teacher, weight, **chosen, response_ids=ids, selected=selected, strength=0.5
        )
        assert all(getattr(record, name).shape == (0,) for name in record.__dataclass_fields__)
        loss = record.divergence.sum() + linear_token_logprobs(student, weight, ids).student_logprob.sum()
        assert loss.item() == 0
        loss.backward()
    assert student.grad.shape == (0, WIDTH) and not weight.grad.any()
    assert linear_entropies(student, weight).shape == (0,)


def test_without_a_gradient_nothing_is_recorded():
    student, teacher, weight = case()
    with torch.no_grad():
        assert not linear_token_divergence(student, teacher, weight).divergence.requires_grad


def test_log_probabilities_without_a_teacher_carry_the_students_gradient():
    student, _, weight = case()
    ids = torch.arange(TOKENS)
    record = linear_token_logprobs(student, Projection(weight), ids, 1.2, rows_per_chunk=3)
    dense = (student @ weight.T / 1.2).log_softmax(-1)
    torch.testing.assert_close(record.student_logprob, dense[range(TOKENS), ids])
    torch.testing.assert_close(record.student_entropy, -(dense.exp() * dense).sum(-1).detach())
    ours = torch.autograd.grad(record.student_logprob.sum(), (student, weight))
    for mine, theirs in zip(ours, torch.autograd.grad(dense[range(TOKENS), ids].sum(), (student, weight)), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert record.divergence is None and record.teacher_entropy is None


def test_entropies_are_constants_over_the_full_vocabulary():
    student, _, weight = case()
    entropies = linear_entropies(student, weight, 0.8, rows_per_chunk=2)
    p = (student @ weight.T / 0.8).softmax(-1)
    torch.testing.assert_close(entropies, -(p * p.log()).sum(-1).detach())
    assert not entropies.requires_grad


class LargestOutput(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made, and the tensors that are still alive."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.numel())
                self.made.append(weakref.ref(leaf))
        return out

    def alive(self):
        gc.collect()
        return [made() for made in self.made if made() is not None]


@pytest.mark.parametrize("chosen", VARIANTS)
@pytest.mark.parametrize("rows_per_chunk", [8, None])
def test_logits_of_all_tokens_never_exist(chosen, rows_per_chunk):
    tokens, width, vocabulary = 96, 4, 70
    student, teacher, weight = tensors(0, (tokens, width), (tokens, width), (vocabulary, width), dtype=torch.float32)
    student.requires_grad_()
    weight.requires_grad_()
    chunk = rows_per_chunk or math.ceil(tokens / 3)
    with LargestOutput() as memory:
        record = linear_token_divergence(
            student,
            teacher,
            weight,
            **chosen,
            response_ids=torch.zeros(tokens, dtype=torch.long),
            selected=torch.ones(tokens, dtype=torch.bool),
            strength=0.1,
            rows_per_chunk=rows_per_chunk,
        )
        assert max(tensor.numel() for tensor in memory.alive()) <= tokens * width  # forward done: no logits are kept
        record.divergence.sum().backward()
    both_sides = 2 * chunk * vocabulary
    assert 0 < memory.largest <= both_sides < tokens * vocabulary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_hidden": torch.zeros(TOKENS - 1, WIDTH)}, "teacher_hidden has 10 rows"),
        ({"response_ids": torch.zeros(3, dtype=torch.long)}, "response_ids has 3 rows"),
        ({"selected": torch.zeros(3, dtype=torch.bool)}, "selected has 3 rows"),
        ({"teacher_hidden": torch.zeros(TOKENS, WIDTH + 1)}, "teacher_hidden has shape"),
        ({"teacher_weight": torch.zeros(VOCABULARY + 1, WIDTH)}, "one vocabulary"),
        ({"support": "student_topk", "top_k": VOCABULARY + 1}, "larger than the vocabulary"),
        ({"rows_per_chunk": 0}, "rows_per_chunk=0"),
        ({"strength": 2.0}, "strength=2.0"),
        ({"divergence": "kl"}, "divergence='kl' is unknown"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(change, message):
    student, teacher, weight = case(dtype=torch.float32)
    inputs = {"student_hidden": student, "teacher_hidden": teacher, "weight": weight} | change
    with pytest.raises(SelfDistillError, match=message):
        linear_token_divergence(**inputs)
