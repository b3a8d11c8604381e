"""What is wanted becomes requests; what comes back arrives unchanged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from selfdistill.rollouts.sampler import Sampling
from selfdistill.rollouts.server.faults import Backoff, shortened
from selfdistill.rollouts.server.requests import Work, request_body, split

PROMPT = (5, 6, 7)


def _asks(siblings, seeds, room, most):
    work, found = Work(0, tuple(siblings)), []
    while work is not None:
        ask, work = split(work, seeds, room, most)
        if ask is None:
            break
        found.append((ask.seed, ask.work.siblings))
    return found


def test_siblings_with_consecutive_seeds_are_one_request():
    assert _asks(range(4), [10, 11, 12, 13], 8, 8) == [(10, (0, 1, 2, 3))]


def test_other_seeds_are_requests_of_their_own():
    assert _asks(range(5), [10, 11, 3, 7, 8], 8, 8) == [(10, (0, 1)), (3, (2,)), (7, (3, 4))]


def test_what_is_missing_of_a_request_is_asked_for_with_its_own_seeds():
    assert _asks((0, 2, 3), [10, 11, 12, 13], 8, 8) == [(10, (0,)), (12, (2, 3))]


def test_a_request_never_asks_for_more_than_the_server_decodes_side_by_side():
    assert _asks(range(5), [0, 1, 2, 3, 4], 2, 2) == [(0, (0, 1)), (2, (2, 3)), (4, (4,))]


def test_small_groups_wait_for_room_and_large_ones_take_what_there_is():
    assert _asks(range(4), [0, 1, 2, 3], 3, 100) == []
    assert _asks(range(4), [0, 1, 2, 3], 3, 8)[0] == (0, (0, 1, 2))
    assert _asks(range(4), [0, 1, 2, 3], 0, 8) == []


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=12),
    st.integers(1, 8),
    st.integers(0, 8),
)
def test_whatever_the_seeds_every_sibling_is_asked_for_once_with_its_seed(seeds, most, room):
    room = min(room, most)
    found = _asks(range(len(seeds)), seeds, room, most)
    for first, siblings in found:
        assert len(siblings) <= most and len(siblings) <= room
        assert [seeds[sibling] for sibling in siblings] == list(range(first, first + len(siblings)))
    asked = [sibling for _, siblings in found for sibling in siblings]
    assert asked == list(range(len(asked)))
    if room == most:
        assert len(asked) == len(seeds)


def test_sampling_settings_are_sent_as_vllm_names_them():
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=20, max_new_tokens=9)
    body = request_body(PROMPT, 3, 4, sampling, (2, 9), logprobs=True, adapter="a")
    assert body["token_ids"] == [5, 6, 7] and body["model"] == "a" and body["stream"] is True
    params = body["sampling_params"]
    assert (params["n"], params["seed"], params["max_tokens"]) == (4, 3, 9)
    assert (params["temperature"], params["top_p"], params["top_k"], params["logprobs"]) == (0.7, 0.9, 20, 0)
    assert params["stop_token_ids"] == [2, 9] and params["ignore_eos"] and not params["detokenize"]


def test_what_is_not_wanted_is_not_asked_for():
    body = request_body(PROMPT, 3, 1, Sampling(temperature=0.0), (2,), logprobs=False, adapter=None)
    assert "model" not in body and "logprobs" not in body["sampling_params"]
    assert body["sampling_params"]["top_k"] == -1 and body["sampling_params"]["temperature"] == 0.0


def test_pauses_grow_to_a_bound_and_differ():
    backoff = Backoff(first=1.0, most=10.0)
    pauses = [backoff.seconds(failures) for failures in range(1, 50)]
    assert all(pause <= min(10.0, 2.0**index) for index, pause in enumerate(pauses))
    assert min(pauses[5:]) >= 5.0 and len(set(pauses)) == len(pauses)


def test_a_servers_words_become_one_short_line():
    assert shortened("a\nb\x1b[31m  c") == "a b [31m c"
    assert len(shortened("x" * 5000)) == 300
