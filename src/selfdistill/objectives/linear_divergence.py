"""The divergence straight from hidden states, with its gradient made in the forward pass: the public functions.

In: hidden states [N, H] of student and self-teacher at the positions that predict each response token, and the
projection head. Out: a :class:`TokenRecord` of N tokens, differentiable in the student's hidden states (and in the
head, if it is trained). Logits exist for one tile of rows at a time and are made once
(:mod:`selfdistill.objectives.head_pass`). Same definitions, and the same numbers up to float rounding, as
``linear_reference.py``, which is slower and reads like METHODS section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfdistill.models.head import Head, Projection
from selfdistill.objectives import linear_reference as reference
from selfdistill.objectives.head_pass import HeadGradients, HeadInputs, HeadPass, head_pass, interpolated_pass
from selfdistill.objectives.interpolation import check_share
from selfdistill.objectives.linear_reference import as_head, check_sizes
from selfdistill.objectives.record import TokenRecord
from selfdistill.objectives.settings import DivergenceName, DivergenceSettings, SettingError, SupportName

Primary = Literal["divergence", "student_logprob"]
"""The field whose gradient is made in the forward pass; the other's costs a second look when it is asked for."""


def linear_token_divergence(
    student_hidden: Float[Tensor, "N H"],
    teacher_hidden: Float[Tensor, "N H2"],
    weight: Float[Tensor, "V H"] | Head,
    *,
    divergence: DivergenceName = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    support: SupportName = "full",
    top_k: int | None = None,
    tail: bool = True,
    entry_clip: float | None = None,
    token_clip: float | None = None,
    response_ids: Int[Tensor, " N"] | None = None,
    teacher_weight: Float[Tensor, "V H2"] | Head | None = None,
    token_weights: Float[Tensor, " N"] | None = None,
    selected: Bool[Tensor, " N"] | None = None,
    strength: float = 0.0,
    logprob_temperature: float | None = None,
    rows_per_chunk: int | None = None,
) -> TokenRecord:
    """Return the record of N tokens, in float32 (float64 if anything is).

    ``divergence`` and ``student_logprob`` carry gradients to ``student_hidden`` and to a head that requires them;
    everything else is a constant.

    Args:
        student_hidden: of any floating dtype.
        teacher_hidden: constant; its own width H2 if the teacher has its own head.
        weight: the student's head, a [V, H] matrix or a :class:`Projection` (with bias, scale, soft cap).
        divergence: as for :func:`token_divergence`, like the next seven.
        beta: the teacher's share of the mixture.
        temperature: T_d.
        support: the ids that are compared.
        top_k: K of a top-k support.
        tail: one bucket for the rest of a student's top-k support.
        entry_clip: tau of each summand, nats.
        token_clip: tau of each token, nats.
        response_ids: the sampled ids, for log-probabilities.
        teacher_weight: the teacher's head; None: the student's, which is then read once for both.
        token_weights: for a trained head, what each token's divergence will be multiplied with in the loss (default:
            the same for all), so that its gradient can be made in the forward pass as well. With another loss the
            result is right all the same, at the price of a second look. A frozen head needs no weights.
        selected: tokens whose target is interpolated by ``strength``, k in [0, 1] (PAINT, METHODS 3.5): only they are
            looked at twice. Teacher entropy and log-probability are those before.
        strength: see ``selected``.
        logprob_temperature: of the log-probabilities; None: ``temperature``.
        rows_per_chunk: tokens whose logits exist at a time; None: what fits a fixed amount of memory, and at most a
            third of N.

    Raises:
        SettingError: settings that cannot be, or tensors whose sizes do not fit together.
    """
    settings = DivergenceSettings(
        divergence=divergence,
        beta=beta,
        temperature=temperature,
        support=support,
        top_k=top_k,
        tail=tail,
        entry_clip=entry_clip,
        token_clip=token_clip,
    )
    check_share("strength", strength)
    head = as_head(weight)
    teacher = head if teacher_weight is None else as_head(teacher_weight)
    settings.check_vocabulary(head.vocabulary)
    check_sizes(head, teacher, student_hidden, teacher_hidden, response_ids, selected)
    if token_weights is not None and token_weights.shape != student_hidden.shape[:1]:
        sizes = f"{tuple(token_weights.shape)} but student_hidden {len(student_hidden)} rows"
        raise SettingError(f"token_weights has shape {sizes}; pass one weight per response token.")
    inputs = HeadInputs(
        student_hidden=student_hidden,
        student=_projection(head),
        ids=response_ids,
        temperature=temperature,
        logprob_temperature=logprob_temperature,
        teacher_hidden=teacher_hidden.detach(),
        teacher=teacher,
        settings=settings,
    )
    look = Look(inputs, "divergence", token_weights, selected, strength, rows_per_chunk)
    return _record(look)


