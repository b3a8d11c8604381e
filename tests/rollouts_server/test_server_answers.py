"""The lines of an answer become completions, and nothing in them is believed unchecked."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.rollouts.sampler import Completion
from selfdistill.rollouts.server import answers
from selfdistill.rollouts.server.answers import Answer, Expected, Lines
from selfdistill.rollouts.server.faults import Fault, Passing, StaleServer

SPANS = [{"version": "v1", "start": 0, "end": 3}]


def _expected(**changes):
    return Expected(
        **{
            "responses": 2,
            "new_tokens": 3,
            "ends": frozenset({2}),
            "logprobs": True,
            "versions": ("v1",),
            **changes,
        }
    )


def _line(ids, reason=None, index=0, **changes):
    content = [{"token_id": token, "logprob": -0.5} for token in ids]
    choice = {"index": index, "token_ids": ids, "logprobs": {"content": content}, "finish_reason": reason}
    choice |= {"weight_versions": SPANS if reason else None} | changes
    return b"data: " + json.dumps({"choices": [choice]}).encode()


def test_parts_of_a_response_are_put_together():
    answer = Answer(_expected())
    assert answer.add(_line([5])) == (1, [])
    assert answer.add(_line([7, 2], "stop", 1)) == (2, [(1, Completion((7, 2), (-0.5, -0.5), "stop"))])
    assert answer.add(b"") == answer.add(b": comment") == (0, [])
    assert answer.add(_line([6, 8], "length")) == (2, [(0, Completion((5, 6, 8), (-0.5,) * 3, "length"))])
    assert answer.complete and not answer.ended
    assert answer.add(b"data: [DONE]") == (0, []) and answer.ended


def test_an_end_may_come_without_tokens():
    answer = Answer(_expected(responses=1))
    answer.add(_line([5, 2]))
    assert answer.add(_line([], "stop", logprobs=None))[1] == [(0, Completion((5, 2), (-0.5, -0.5), "stop"))]


def test_log_probabilities_that_were_not_wanted_are_left_out():
    answer = Answer(_expected(logprobs=False))
    assert answer.add(_line([2], "stop"))[1] == [(0, Completion((2,), None, "stop"))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"data: {", "no JSON"),
        (b"data: [1]", "no JSON object"),
        (b"data: " + b"[" * 100_000, "no JSON"),
        (b'data: {"choices": 3}', "choices is no list"),
        (b'data: {"choices": [3]}', "a choice is no JSON object"),
        (_line([5], index=2), "index 2"),
        (_line([5], index=True), "index True"),
        (_line([5.0]), "token_ids"),
        (_line([True]), "token_ids"),
        (_line([2**31]), "token_ids"),
        (_line([5], token_ids="5"), "token_ids"),
        (_line([5], logprobs=None), "no log-probability"),
        (_line([5], logprobs={"content": [{"token_id": 5, "logprob": None}]}), "no log-probability of token 5"),
        (_line([5], logprobs={"content": [{"token_id": 6, "logprob": -1.0}]}), "no log-probability of token 5"),
        (_line([5], logprobs={"content": [{"token_id": 5, "logprob": float("nan")}]}), "not finite"),
        (_line([5], logprobs={"content": [{"token_id": 5, "logprob": 0.5}]}), "not finite"),
        (_line([5, 6, 7, 8]), "more than max_tokens 3"),
        (_line([5], "length"), "cut after 1 of 3"),
        (_line([5], "stop"), "the last id is 5"),
        (_line([5, 6, 2], "length"), "the last id is 2"),
        (_line([2, 5, 2], "stop"), "goes on behind an end-of-turn id"),
        (_line([5, 6, 7], "error"), "'error'"),
        (_line([2], "stop", weight_versions=None), "weight_versions"),
        (b'data: {"error": {"message": "dead", "code": 500}}', "dead"),
    ],
)
def test_nonsense_is_a_fault_that_names_it(line, words):
    with pytest.raises(Passing, match=words):
        Answer(_expected()).add(line)


@pytest.mark.parametrize("spans", [[{"version": "v0"}], [SPANS[0], {"version": "v2"}], [3]])
def test_a_response_from_other_weights_is_stale(spans):
    with pytest.raises(StaleServer):
        Answer(_expected()).add(_line([2], "stop", weight_versions=spans))


def test_a_response_does_not_go_on_after_its_end():
    answer = Answer(_expected())
    answer.add(_line([2], "stop"))
    with pytest.raises(Passing, match="goes on after its end"):
        answer.add(_line([5]))


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.integers() | st.floats(), st.lists).map(repr))
def test_whatever_arrives_is_an_answer_or_a_fault(data):
    data = data if isinstance(data, bytes) else data.encode()
    for line in (data, b"data: " + data, b'data: {"choices": [' + data + b"]}"):
        try:
            Answer(_expected()).add(line)
        except Fault:
            pass


@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=5))
def test_lines_do_not_depend_on_how_the_bytes_arrive(data, cuts):
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    lines = Lines()
    found = [line for start, end in itertools.pairwise(edges) for line in lines.feed(data[start:end])]
    assert found == [line.rstrip(b"\r") for line in data.split(b"\n")[:-1]]


def test_a_line_without_an_end_is_not_collected_forever(monkeypatch):
    monkeypatch.setattr(answers, "LINE_BYTES", 100)
    lines = Lines()
    lines.feed(b"x" * 100)
    with pytest.raises(Passing, match="more than 100 bytes"):
        lines.feed(b"x")
