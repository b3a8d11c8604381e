from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.rollouts import choice
from selfdistill.rollouts.choice import UniformStreams, choose
from selfdistill.rollouts.sampler import Sampling

LOGITS = torch.tensor([2.0, -1.0, 0.5, 0.2, -torch.inf, 1.0])


def expected(sampling: Sampling) -> np.ndarray:
    """The distribution, written down naively: temperature, top-k, renormalise, top-p, renormalise."""
    p = torch.softmax(LOGITS.double() / sampling.temperature, -1).numpy()
    order = np.argsort(-p, kind="stable")
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
        p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= sampling.top_p]] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=1),
        Sampling(temperature=0.6, max_new_tokens=1),
        Sampling(temperature=1.7, top_k=2, max_new_tokens=1),
        Sampling(top_p=0.7, max_new_tokens=1),
        Sampling(temperature=1.3, top_k=4, top_p=0.8, max_new_tokens=1),
        Sampling(top_k=100, top_p=0.9, max_new_tokens=1),
    ],
    ids=str,
)
def test_choices_follow_the_softmax_at_the_temperature_within_top_k_and_top_p(sampling):
    draws = 20_000
    uniforms = UniformStreams(list(range(draws))).next(torch.device("cpu"))
    ids, logprobs = choose(LOGITS.expand(draws, -1), uniforms, sampling)
    observed = np.bincount(ids.numpy(), minlength=len(LOGITS))
    p = expected(sampling)
    assert observed[p == 0].sum() == 0
    chi_square = ((observed - draws * p)[p > 0] ** 2 / (draws * p[p > 0])).sum()
    assert chi_square < 25  # at most 4 degrees of freedom: probability below 1e-4
    full = torch.log_softmax(LOGITS / sampling.temperature, -1)
    torch.testing.assert_close(logprobs, full[ids])  # before top-k and top-p


def test_temperature_zero_takes_the_most_probable_token():
    uniforms = torch.tensor([0.999], dtype=torch.float64)
    ids, logprobs = choose(LOGITS[None], uniforms, Sampling(temperature=0, max_new_tokens=1))
    assert ids.tolist() == [0]
    torch.testing.assert_close(logprobs, torch.log_softmax(LOGITS, -1)[:1])


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.sampled_from([-torch.inf, -200.0, -50.0, -3.0, 0.0, 0.0, 1.0, 30.0]), min_size=1, max_size=12),
    uniform=st.sampled_from([0.0, 1e-300, 0.5, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 15),
)
def test_a_token_of_probability_zero_is_never_chosen(logits, uniform, top_p, top_k):
    row = torch.tensor([*logits, 0.0])
    sampling = Sampling(top_p=top_p, top_k=top_k, max_new_tokens=1)
    ids, logprobs = choose(row[None], torch.tensor([uniform], dtype=torch.float64), sampling)
    assert torch.softmax(row, -1)[ids] > 0
    assert torch.isfinite(logprobs).all()
    if top_k:
        assert (row > row[ids]).sum() < top_k


def test_top_p_is_the_same_whether_the_preview_of_the_vocabulary_suffices_or_not(monkeypatch):
    logits = torch.randn(40, 200, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sampling = Sampling(top_p=0.8, max_new_tokens=1)
    ids, _ = choose(logits, uniforms, sampling)
    monkeypatch.setattr(choice, "_PREVIEW", 5)
    shorter, _ = choose(logits, uniforms, sampling)
    assert torch.equal(ids, shorter)


def test_tokens_that_tie_with_the_last_one_kept_are_kept():
    uniforms = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    for sampling in (Sampling(top_k=2, max_new_tokens=1), Sampling(top_p=0.3, max_new_tokens=1)):
        ids, _ = choose(torch.zeros(50, 4), uniforms, sampling)
        assert set(ids.tolist()) == {0, 1, 2, 3}


def test_a_row_that_is_not_a_number_has_a_log_probability_that_says_so():
    rows = torch.tensor([[0.0, torch.nan], [0.0, 0.0]])
    uniforms = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for sampling in (Sampling(max_new_tokens=1), Sampling(top_k=1, top_p=0.5, max_new_tokens=1)):
        _, logprobs = choose(rows, uniforms, sampling)
        assert torch.isnan(logprobs).tolist() == [True, False]


def test_streams_differ_in_seeds_that_agree_in_their_low_32_bits():
    streams = UniformStreams([5, 5 + 2**32, 5])
    first, second, again = torch.stack([streams.next(torch.device("cpu")) for _ in range(100)], dim=1)
    assert torch.equal(first, again)
    assert not torch.isclose(first, second).any()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", -1), ("top_p", 0), ("top_p", 1.1), ("top_k", -1), ("max_new_tokens", 0), ("topp", 1)],
)
def test_sampling_settings_out_of_range_or_unknown_are_refused(setting, value):
    with pytest.raises(ValueError, match=setting):
        Sampling(**{"max_new_tokens": 4, setting: value})
