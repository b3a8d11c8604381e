import pytest
from pydantic import ValidationError

from selfdistill.errors import DataError
from selfdistill.questions import ColumnMapping
from selfdistill.questions.columns import resolve_columns


def test_default_names_that_exist_are_used_without_a_note():
    resolved, notes = resolve_columns(ColumnMapping(), ["prompt", "solution", "answer"], "f")
    assert resolved == ColumnMapping() and notes == []


@pytest.mark.parametrize("name", ["problem", "question"])
def test_the_default_prompt_falls_back_to_common_names_and_says_so(name):
    resolved, notes = resolve_columns(ColumnMapping(), [name, "answer"], "f.jsonl")
    assert resolved == ColumnMapping(prompt=name, solution=None)
    assert notes == [f"f.jsonl: the prompt is read from column {name!r}"]


def test_prompt_is_preferred_over_problem_and_problem_over_question():
    assert resolve_columns(ColumnMapping(), ["question", "problem", "prompt"], "f")[0].prompt == "prompt"
    assert resolve_columns(ColumnMapping(), ["question", "problem"], "f")[0].prompt == "problem"


def test_default_solution_and_answer_may_be_absent():
    resolved, _ = resolve_columns(ColumnMapping(), ["prompt"], "f")
    assert (resolved.solution, resolved.answer) == (None, None)


@pytest.mark.parametrize(
    ("mapping", "field", "hint"),
    [
        (ColumnMapping(prompt="questions"), "prompt", "did you mean 'question'"),
        (ColumnMapping(solution="awnser"), "solution", "did you mean 'answer'"),
        (ColumnMapping(answer="final"), "answer", "its columns are question, answer"),
        (ColumnMapping(id="uid"), "id", "its columns are question, answer"),
    ],
)
def test_a_column_that_was_asked_for_must_exist(mapping, field, hint):
    with pytest.raises(
        DataError, match=rf"f has no column .* for data\.columns\.{field}.*set data\.columns\.{field}"
    ) as e:
        resolve_columns(mapping, ["question", "answer"], "f")
    assert hint in str(e.value)


def test_a_file_without_any_prompt_column_names_its_columns():
    with pytest.raises(DataError, match=r"no column 'prompt'.*its columns are text, code"):
        resolve_columns(ColumnMapping(), ["text", "code"], "f")


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="promt"):
        ColumnMapping(promt="x")
