"""The kernels of a head pass in Triton: each reads every logit of a tile once, or writes it once.

In: logits [n, V] (float32, or float64) in rows of any stride, and per-row numbers. Out: per-row numbers, or a matrix.
:mod:`selfdistill.objectives.triton_tiles` launches them; the formulas are those of
:mod:`selfdistill.objectives.tiles` and :mod:`selfdistill.objectives.divergence`, on the full support.

One program makes one row. It walks over the vocabulary in blocks of ``UNROLL`` x ``THREADS`` x ``WIDTH`` logits, of
which a thread reads ``WIDTH`` neighbours at a time, ``UNROLL`` times; what is left at the end of a row it reads once at
a time, under a mask. It adds up its own logits in registers, and only at the end do threads exchange anything: a sum
has ``THREADS`` parts of V / ``THREADS`` terms, which is quick and keeps digits. There are no atomics, so results repeat
bit by bit. All arithmetic is in the dtype of the logits.

Numbers that a run does not change (the factor in front of the logits, beta, the clip) are compiled in: a scalar
argument would be rounded to float32, also for float64 logits. For the same reason such a number never stands alone in
a ``tl.where``, only in arithmetic with a tensor, whose dtype it then takes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from selfdistill.objectives import divergence

# A thread reads 4 floats (16 bytes, the widest load) at a time, and starts the 4 loads of a block, on both sides if
# there are two, before it uses the first: 64 or 128 bytes in flight. With 64 registers per thread, which float32 needs
# without spilling, a Hopper multiprocessor runs 4 programs of 8 warps: 64 KiB or more in flight, about twice what hides
# the latency of its memory. More loads per block would need more registers, fewer would put less in flight.
WARPS = 8
REGISTERS = 64
WIDTH = tl.constexpr(4)
THREADS = tl.constexpr(32 * WARPS)
UNROLL = tl.constexpr(4)
LINE = tl.constexpr(32 * WARPS * 4)
BLOCK = tl.constexpr(32 * WARPS * 4 * 4)

LOG_FLOOR = tl.constexpr(divergence.LOG_FLOOR)
NEGATIVE_INFINITY = tl.constexpr(float("-inf"))
NO_ID = tl.constexpr(2**31 - 1)


@triton.jit  # type: ignore[untyped-decorator]
def _block_ids(start, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the ids of a block, [UNROLL, THREADS, WIDTH], or of the single line of a masked one."""
    if MASKED:
        lines = tl.arange(0, 1)
    else:
        lines = tl.arange(0, UNROLL)
    threads = tl.arange(0, THREADS) * WIDTH
    return start + lines[:, None, None] * LINE + threads[None, :, None] + tl.arange(0, WIDTH)[None, None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _load(row, ids, vocabulary, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return logits; a forbidden one (-inf) past the end."""
    if MASKED:
        return tl.load(row + ids, mask=ids < vocabulary, other=NEGATIVE_INFINITY)
    else:
        return tl.load(row + ids)


@triton.jit
def _per_thread(block):  # type: ignore[no-untyped-def]
    """Return the sum of each thread's own entries of a block, [THREADS]."""
    return tl.sum(tl.sum(block, axis=2), axis=0)


@triton.jit
def _finite(peak):  # type: ignore[no-untyped-def]
    """Return what can be subtracted: where there are forbidden ids alone, there is no peak."""
    return tl.where(peak == NEGATIVE_INFINITY, 0.0, peak)


@triton.jit  # type: ignore[untyped-decorator]
def _log_probability(logits, log_normaliser, FACTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the floored log-probability and whether it was floored; NaN stays NaN, which a maximum would lose."""
    exact = logits * FACTOR - log_normaliser
    floored = exact < LOG_FLOOR
    return tl.where(floored, LOG_FLOOR, exact), floored


@triton.jit  # type: ignore[untyped-decorator]
def _log_mixtures(log_ratio, BETA: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return log(M / p_S) and log(M / p_T) from log(p_T / p_S), whatever its size.

    The exponential is that of the negative of its size, so it cannot overflow, and what the logarithm sees is 1 minus
    at most beta (or 1 - beta) of it, which keeps the digits that a difference of log M and log p would round away.
    """
    rising = log_ratio > 0
    decay = tl.exp(-tl.abs(log_ratio)) - 1.0
    below = tl.log(1.0 + tl.where(rising, (1.0 - BETA) * decay, BETA * decay))
    return tl.where(rising, below + log_ratio, below), tl.where(rising, below, below - log_ratio)


@triton.jit  # type: ignore[untyped-decorator]
def _summand(log_s, log_t, floored, p_s, p_t, DIVERGENCE: tl.constexpr, BETA: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return f_v and c_v before any clip."""
    if DIVERGENCE == "forward_kl":
        summand = p_t * (log_t - log_s)
        coefficient = tl.where(floored, 0.0, -p_t)  # a floored log p_S is a constant
    elif DIVERGENCE == "reverse_kl":
        summand = p_s * (log_s - log_t)
        coefficient = summand + p_s
    else:
        to_student, to_teacher = _log_mixtures(log_t - log_s, BETA)
        coefficient = (BETA - 1.0) * p_s * to_student
        summand = coefficient - BETA * p_t * to_teacher
    return summand, coefficient


@triton.jit  # type: ignore[untyped-decorator]
def _extend_statistics(  # type: ignore[no-untyped-def]
    row, start, vocabulary, peak, total, first, FACTOR: tl.constexpr, MASKED: tl.constexpr
):
    """Take one more block into each thread's largest logit, sum of exponentials relative to it, and its first id."""
    ids = _block_ids(start, MASKED)
    logits = _load(row, ids, vocabulary, MASKED)
    block_peak = tl.max(tl.max(logits, axis=2), axis=0)
    at_peak = logits == block_peak[None, :, None]
    block_first = tl.min(tl.min(tl.where(at_peak, ids, NO_ID), axis=2), axis=0)
    first = tl.where(block_peak > peak, block_first, first)
    highest = tl.maximum(peak, block_peak)
    base = _finite(highest)
    total *= tl.exp((peak - base) * FACTOR)
    total += _per_thread(tl.exp((logits - base[None, :, None]) * FACTOR))
    return highest, total, first


@triton.jit  # type: ignore[untyped-decorator]
def row_statistics(logits, log_normaliser, argmax, stride, vocabulary, FACTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write log sum exp(FACTOR * logits) and the arg-max of each row; ties go to the lowest id. FACTOR is positive."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    dtype = logits.dtype.element_ty
    peak = tl.full([THREADS], NEGATIVE_INFINITY, dtype)
    total = tl.zeros([THREADS], dtype)
    first = tl.arange(0, THREADS) * WIDTH
    whole = vocabulary // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        peak, total, first = _extend_statistics(logits, start, vocabulary, peak, total, first, FACTOR, False)
    for start in range(whole, vocabulary, LINE):
        peak, total, first = _extend_statistics(logits, start, vocabulary, peak, total, first, FACTOR, True)
    highest = tl.max(peak, axis=0)
    base = _finite(highest)
    total = tl.sum(total * tl.exp((peak - base) * FACTOR), axis=0)
    tl.store(log_normaliser + row, base * FACTOR + tl.log(total))
    tl.store(argmax + row, tl.min(tl.where(peak == highest, first, NO_ID), axis=0).to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def _extend_entropy(row, start, vocabulary, normaliser, total, FACTOR: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Take one more block into each thread's sum of p log p."""
    logits = _load(row, _block_ids(start, MASKED), vocabulary, MASKED)
    log_p, _ = _log_probability(logits, normaliser, FACTOR)
    return total + _per_thread(tl.exp(log_p) * log_p)


@triton.jit  # type: ignore[untyped-decorator]
def row_entropy(logits, log_normaliser, entropy, stride, vocabulary, FACTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the entropy of each row, in nats."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    normaliser = tl.load(log_normaliser + row)
    total = tl.zeros([THREADS], logits.dtype.element_ty)
    whole = vocabulary // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        total = _extend_entropy(logits, start, vocabulary, normaliser, total, FACTOR, False)
    for start in range(whole, vocabulary, LINE):
        total = _extend_entropy(logits, start, vocabulary, normaliser, total, FACTOR, True)
    tl.store(entropy + row, -tl.sum(total, axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _extend_comparison(  # type: ignore[no-untyped-def]
    student, teacher, start, vocabulary, normaliser_s, normaliser_t, entropy_s, entropy_t, total, coefficients, cut,
    FACTOR: tl.constexpr, DIVERGENCE: tl.constexpr, BETA: tl.constexpr, CLIP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take one more block into each thread's sums: p log p of both sides, f, c, and the number of clipped f."""
    ids = _block_ids(start, MASKED)
    log_s, floored = _log_probability(_load(student, ids, vocabulary, MASKED), normaliser_s, FACTOR)
    log_t, _ = _log_probability(_load(teacher, ids, vocabulary, MASKED), normaliser_t, FACTOR)
    p_s = tl.exp(log_s)
    p_t = tl.exp(log_t)
    summand, coefficient = _summand(log_s, log_t, floored, p_s, p_t, DIVERGENCE, BETA)
    if CLIP is not None:
        clipped = summand > CLIP
        cut += _per_thread(clipped.to(tl.int32))
        summand = tl.where(clipped, tl.full(summand.shape, CLIP, summand.dtype), summand)
        coefficient = tl.where(clipped, 0.0, coefficient)
    # p_S - p_T adds up to 0, exactly in theory. In a KL it cancels what rounding the two normalisers adds, which may
    # be as large as 1e-6 nats each and would drown the divergence of a student from a teacher near it.
    if DIVERGENCE == "forward_kl":
        summand += p_s - p_t
    elif DIVERGENCE == "reverse_kl":
        summand += p_t - p_s
    entropy_s += _per_thread(p_s * log_s)
    entropy_t += _per_thread(p_t * log_t)
    return entropy_s, entropy_t, total + _per_thread(summand), coefficients + _per_thread(coefficient), cut


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def compare_rows(  # type: ignore[no-untyped-def]
    student, teacher, normaliser_s, normaliser_t, sums, stride_s, stride_t, rows, vocabulary,
    FACTOR: tl.constexpr, DIVERGENCE: tl.constexpr, BETA: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """Write ``sums`` [5, rows]: H_S, H_T, sum of f, sum of c, share of the f that were clipped."""
    row = tl.program_id(0).to(tl.int64)
    student += row * stride_s
    teacher += row * stride_t
    n_s = tl.load(normaliser_s + row)
    n_t = tl.load(normaliser_t + row)
    dtype = student.dtype.element_ty
    h_s = tl.zeros([THREADS], dtype)
    h_t = tl.zeros([THREADS], dtype)
    total = tl.zeros([THREADS], dtype)
    coefficients = tl.zeros([THREADS], dtype)
    cut = tl.zeros([THREADS], tl.int32)
    whole = vocabulary // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        h_s, h_t, total, coefficients, cut = _extend_comparison(
            student, teacher, start, vocabulary, n_s, n_t, h_s, h_t, total, coefficients, cut,
            FACTOR, DIVERGENCE, BETA, CLIP, False,
        )  # fmt: skip
    for start in range(whole, vocabulary, LINE):
        h_s, h_t, total, coefficients, cut = _extend_comparison(
            student, teacher, start, vocabulary, n_s, n_t, h_s, h_t, total, coefficients, cut,
            FACTOR, DIVERGENCE, BETA, CLIP, True,
        )  # fmt: skip
    sums += row
    tl.store(sums, -tl.sum(h_s, axis=0))
    tl.store(sums + rows, -tl.sum(h_t, axis=0))
    tl.store(sums + 2 * rows, tl.sum(total, axis=0))
    tl.store(sums + 3 * rows, tl.sum(coefficients, axis=0))
    tl.store(sums + 4 * rows, tl.sum(cut, axis=0).to(dtype) / vocabulary)


@triton.jit  # type: ignore[untyped-decorator]
def _differentiate_block(  # type: ignore[no-untyped-def]
    student, teacher, gradient, start, vocabulary, normaliser_s, normaliser_t, scale, coefficient_scale,
    FACTOR: tl.constexpr, DIVERGENCE: tl.constexpr, BETA: tl.constexpr, CLIP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write one block of the gradient."""
    ids = _block_ids(start, MASKED)
    log_s, floored = _log_probability(_load(student, ids, vocabulary, MASKED), normaliser_s, FACTOR)
    p_s = tl.exp(log_s)
    result = scale * p_s
    if teacher is not None:
        log_t, _ = _log_probability(_load(teacher, ids, vocabulary, MASKED), normaliser_t, FACTOR)
        summand, coefficient = _summand(log_s, log_t, floored, p_s, tl.exp(log_t), DIVERGENCE, BETA)
        if CLIP is not None:
            coefficient = tl.where(summand > CLIP, 0.0, coefficient)
        result += coefficient_scale * coefficient
    result = result.to(gradient.dtype.element_ty)
    if MASKED:
        tl.store(gradient + ids, result, mask=ids < vocabulary)
    else:
        tl.store(gradient + ids, result)


@triton.jit  # type: ignore[untyped-decorator]
def differentiate_rows(  # type: ignore[no-untyped-def]
    student, teacher, gradient, normaliser_s, normaliser_t, scale, coefficient_scale, stride_s, stride_t, stride_g,
    vocabulary, FACTOR: tl.constexpr, DIVERGENCE: tl.constexpr, BETA: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """Write scale * p_S + coefficient_scale * c in the dtype of ``gradient``, computed in the dtype of the logits.

    ``teacher`` may be None, and with it its normaliser and ``coefficient_scale``.
    """
    row = tl.program_id(0).to(tl.int64)
    student += row * stride_s
    gradient += row * stride_g
    n_s = tl.load(normaliser_s + row)
    a = tl.load(scale + row)
    n_t = None
    b = None
    if teacher is not None:
        teacher += row * stride_t
        n_t = tl.load(normaliser_t + row)
        b = tl.load(coefficient_scale + row)
    whole = vocabulary // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        _differentiate_block(
            student, teacher, gradient, start, vocabulary, n_s, n_t, a, b, FACTOR, DIVERGENCE, BETA, CLIP, False
        )
    for start in range(whole, vocabulary, LINE):
        _differentiate_block(
            student, teacher, gradient, start, vocabulary, n_s, n_t, a, b, FACTOR, DIVERGENCE, BETA, CLIP, True
        )


@triton.jit  # type: ignore[untyped-decorator]
def _finish_block(  # type: ignore[no-untyped-def]
    row, bias, start, vocabulary, BIAS_SCALE: tl.constexpr, CAP: tl.constexpr, SHARE: tl.constexpr, MASKED: tl.constexpr
):
    """Finish one block of logits."""
    ids = _block_ids(start, MASKED)
    z = _load(row, ids, vocabulary, MASKED)
    if bias is not None:
        z += BIAS_SCALE * _load(bias, ids, vocabulary, MASKED).to(z.dtype)
    if CAP is not None:
        # tanh by one exponential that cannot overflow; its error is the last digit of 1, of the logits that of CAP.
        decay = tl.exp(tl.abs(z) * (-2.0 / CAP))
        size = (SHARE * CAP) * ((1.0 - decay) / (1.0 + decay))
        z = tl.where(z < 0, -size, size)
    if MASKED:
        tl.store(row + ids, z, mask=ids < vocabulary)
    else:
        tl.store(row + ids, z)


@triton.jit  # type: ignore[untyped-decorator]
def finish_logits(  # type: ignore[no-untyped-def]
    logits, bias, stride, vocabulary, BIAS_SCALE: tl.constexpr, CAP: tl.constexpr, SHARE: tl.constexpr
):
    """Add BIAS_SCALE * bias to a head's products, then make SHARE * CAP * tanh(. / CAP) of them, in place.

    ``bias`` or ``CAP`` may be None; ``SHARE`` belongs to the cap.
    """
    logits += tl.program_id(0).to(tl.int64) * stride
    whole = vocabulary // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        _finish_block(logits, bias, start, vocabulary, BIAS_SCALE, CAP, SHARE, False)
    for start in range(whole, vocabulary, LINE):
        _finish_block(logits, bias, start, vocabulary, BIAS_SCALE, CAP, SHARE, True)
