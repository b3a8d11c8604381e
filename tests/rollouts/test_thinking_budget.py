"""The thinking budget: thinking that takes too long is closed, and the answer follows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfdistill.rollouts import Completion, Sampling
from selfdistill.rollouts.thinking import CLOSING, ThinkingBudget

SAMPLING = Sampling(max_new_tokens=60, thinking_budget=10, temperature=0.6, stop_token_ids=(5,))


class Scripted:
    """Answers the first request with the text of ``first`` by seed, cut at the limit, and every later one with "42"."""

    def __init__(self, chat, first: dict[int, str]) -> None:
        self.chat, self.first = chat, first
        self.requests = []

    def stream(self, prompts, seeds, sampling, *, logprobs=True, on_tokens=None):
        self.requests.append((prompts, seeds, sampling, logprobs))
        for index, own in reversed(list(enumerate(seeds))):
            for sibling, seed in enumerate(own):
                text = self.first.get(seed, "42")
                ids = (*self.chat.encode(text), self.chat.end_of_turn_ids[0])[: sampling.max_new_tokens]
                on_tokens(len(ids))
                reason = "stop" if ids[-1] == self.chat.end_of_turn_ids[0] else "length"
                yield (index, sibling), Completion(ids, (-1.0,) * len(ids) if logprobs else None, reason)


def draw(chat, first, *, sampling=SAMPLING, prompt="1+1=", seeds=None):
    sampler, counts = Scripted(chat, first), []
    ids = tuple(chat.encode(prompt)) if isinstance(prompt, str) else prompt
    found = ThinkingBudget(sampler, chat).sample(
        [ids], seeds or [sorted(first)], sampling, logprobs=False, on_tokens=counts.append
    )
    return found[0], sampler, sum(counts)


def text(chat, completion: Completion) -> str:
    return chat.decode(completion.ids)


def test_an_open_block_is_closed_and_the_answer_follows(tiny_chat):
    (done,), sampler, drawn = draw(tiny_chat, {7: "<think>aaaaaaaaaaaaaaaa"})
    assert text(tiny_chat, done) == "<think>aaa" + CLOSING + "42"
    assert (done.finish_reason, done.logprobs) == ("stop", None)
    assert drawn == 10 + 3  # what was inserted was not drawn
    (_, _, first, _), (prompts, _, second, _) = sampler.requests
    assert prompts == [(*tiny_chat.encode("1+1="), *tiny_chat.encode("<think>aaa"), *tiny_chat.encode(CLOSING))]
    assert first == replace(SAMPLING, thinking_budget=None, max_new_tokens=10)
    assert second == replace(first, max_new_tokens=60 - 10 - len(CLOSING))


def test_thinking_that_was_closed_in_time_just_goes_on(tiny_chat):
    sampling = replace(SAMPLING, thinking_budget=20)
    (done,), sampler, _ = draw(tiny_chat, {7: "<think>a</think>the answer is"}, sampling=sampling)
    assert text(tiny_chat, done) == "<think>a</think>the 42"
    assert sampler.requests[1][2].max_new_tokens == 40


def test_a_response_without_thinking_just_goes_on(tiny_chat):
    (done,), _, _ = draw(tiny_chat, {7: "the answer is what it is"})
    assert text(tiny_chat, done) == "the answer42"


def test_a_response_that_ended_in_time_is_left_alone(tiny_chat):
    (done,), sampler, _ = draw(tiny_chat, {7: "4"})
    assert text(tiny_chat, done) == "4" and len(sampler.requests) == 1


def test_a_block_that_the_template_opened_counts(tiny_chat):
    (done,), _, _ = draw(tiny_chat, {7: "aaaaaaaaaaaaaa"}, prompt="1+1=\n<think>\n")
    assert text(tiny_chat, done) == "a" * 10 + CLOSING + "42"


@pytest.mark.parametrize("prompt", ["1<think>1=", "<think>\n\n</think>\n\n"])
def test_a_tag_that_a_question_quotes_or_a_block_that_the_template_closed_does_not(tiny_chat, prompt):
    (done,), _, _ = draw(tiny_chat, {7: "aaaaaaaaaaaaaa"}, prompt=prompt)
    assert text(tiny_chat, done) == "a" * 10 + "42"


def test_nothing_gets_longer_than_the_limit(tiny_chat):
    for limit in range(11, 40):
        sampling = replace(SAMPLING, max_new_tokens=limit)
        (done,), _, _ = draw(tiny_chat, {7: "<think>aaaaaaaaaaaaaaaa"}, sampling=sampling)
        assert len(done.ids) <= limit
        assert (done.finish_reason == "stop") == (limit >= 10 + len(CLOSING) + 3)


def test_siblings_keep_their_places_and_have_seeds_of_their_own(tiny_chat):
    first = {seed: "<think>" + letter * 20 for seed, letter in zip(range(5, 9), "abcd", strict=True)} | {6: "4"}
    done, sampler, _ = draw(tiny_chat, first)
    assert [text(tiny_chat, one)[7:8] for one in done] == ["a", "", "c", "d"]
    (_, seeds, _, logprobs) = sampler.requests[1]
    flat = [seed for own in seeds for seed in own]
    assert len(set(flat) | set(first)) == 3 + 4 and not logprobs
    again = draw(tiny_chat, first)[1].requests[1][1]
    assert again == seeds


def test_only_so_much_is_kept_between_the_two_requests(tiny_chat, monkeypatch):
    monkeypatch.setattr("selfdistill.rollouts.thinking.HELD_TOKENS", 40)
    sampler = Scripted(tiny_chat, {})
    prompts = [tuple(tiny_chat.encode(str(one))) for one in range(5)]
    found = ThinkingBudget(sampler, tiny_chat).sample(
        prompts, [[2 * one, 2 * one + 1] for one in range(5)], SAMPLING, on_tokens=lambda count: None
    )
    assert [len(own) for own in found] == [2] * 5
    assert [len(request[0]) for request in sampler.requests] == [2, 2, 1]


@pytest.mark.parametrize("budget", [None, 60, 100])
def test_without_a_limit_that_acts_there_is_one_request(tiny_chat, budget):
    sampling = replace(SAMPLING, thinking_budget=budget)
    (done,), sampler, _ = draw(tiny_chat, {7: "<think>" + "a" * 100}, sampling=sampling)
    assert len(done.ids) == 60 and len(sampler.requests) == 1
    assert sampler.requests[0][2].thinking_budget is None