def linear_token_logprobs(
    student_hidden: Float[Tensor, "N H"],
    projection: Float[Tensor, "V H"] | Head,
    response_ids: Int[Tensor, " N"],
    temperature: float = 1.0,
    *,
    token_weights: Float[Tensor, " N"] | None = None,
    rows_per_chunk: int | None = None,
) -> TokenRecord:
    """Return a record with the student's fields only: entropy (constant), log-probability of each id (differentiable).

    For policy gradients and imitation, which have no teacher; two matrix products, three if the head is trained.
    ``token_weights`` and the rest as in :func:`linear_token_divergence`.

    Raises:
        SettingError: tensors whose sizes do not fit together.
    """
    head = as_head(projection)
    check_sizes(head, head, student_hidden, student_hidden, response_ids, None)
    inputs = HeadInputs(student_hidden, _projection(head), ids=response_ids, temperature=temperature)
    return _record(Look(inputs, "student_logprob", token_weights, None, 0.0, rows_per_chunk))


def linear_entropies(
    hidden: Float[Tensor, "N H"],
    projection: Float[Tensor, "V H"] | Head,
    temperature: float = 1.0,
    *,
    rows_per_chunk: int | None = None,
) -> Float[Tensor, " N"]:
    """Return the entropy in nats of each token's next-token distribution, without gradient: one matrix product."""
    head = as_head(projection)
    check_sizes(head, head, hidden, hidden, None, None)
    if not isinstance(head, Projection):
        return reference.linear_entropies(hidden, head, temperature, rows_per_chunk=rows_per_chunk)
    inputs = HeadInputs(hidden.detach(), head, temperature=temperature)
    return head_pass(inputs, rows_per_tile=rows_per_chunk).record.student_entropy


def _projection(head: Head) -> Projection:
    if not isinstance(head, Projection):
        raise SettingError(f"the student's head is a {type(head).__name__}; it must be a matrix or a Projection.")
    return head


@dataclass(frozen=True, slots=True)
class Look:
    """What a public function asks of the head."""

    inputs: HeadInputs
    primary: Primary
    token_weights: Float[Tensor, " N"] | None
    selected: Bool[Tensor, " N"] | None
    strength: float
    rows_per_chunk: int | None

    @property
    def weights(self) -> Float[Tensor, " N"]:
        """What each token is expected to be multiplied with in the loss."""
        hidden = self.inputs.student_hidden
        like = torch.ones(len(hidden), dtype=self.inputs.dtype, device=hidden.device)
        return like if self.token_weights is None else self.token_weights.detach().to(like.dtype)

    def loss(self, weights: Tensor | None) -> Callable[..., Tensor]:
        """Return the token loss: the primary field, times the weights if there are any."""

        def primary(record: TokenRecord, rows: Any) -> Tensor:
            value: Tensor = getattr(record, self.primary)
            return value if weights is None else value * weights[rows]

        return primary

    def take(self, loss: Callable[..., Tensor] | None, gradients: HeadGradients | None) -> HeadPass:
        """Look at all tokens, and at the selected ones again."""
        result = head_pass(self.inputs, loss, gradients, rows_per_tile=self.rows_per_chunk)
        if self.selected is None:
            return result
        rows = self.selected.nonzero().squeeze(-1)
        rows_per_tile = self.rows_per_chunk
        return interpolated_pass(self.inputs, result, rows, self.strength, loss, gradients, rows_per_tile=rows_per_tile)

    def readable(self) -> TokenRecord:
        """Return the same record by the readable path, with autograd's gradient for any loss."""
        inputs = self.inputs
        if inputs.settings is None or inputs.teacher is None or inputs.teacher_hidden is None:
            assert inputs.ids is not None
            return reference.linear_token_logprobs(
                inputs.student_hidden,
                inputs.student,
                inputs.ids,
                inputs.temperature,
                rows_per_chunk=self.rows_per_chunk,
            )
        return reference.linear_token_divergence(
            inputs.student_hidden,
            inputs.teacher_hidden,
            inputs.student,
            inputs.settings,
            response_ids=inputs.ids,
            teacher_weight=inputs.teacher,
            selected=self.selected,
            strength=self.strength,
            logprob_temperature=inputs.logprob_temperature,
            rows_per_chunk=self.rows_per_chunk,
        )


