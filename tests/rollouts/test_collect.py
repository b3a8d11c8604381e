from __future__ import annotations

import pytest

from selfdistill.errors import DataError
from selfdistill.questions.question import Question
from selfdistill.rollouts import Completion, Sampling, TransformersSampler
from selfdistill.rollouts.collect import reference_rollouts, stream_siblings

SAMPLING = Sampling(max_new_tokens=6)


def question(name: str, text: str = "1+1", solution: str | None = None) -> Question:
    return Question(id=name, messages=({"role": "user", "content": text},), solution=solution)


def collect(questions, sampler, chat, *, group_size, **options):
    return collect_siblings([(asked, range(group_size)) for asked in questions], sampler, chat, **options)


def collect_siblings(wanted, sampler, chat, **options):
    """Return what is streamed as one tuple per question, in sibling order."""
    done = dict(stream_siblings(wanted, sampler, chat, **options))
    return [tuple(done[index, place] for place in range(len(own))) for index, (_, own) in enumerate(wanted)]


class RecordingSampler:
    """Returns the given ids, and keeps the seeds that it was given."""

    def __init__(self, ids: tuple[int, ...] = (4, 2)) -> None:
        self.ids = ids
        self.seeds: list[int] = []

    def stream(self, prompts, seeds, sampling, *, logprobs=True, on_tokens=None):
        self.seeds += [seed for own in seeds for seed in own]
        for index, own in enumerate(seeds):
            for sibling, _ in enumerate(own):
                yield (index, sibling), Completion(self.ids, (-1.0,) * len(self.ids), "stop")


def test_a_rollout_keeps_prompt_ids_and_sampled_ids_as_they_are(tiny_chat):
    # Ids that decoding and re-tokenising would change: an end in the middle, an unknown, a start.
    sampler = RecordingSampler((2, 4, 3, 1, 5, 2))
    [group] = collect([question("a")], sampler, tiny_chat, group_size=2, sampling=SAMPLING, seed=0, stream=())
    for sibling, rollout in enumerate(group):
        assert rollout.sibling == sibling
        assert rollout.prompt_ids == tiny_chat.render(rollout.question.messages)
        assert rollout.response_ids == sampler.ids
        assert tuple(tiny_chat.encode(rollout.text)) != rollout.response_ids
        assert rollout.text == "01"
        assert len(rollout.logprobs) == len(rollout.response_ids)


def test_groups_come_back_in_the_order_of_the_questions(tiny_model, tiny_chat):
    questions = [question("long", "what is 17+25+38?"), question("short", "7"), question("middle", "1+1")]
    groups = collect(
        questions, TransformersSampler(tiny_model, tiny_chat), tiny_chat,
        group_size=3, sampling=SAMPLING, seed=0, stream=("train", 1), thinking=False,
    )  # fmt: skip
    assert [[rollout.question.id for rollout in group] for group in groups] == [[q.id] * 3 for q in questions]
    assert [rollout.sibling for group in groups for rollout in group] == [0, 1, 2] * 3
    assert groups[0][0].prompt_ids == tiny_chat.render(questions[0].messages, thinking=False)


def test_no_two_siblings_groups_steps_or_repeats_share_a_seed(tiny_chat):
    sampler = RecordingSampler()
    shards = [[question("a"), question("b"), question("a")], [question("c"), question("d")]]  # as on two processes
    for step in range(3):
        for shard in shards:
            collect(shard, sampler, tiny_chat, group_size=8, sampling=SAMPLING, seed=0, stream=("train", step))
    collect(shards[0], sampler, tiny_chat, group_size=8, sampling=SAMPLING, seed=1, stream=("train", 0))
    assert len(sampler.seeds) == 3 * 5 * 8 + 3 * 8
    assert len(set(sampler.seeds)) == len(sampler.seeds)


def test_seeds_do_not_depend_on_which_process_draws_a_sibling(tiny_chat):
    together, apart = RecordingSampler(), RecordingSampler()
    asked = question("a")
    collect([question("b"), asked], together, tiny_chat, group_size=4, sampling=SAMPLING, seed=0, stream=("x",))
    for siblings in ([0, 1], [2, 3]):
        collect_siblings([(asked, siblings)], apart, tiny_chat, sampling=SAMPLING, seed=0, stream=("x",))
    assert together.seeds[4:] == apart.seeds


def test_siblings_have_consecutive_seeds_also_when_only_some_are_wanted(tiny_chat):
    whole, part = RecordingSampler(), RecordingSampler()
    collect([question("a"), question("b")], whole, tiny_chat, group_size=4, sampling=SAMPLING, seed=0, stream=())
    assert whole.seeds[:4] == list(range(whole.seeds[0], whole.seeds[0] + 4))
    collect_siblings([(question("b"), [1, 3])], part, tiny_chat, sampling=SAMPLING, seed=0, stream=())
    assert part.seeds == [whole.seeds[5], whole.seeds[7]]


def test_rollouts_are_streamed_with_their_places_as_they_finish(tiny_chat):
    class Backwards(RecordingSampler):
        def stream(self, prompts, seeds, sampling, **options):
            yield from reversed(list(super().stream(prompts, seeds, sampling, **options)))

    wanted = [(question("a"), [2]), (question("b"), [0, 5])]
    streamed = stream_siblings(wanted, Backwards(), tiny_chat, sampling=SAMPLING, seed=0, stream=())
    found = [(place, rollout.question.id, rollout.sibling) for place, rollout in streamed]
    assert found == [((1, 1), "b", 5), ((1, 0), "b", 0), ((0, 0), "a", 2)]


def test_a_prompt_over_the_limit_names_question_length_and_remedy(tiny_chat):
    with pytest.raises(DataError, match=r"question 'a' has \d+ tokens, more than max_prompt_tokens 10; raise"):
        collect(
            [question("a")], RecordingSampler(), tiny_chat,
            group_size=1, sampling=SAMPLING, seed=0, stream=(), max_prompt_tokens=10,
        )  # fmt: skip


def test_a_reference_rollout_is_the_solution_in_the_chat_format(tiny_chat):
    [rollout] = reference_rollouts([question("a", solution="1+1=2\n#### 2")], tiny_chat, thinking=False)
    assert rollout.prompt_ids == tiny_chat.render(rollout.question.messages, thinking=False)
    assert tiny_chat.decode(rollout.response_ids, skip_special_tokens=False) == "1+1=2\n#### 2<|im_end|>"
    assert (rollout.text, rollout.sibling, rollout.logprobs) == ("1+1=2\n#### 2", 0, None)
    assert rollout.finish_reason == "stop"


@pytest.mark.parametrize("solution", [None, ""])
def test_supervised_training_without_a_solution_is_refused(tiny_chat, solution):
    with pytest.raises(DataError, match="question 'a' has no solution"):
        reference_rollouts([question("a", solution=solution)], tiny_chat)
