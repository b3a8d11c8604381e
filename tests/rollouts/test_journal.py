"""The journal: no finished response is drawn a second time."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from selfdistill.errors import RolloutError, TrainingError
from selfdistill.rollouts import Completion, Sampling
from selfdistill.rollouts.journal import FLUSH_SECONDS, Journaled, Journals
from selfdistill.rollouts.sampler import Sampler

SAMPLING = Sampling(max_new_tokens=4, stop_token_ids=(9,))
PROMPTS = [(1,), (2,), (3,)]
SEEDS = [[10, 11], [20, 21], [30, 31]]


class Source(Sampler):
    """Draws ids from the seed; dies when it has drawn ``budget`` completions."""

    def __init__(self, budget: int | None = None) -> None:
        self.budget, self.asked = budget, []

    def stream(self, prompts, seeds, sampling, *, logprobs=True, on_tokens=None):
        self.asked += [(prompt[0], seed) for prompt, own in zip(prompts, seeds, strict=True) for seed in own]
        drawn = 0
        for index, own in reversed(list(enumerate(seeds))):
            for sibling, seed in enumerate(own):
                if drawn == self.budget:
                    raise RolloutError("the server is gone")
                drawn += 1
                if on_tokens is not None:
                    on_tokens(2)
                yield (index, sibling), Completion((seed, 9), (-0.1 * seed, -1e-17), "stop")


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path):
    return Journals(tmp_path).of_step(3)


def draw(path, source, *, step=3, weights=3, sampling=SAMPLING, seeds=SEEDS):
    return Journaled(source, path, step, weights).sample(PROMPTS, seeds, sampling)


def test_after_a_fault_only_what_is_missing_is_drawn_and_the_end_is_the_same(path):
    with pytest.raises(RolloutError):
        draw(path, Source(budget=3))
    rest = Source()
    assert draw(path, rest) == Source().sample(PROMPTS, SEEDS, SAMPLING)
    assert sorted(rest.asked) == [(1, 10), (1, 11), (2, 21)]
    nothing = Source()
    assert draw(path, nothing) == Source().sample(PROMPTS, SEEDS, SAMPLING)
    assert nothing.asked == []


def test_a_sampler_whose_last_bits_depend_on_the_whole_round_draws_it_again_as_a_whole(path):
    """As a model on a CPU does that decodes rows side by side: what is missing alone would come out otherwise."""

    class Together(Source):
        whole_rounds = True

    with pytest.raises(RolloutError):
        draw(path, Together(budget=3))
    again = Together()
    assert draw(path, again) == Source().sample(PROMPTS, SEEDS, SAMPLING)
    assert sorted(again.asked) == [(1, 10), (1, 11), (2, 20), (2, 21), (3, 30), (3, 31)]
    complete = Together()
    assert draw(path, complete) == Source().sample(PROMPTS, SEEDS, SAMPLING)
    assert complete.asked == []


def test_a_consumer_that_stops_early_loses_nothing_that_it_was_given(path):
    stream = Journaled(Source(), path, 3, 3).stream(PROMPTS, SEEDS, SAMPLING)
    assert len(list(islice(stream, 2))) == 2
    stream.close()
    rest = Source()
    draw(path, rest)
    assert len(rest.asked) == 4


def test_what_has_finished_is_on_disk_shortly_after_even_when_nothing_else_finishes(path):
    clock, lines = Time(), []

    class Slow(Source):
        def stream(self, prompts, seeds, sampling, *, logprobs=True, on_tokens=None):
            yield (0, 0), Completion((1,), (-1.0,), "stop")
            on_tokens(1)
            lines.append(path.exists())
            clock.now += FLUSH_SECONDS
            on_tokens(1)
            lines.append(len(path.read_bytes().splitlines()))
            yield (0, 1), Completion((2,), (-1.0,), "stop")

    journaled = Journaled(Slow(), path, 3, 3, clock=clock)
    journaled.sample(PROMPTS[:1], SEEDS[:1], SAMPLING)
    assert lines == [False, 2]
    assert len(path.read_bytes().splitlines()) == 3


def test_a_torn_last_line_is_dropped_and_written_again(path):
    draw(path, Source())
    whole = path.read_bytes()
    for cut in (1, 5, 20):
        path.write_bytes(whole[:-cut])
        rest = Source()
        assert draw(path, rest) == Source().sample(PROMPTS, SEEDS, SAMPLING)
        assert len(rest.asked) == 1
        assert path.read_bytes() == whole
    path.write_bytes(whole[:10])
    draw(path, rest := Source())
    assert len(rest.asked) == 6 and path.read_bytes() == whole


@pytest.mark.parametrize(
    "other",
    [
        {"step": 4, "weights": 4},
        {"sampling": Sampling(max_new_tokens=5, stop_token_ids=(9,))},
        {"sampling": Sampling(max_new_tokens=4)},
        {"seeds": [[*own, own[-1] + 1] for own in SEEDS]},
    ],
)
def test_a_journal_of_something_else_is_replaced(path, other):
    draw(path, Source())
    again = Source()
    draw(path, again, **other)
    assert len(again.asked) == sum(map(len, other.get("seeds", SEEDS)))
    draw(path, nothing := Source(), **other)
    assert not nothing.asked


@pytest.mark.parametrize(
    "change",
    [
        {"ids": []},
        {"ids": [1, 2, 3, 4, 5], "logprobs": None},
        {"ids": [1, -2]},
        {"ids": [1, 2**31]},
        {"ids": [1, 2.0]},
        {"ids": [1, True]},
        {"ids": "12"},
        {"logprobs": [-1.0]},
        {"logprobs": [-1.0, float("nan")]},
        {"logprobs": [-1.0, "x"]},
        {"finish_reason": "abort"},
        {"finish_reason": ["stop"]},
        {"weights": 1},
        {"weights": 4},
        {"weights": [3]},
        {"seed": None},
        {"seed": [1]},
        {"seed": 77},
    ],
)
def test_a_line_that_does_not_fit_is_ignored(path, change):
    draw(path, Source())
    header, *lines = path.read_bytes().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change).encode()
    path.write_bytes(b"\n".join([header, *lines]) + b"\n")
    assert draw(path, rest := Source()) == Source().sample(PROMPTS, SEEDS, SAMPLING)
    assert len(rest.asked) == 1


def test_garbage_is_no_journal(path):
    for content in (b"", b"\n", b"garbage\n" * 3, b"[" * 100_000 + b"\n", b"\xff\xfe\n", b"null\nnull\n"):
        path.write_bytes(content)
        draw(path, again := Source())
        assert len(again.asked) == 6


def test_responses_without_log_probabilities_are_kept_too(path):
    class Without(Source):
        def stream(self, *arguments, **named):
            for place, one in super().stream(*arguments, **named):
                yield place, Completion(one.ids, None, "length")

    first = draw(path, Without())
    assert draw(path, rest := Without()) == first and not rest.asked


def test_the_oldest_weights_are_known(path):
    with pytest.raises(RolloutError):
        draw(path, Source(budget=3), weights=2)
    mixed = Journaled(Source(), path, 3, 3)
    mixed.sample(PROMPTS, SEEDS, SAMPLING)
    assert mixed.oldest == 2
    fresh = Journaled(Source(), path.with_name("other"), 3, 3)
    fresh.sample(PROMPTS, SEEDS, SAMPLING)
    assert fresh.oldest == 3


def test_only_the_present_step_s_journal_is_kept(tmp_path):
    journals = Journals(tmp_path)
    others = [journals.of("prior"), tmp_path / "metrics.jsonl"]
    for path in (journals.of_step(2), journals.of_step(3), journals.of_step(4), *others):
        path.write_text("x")
    journals.keep_only_step(3)
    assert sorted(tmp_path.iterdir()) == sorted([journals.of_step(3), *others])


def test_a_journal_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(TrainingError, match=r"cannot be written to .*missing.* make room, then go on with --resume"):
        draw(tmp_path / "missing" / "journal.jsonl", Source())
