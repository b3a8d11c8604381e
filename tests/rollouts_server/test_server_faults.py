"""Every fault ends in success, with nothing finished lost or asked for twice, or in one clear error in time."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from selfdistill.errors import RolloutError
from selfdistill.rollouts.sampler import Sampling

SAMPLING = Sampling(max_new_tokens=20)
PROMPTS = [(10 + index, 11, 12) for index in range(6)]
SEEDS = [[100 * index + sibling for sibling in range(4)] for index in range(6)]
IN_AN_ANSWER = [
    "truncate",
    "no choices",
    "garbage",
    "report",
    "long line",
    "types",
    "negative id",
    "index",
    "not finite",
]
AT_AN_END = ["abort", "no version", "empty", "no logprobs", "other token"]


@pytest.fixture
def expected(expected_response):
    return [[expected_response(prompt, seed, 20) for seed in own] for prompt, own in zip(PROMPTS, SEEDS, strict=True)]


def _asked_seeds(server):
    return Counter(
        body["sampling_params"]["seed"] + index
        for body in server.requests
        for index in range(body["sampling_params"]["n"])
    )


@pytest.mark.parametrize("fault", ["500", *IN_AN_ANSWER, *AT_AN_END])
def test_a_fault_that_passes_costs_no_response(server, make_engine, expected, fault):
    server.faults.extend([fault, "", fault])
    assert make_engine(server).sample(PROMPTS, SEEDS, SAMPLING) == expected


@pytest.mark.parametrize("fault", ["truncate", "garbage", "report"])
def test_finished_siblings_are_not_asked_for_again(server, make_engine, expected, fault):
    server.faults.append(fault)  # behind the first of four siblings
    assert make_engine(server).sample(PROMPTS[:1], SEEDS[:1], SAMPLING) == expected[:1]
    asked = [(body["sampling_params"]["seed"], body["sampling_params"]["n"]) for body in server.requests]
    assert asked == [(0, 4), (1, 3)]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("500", "answers 500: EngineCore died"),
        ("truncate", "broke"),
        ("no choices", "broke off"),
        ("garbage", "no JSON"),
        ("report", "engine dead"),
        ("types", "token_ids"),
        ("index", "index 99"),
        ("not finite", "-9999.0"),
        ("abort", "'abort'"),
        ("empty", "without a token"),
        ("no version", "weight_versions"),
    ],
)
def test_a_fault_that_stays_is_one_clear_error(server, make_engine, fault, words):
    engine = make_engine(server, retries=2)
    server.every = fault
    with pytest.raises(RolloutError) as failure:
        engine.sample(PROMPTS, [own[:2] for own in SEEDS], SAMPLING)
    message = str(failure.value)
    assert server.url in message and words in message and "after 3 attempts" in message and "\n" not in message
    assert "of 12 responses were finished" in message and "selfdistill serve RECIPE" in message


def test_what_finished_before_the_error_is_handed_over(server, make_engine, expected):
    server.every = None
    engine = make_engine(server, retries=0)
    server.faults.append("report")
    stream, found = engine.stream(PROMPTS[:1], SEEDS[:1], SAMPLING), []
    with pytest.raises(RolloutError, match="1 of 4 responses were finished"):
        found.extend(iter(stream))
    stream, found = engine.stream(PROMPTS[:1], SEEDS[:1], SAMPLING), []
    server.faults.append("report")
    with pytest.raises(RolloutError):
        for item in stream:
            found.append(item)
    assert found == [((0, 0), expected[0][0])]


def test_what_the_server_refuses_is_not_tried_again(server, make_engine):
    server.faults.append("400")
    with pytest.raises(RolloutError, match="answers 400: this model's context is short"):
        make_engine(server).sample(PROMPTS[:1], SEEDS[:1], SAMPLING)
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["hang", "hang within"])
def test_a_server_that_falls_silent_is_asked_again(server, make_engine, expected, fault):
    server.faults.append(fault)
    engine = make_engine(server, silent_seconds=0.4)
    assert engine.sample(PROMPTS[:1], SEEDS[:1], SAMPLING) == expected[:1]
    assert len(server.requests) >= 2


@pytest.mark.parametrize(("fault", "words"), [("hang", "sent nothing"), ("hang within", "sent nothing")])
def test_silence_that_stays_is_an_error_within_its_limit(server, make_engine, fault, words):
    engine = make_engine(server, silent_seconds=0.2, retries=1)
    server.every, started = fault, time.monotonic()
    with pytest.raises(RolloutError, match=rf"{words} for 0\.2 s"):
        engine.sample(PROMPTS[:2], SEEDS[:2], SAMPLING)
    assert time.monotonic() - started < 4


def test_a_server_is_not_silent_while_any_of_its_streams_brings_something(server, make_engine, expected):
    server.hold_after = 0
    server.faults.append("slow")
    engine = make_engine(server, silent_seconds=0.4)
    threading.Timer(0.9, server.release).start()
    assert engine.sample(PROMPTS[:2], [own[:1] for own in SEEDS[:2]], SAMPLING) == [own[:1] for own in expected[:2]]
    assert len(server.requests) == 2


def test_a_request_that_takes_too_long_is_an_error_within_its_limit(server, make_engine):
    engine = make_engine(server, request_seconds=0.2, retries=1)
    server.every, started = "slow", time.monotonic()
    with pytest.raises(RolloutError, match=r"not done within 0\.2 s"):
        engine.sample(PROMPTS[:1], SEEDS[:1], SAMPLING)
    assert time.monotonic() - started < 4


def test_a_server_that_dies_in_the_middle_is_waited_for_and_given_the_weights_again(
    server, make_engine, fake_sync, expected
):
    sync = fake_sync()
    engine = make_engine(server, sync=sync)
    server.faults.append("die")
    stream = engine.stream(PROMPTS, SEEDS, SAMPLING)
    found = [next(stream)]
    threading.Timer(0.3, server.restart).start()
    found += list(stream)
    assert len(found) == 24 and dict(found) == {
        (prompt, sibling): completion for prompt, own in enumerate(expected) for sibling, completion in enumerate(own)
    }
    assert len(sync.pushes) == 2 and server.version == "v1"


def test_the_other_server_takes_over_while_one_is_gone(start_server, make_engine, expected):
    dying, living = start_server(), start_server()
    dying.side_by_side = living.side_by_side = 4
    engine = make_engine(dying, living, recovery_seconds=0.1)
    dying.faults.append("die")
    assert engine.sample(PROMPTS, SEEDS, SAMPLING) == expected
    assert {tuple(body["token_ids"]) for body in living.requests} >= set(PROMPTS[1:])


def test_a_server_that_was_gone_at_a_sync_is_given_the_weights_when_it_is_back(
    start_server, make_engine, fake_sync, expected
):
    gone, living = start_server(), start_server()
    living.side_by_side = 4
    sync = fake_sync()
    engine = make_engine(gone, living, sync=sync)
    gone.stop()
    assert engine.sync("v2").version == "v2"
    gone.adapters.clear()
    gone.version = "default"
    gone.start()
    living.hold_after = 0
    gone.on_request = lambda body: living.release()
    assert engine.sample(PROMPTS, SEEDS, SAMPLING) == expected
    assert gone.version == "v2" and gone.adapters == {"v2"}


def test_no_server_is_waited_for_only_so_long(server, make_engine):
    engine = make_engine(server, recovery_seconds=0.3)
    server.stop()
    started = time.monotonic()
    with pytest.raises(RolloutError, match=r"no connection.*no server has answered for 0\.3 s; 0 of 24 responses"):
        engine.sample(PROMPTS, SEEDS, SAMPLING)
    assert time.monotonic() - started < 3


def test_no_server_at_the_start_is_an_error_that_names_it(server, make_engine):
    server.stop()
    with pytest.raises(RolloutError, match=rf"{server.url}.*no connection.*selfdistill serve RECIPE"):
        make_engine(server, recovery_seconds=0.2)


def test_a_server_that_comes_late_is_waited_for(server, make_engine, expected):
    server.stop()
    threading.Timer(0.2, server.start).start()
    assert make_engine(server).sample(PROMPTS, SEEDS, SAMPLING) == expected


@pytest.mark.parametrize("adapters", [True, False])
def test_a_restart_with_old_weights_is_seen_and_none_of_its_responses_is_kept(
    server, make_engine, fake_sync, expected, adapters
):
    sync = fake_sync(adapters)
    engine = make_engine(server, sync=sync)
    server.restart()
    assert engine.sample(PROMPTS, SEEDS, SAMPLING) == expected
    assert sync.pushes == [server.url] * 2
    assert server.version == "v1"


def test_a_response_from_other_weights_is_drawn_again(server, make_engine, fake_sync, expected):
    server.faults.append("other weights")
    sync = fake_sync(adapters=False)
    engine = make_engine(server, sync=sync)
    assert engine.sample(PROMPTS[:1], SEEDS[:1], SAMPLING) == expected[:1]
    assert _asked_seeds(server) == {0: 1, 1: 1, 2: 1, 3: 2}
    assert len(sync.pushes) == 2


def test_a_server_that_always_loses_the_weights_is_given_up(server, make_engine, fake_sync):
    sync = fake_sync(adapters=False)
    engine = make_engine(server, sync=sync, retries=2)
    server.every = "other weights"
    with pytest.raises(RolloutError, match=r"drawn from the weights 'default'|lost them each time"):
        engine.sample(PROMPTS, SEEDS, SAMPLING)
    assert len(sync.pushes) <= 5


def test_a_server_that_does_not_prove_its_weights_after_a_restart_is_an_error(server, make_engine, fake_sync):
    class Refused(fake_sync):
        def push(self, control):
            if self.pushes:
                raise RolloutError("its log-probabilities differ by 3 nats")
            return super().push(control)

    engine = make_engine(server, sync=Refused())
    server.restart()
    with pytest.raises(RolloutError, match=r"differ by 3 nats.*0 of 24 responses were finished"):
        engine.sample(PROMPTS, SEEDS, SAMPLING)


def test_a_server_that_hangs_as_a_whole_is_left_to_the_others(start_server, make_engine, expected):
    hung, living = start_server(), start_server()
    hung.side_by_side = living.side_by_side = 4
    engine = make_engine(hung, living, silent_seconds=0.2)
    hung.every = "hang"
    hung.broken_calls["/health"] = "hang"
    started = time.monotonic()
    assert engine.sample(PROMPTS, SEEDS, SAMPLING) == expected
    assert time.monotonic() - started < 4


def test_the_next_stream_works_after_one_that_failed(server, make_engine, expected):
    engine = make_engine(server, retries=0)
    server.faults.append("500")
    with pytest.raises(RolloutError):
        engine.sample(PROMPTS[:1], SEEDS[:1], SAMPLING)
    assert engine.sample(PROMPTS, SEEDS, SAMPLING) == expected


def test_a_consumer_can_stop_while_no_server_is_there(server, make_engine):
    engine = make_engine(server, recovery_seconds=60)
    server.stop()
    counts = []

    def stop(tokens):
        counts.append(tokens)
        if len(counts) == 2:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        engine.sample(PROMPTS, SEEDS, SAMPLING, on_tokens=stop)
    assert counts == [0, 0] and time.monotonic() - started < 3


def test_closing_while_no_server_is_there_does_not_wait_for_one(server, make_engine):
    engine = make_engine(server, recovery_seconds=60)
    server.faults.append("die")
    stream = engine.stream(PROMPTS[:1], SEEDS[:1], SAMPLING)
    next(stream)
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 3
