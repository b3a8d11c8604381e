"""Full and partial solutions as the teacher's context, and their rendering."""

import pytest
from pydantic import ValidationError

from selfdistill.contexts import (
    OMISSION_MARKER,
    FullSolution,
    NoContext,
    PartialSolution,
    SolutionTemplate,
    anchor_overlap,
    render,
)
from selfdistill.errors import DataError

SOLUTION = "17+25=42\n42+38=80\n#### 80"


def text_of(prompt) -> str:
    return "".join(map(chr, prompt.token_ids))


def test_the_full_solution_stands_between_question_and_closing_line(frame, group) -> None:
    prompts = FullSolution().contextualise(group(["a", "b"]), frame(), seed=0)
    assert prompts[0] is prompts[1]
    template = SolutionTemplate()
    assert text_of(prompts[0]) == (
        f"<system>Be brief.\n<user>17+25+38\n\n{template.heading}\n{SOLUTION}\n\n{template.closing}\n<assistant>"
    )
    assert (prompts[0].shown, prompts[0].source, prompts[0].truncated_tokens) == (SOLUTION, "solution", 0)


def test_the_partial_solution_follows_each_rollouts_own_overlap(frame, group) -> None:
    texts = ["no idea", "17+25=42", SOLUTION]
    prompts = PartialSolution().contextualise(group(texts, [False, True, False]), frame(), seed=0)
    assert [prompt.overlap for prompt in prompts] == [anchor_overlap(SOLUTION, text) for text in texts]
    assert [prompt.hidden_ratio for prompt in prompts] == pytest.approx([0.30, 0.30 + 0.1 * 4 / 7, 0.40])
    visible = [prompt.shown.removesuffix(OMISSION_MARKER) for prompt in prompts]
    assert [len(text) for text in visible] == [17, 16, 15]
    assert all(
        SOLUTION.startswith(text) and prompt.source == "partial_solution"
        for text, prompt in zip(visible, prompts, strict=True)
    )


def test_nothing_hidden_is_the_full_solution(frame, group) -> None:
    partial = PartialSolution(hidden_wrong=0, hidden_correct=0).contextualise(group(["a"]), frame(), seed=0)
    full = FullSolution().contextualise(group(["a"]), frame(), seed=0)
    assert partial[0].token_ids == full[0].token_ids


def test_random_masks_differ_between_siblings_but_not_between_calls(frame, group) -> None:
    long = group(["x"] * 6, solution="abcdefghijklmnopqrstuvwxyz" * 4)
    part = PartialSolution(placement="random")
    once, again = part.contextualise(long, frame(), seed=5), part.contextualise(long, frame(), seed=5)
    assert once == again
    assert len({prompt.shown for prompt in once}) > 1
    assert once != part.contextualise(long, frame(), seed=6)


@pytest.mark.parametrize("part", [FullSolution, PartialSolution])
def test_the_parts_own_thinking_overrides_the_frames(part, frame, group) -> None:
    def header(own, framed):
        return text_of(part(thinking=own).contextualise(group(["a"]), frame(thinking=framed), seed=0)[0])

    assert header(True, False).endswith("<think>")
    assert header(None, True).endswith("<think>")
    assert not header(False, True).endswith("<think>")


@pytest.mark.parametrize("part", [FullSolution(), PartialSolution()])
@pytest.mark.parametrize("solution", [None, "", "  \n"])
def test_a_question_without_solution_is_named(part, solution, frame, group) -> None:
    with pytest.raises(DataError, match="'q1' has no solution"):
        part.contextualise(group(["a"], solution=solution), frame(), seed=0)
    assert part.requires == ("solution",)


def test_no_context_gives_no_rollout_a_prompt(frame, group) -> None:
    assert NoContext().contextualise(group(["a", "b"]), frame(), seed=0) == [None, None]


def test_settings_are_checked_and_templates_can_be_overridden(frame, group) -> None:
    for wrong in ({"hidden_wrong": 1.5}, {"placement": "sufix"}, {"hiden_wrong": 0.2}, {"template": {"headin": "x"}}):
        with pytest.raises(ValidationError):
            PartialSolution(**wrong)
    assert PartialSolution(placement="sentence").placement == "suffix_at_sentence"
    part = FullSolution(template={"heading": "Look:"})
    assert "\n\nLook:\n17+25" in text_of(part.contextualise(group(["a"]), frame(), seed=0)[0])


@pytest.mark.parametrize("room", [0, 1, 7, 25])
def test_truncation_cuts_the_end_of_the_solution_and_nothing_else(room, frame, group) -> None:
    template = SolutionTemplate()
    whole = FullSolution().contextualise(group(["a"]), frame(), seed=0)[0]
    limit = len(whole.token_ids) - len(SOLUTION) + room
    cut = FullSolution().contextualise(group(["a"]), frame(limit), seed=0)[0]
    assert len(cut.token_ids) == limit
    assert cut.shown == SOLUTION[:room]
    assert cut.truncated_tokens == len(SOLUTION) - room
    assert text_of(cut) == (
        f"<system>Be brief.\n<user>17+25+38\n\n{template.heading}\n{SOLUTION[:room]}\n\n{template.closing}\n<assistant>"
    )


def test_a_question_that_does_not_fit_by_itself_is_named_with_its_size(frame, group) -> None:
    with pytest.raises(DataError, match=r"'q1' needs \d+ teacher prompt tokens .* only 60 are allowed: raise"):
        FullSolution().contextualise(group(["a"]), frame(60), seed=0)


def test_truncation_renders_a_long_solution_a_few_times_only(frame, group) -> None:
    tight = frame(500)
    prompt = FullSolution().contextualise(group(["a"], solution="x" * 100_000), tight, seed=0)[0]
    assert len(prompt.token_ids) == 500
    assert tight.chat.rendered < 25


def test_the_first_privileged_text_is_cut_before_the_second(frame, group) -> None:
    question = group(["a"]).question

    def extend(turn, first, second):
        return f"{turn}|{first}|{second}|end"

    bare = len(render(frame(), question, extend, ["", ""], source="demonstration").token_ids)
    shown = [render(frame(bare + room), question, extend, ["aaa", "bbb"], source="demonstration") for room in range(7)]
    assert [prompt.shown for prompt in shown] == ["", "b", "bb", "bbb", "a\n\nbbb", "aa\n\nbbb", "aaa\n\nbbb"]
    assert [prompt.truncated_tokens for prompt in shown] == [6, 5, 4, 3, 2, 1, 0]


def test_a_conversation_that_does_not_end_with_the_user_is_refused(frame, group) -> None:
    question = group(["a"]).question
    turns = (*question.messages, {"role": "assistant", "content": "hi"})
    broken = type(question)(id="q9", messages=turns)
    with pytest.raises(DataError, match="'q9' does not end with a user turn"):
        render(frame(), broken, lambda turn, shown: turn + shown, ["x"], source="solution")