def _record(look: Look) -> TokenRecord:
    hidden, head = look.inputs.student_hidden, look.inputs.student
    needs = any(one is not None and one.requires_grad for one in (hidden, head.weight, head.bias))
    if not (torch.is_grad_enabled() and needs):
        return look.take(None, None).record
    fields: list[str] = []
    values = _Looked.apply(hidden, head.weight, head.bias, look, fields)  # type: ignore[no-untyped-call]
    return TokenRecord(**dict(zip(fields, values, strict=True)))


class _Looked(torch.autograd.Function):
    """The record, with the gradient of its primary field made beforehand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, look: Look, fields: list[str]) -> Any:
        """Look once; note which fields there are."""
        gradients = HeadGradients.wanted_by(look.inputs)
        ctx.look, ctx.gradients = look, gradients
        ctx.weights = look.weights if gradients.wanted else None
        result = look.take(look.loss(ctx.weights), gradients)
        ctx.hidden_gradient = result.hidden_gradient
        named = {name: getattr(result.record, name) for name in TokenRecord.__dataclass_fields__}
        fields.extend(name for name, value in named.items() if value is not None)
        ctx.fields = list(fields)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(named[name] for name in fields if name not in ("divergence", "student_logprob")))
        return tuple(named[name] for name in fields)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        """Scale what was made in the forward pass, or, for a loss that it does not fit, look again."""
        over = {name: value for name, value in zip(ctx.fields, upstream, strict=True) if value is not None}
        wanted = over.pop(ctx.look.primary, None)
        if not over and wanted is None:
            return None, None, None, None, None
        if not over and wanted is not None and ctx.weights is None:
            return _scaled_rows(ctx.hidden_gradient, wanted), None, None, None, None
        scale = None if over or wanted is None else _ratio(wanted, ctx.weights)
        if scale is None:
            return *_readable_gradients(ctx.look, {**over, ctx.look.primary: wanted}), None, None
        made = (ctx.hidden_gradient, ctx.gradients.weight, ctx.gradients.bias)
        like = (ctx.look.inputs.student_hidden, ctx.look.inputs.student.weight, ctx.look.inputs.student.bias)
        scaled = (None if one is None else (one * scale).to(own.dtype) for one, own in zip(made, like, strict=True))
        return *scaled, None, None


def _scaled_rows(gradient: Float[Tensor, "N H"], factors: Float[Tensor, " N"]) -> Float[Tensor, "N H"]:
    """Return each row times its factor, multiplied in the factors' precision, a few rows at a time."""
    scaled = torch.empty_like(gradient)
    for out, rows, factor in zip(scaled.split(4096), gradient.split(4096), factors.split(4096), strict=True):
        out.copy_(rows * factor.unsqueeze(-1))
    return scaled


def _ratio(upstream: Float[Tensor, " N"], weights: Float[Tensor, " N"]) -> Tensor | None:
    """Return the factor by which ``upstream`` differs from ``weights``, or None when it is not one factor."""
    if len(weights) == 0:
        return weights.new_ones(())
    at = weights.abs().argmax()
    factor = torch.where(weights[at] == 0, torch.zeros_like(weights[at]), upstream[at] / weights[at])
    error = (upstream - factor * weights).abs().max()
    within = error <= 16 * torch.finfo(weights.dtype).eps * upstream.abs().max()
    return factor if bool(within) else None


def _readable_gradients(look: Look, upstream: dict[str, Tensor | None]) -> tuple[Tensor | None, ...]:
    """Differentiate the readable path for any upstream gradient."""
    inputs = look.inputs

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().requires_grad_(tensor.requires_grad)

    hidden, weight, bias = (leaf(one) for one in (inputs.student_hidden, inputs.student.weight, inputs.student.bias))
    assert hidden is not None and weight is not None
    student = replace(inputs.student, weight=weight, bias=bias)
    fixed = replace(inputs, student_hidden=hidden, student=student, teacher=inputs.teacher)
    leaves = [one for one in (hidden, weight, bias) if one is not None and one.requires_grad]
    with torch.enable_grad():
        record = replace(look, inputs=fixed).readable()
        outputs = {name: getattr(record, name) for name, value in upstream.items() if value is not None}
        total = torch.stack([(value * upstream[name]).sum() for name, value in outputs.items()]).sum()
        made = dict(zip(map(id, leaves), torch.autograd.grad(total, leaves, allow_unused=True), strict=True))
    return tuple(None if one is None else made.get(id(one)) for one in (hidden, weight, bias))
