import json
from pathlib import Path

import pytest

from selfdistill.errors import DataError
from selfdistill.questions import (
    ColumnMapping,
    Question,
    Wording,
    load_questions,
    question_from_row,
    questions_from_rows,
    require,
)
from selfdistill.verifiers import MathsVerifier

MATHS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "math"
GSM8K = ColumnMapping(prompt="question", solution="answer", answer=None)
GSM8K_ROW = {"question": "Half of 48?", "answer": "It is 48/2 = <<48/2=24>>24.\n#### 24"}


def one(row, columns=None, **wording):
    (question,) = questions_from_rows([row], columns=columns, source="f", wording=Wording(**wording))
    return question


def test_a_plain_row_becomes_a_question():
    row = {"prompt": "1+1", "solution": "1+1=2", "answer": "2", "level": 3}
    question = one(row)
    assert question == Question(
        id="f:0",
        messages=({"role": "user", "content": "1+1"},),
        solution="1+1=2",
        answer="2",
        columns=row,
        conversational=False,
    )


def test_the_row_is_kept_as_loaded_and_cannot_be_changed():
    question = one(GSM8K_ROW, GSM8K, strip_calculator_marks=True)
    assert question.columns == GSM8K_ROW
    with pytest.raises(TypeError):
        question.columns["answer"] = "x"
    with pytest.raises(TypeError):
        question.messages[0]["content"] = "x"


def test_without_an_answer_column_the_solution_states_the_answer():
    assert one(GSM8K_ROW, GSM8K).answer == "24"
    assert one({"prompt": "x", "solution": r"so \boxed{\frac12}"}).answer == r"\frac12"
    assert one({"prompt": "x", "solution": "so one half"}).answer is None


def test_a_worked_solution_in_the_answer_column_gives_only_its_final_answer():
    question = one(GSM8K_ROW)
    assert (question.answer, question.solution) == ("24", None)


def test_calculator_marks_stay_unless_they_are_stripped():
    assert one(GSM8K_ROW, GSM8K).solution == GSM8K_ROW["answer"]
    assert one(GSM8K_ROW, GSM8K, strip_calculator_marks=True).solution == "It is 48/2 = 24.\n#### 24"


@pytest.mark.parametrize(("value", "text"), [(27.0, "27.0"), (33, "33"), ("033", "033"), ({"a": [1]}, '{"a": [1]}')])
def test_answers_become_text_in_the_form_that_they_have(value, text):
    assert one({"prompt": "x", "answer": value}).answer == text


def test_chat_prompts_stay_conversations():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    question = one({"prompt": messages})
    assert list(question.messages) == messages and question.conversational


def test_the_template_surrounds_the_last_user_turn_and_braces_of_latex_survive():
    template = "{prompt}\nPut it in \\boxed{}."
    assert one({"prompt": r"\frac{1}{2}?"}, prompt_template=template).messages[0]["content"] == (
        "\\frac{1}{2}?\nPut it in \\boxed{}."
    )
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    contents = [message["content"] for message in one({"prompt": chat}, prompt_template="<{prompt}>").messages]
    assert contents == ["a", "b", "<c>"]


def test_a_prompt_that_contains_the_placeholder_is_inserted_once():
    assert one({"prompt": "{prompt}"}, prompt_template="[{prompt}]").messages[0]["content"] == "[{prompt}]"


def test_a_system_message_goes_first():
    assert [message["role"] for message in one({"prompt": "x"}, system="s").messages] == ["system", "user"]


def test_two_system_messages_contradict_each_other():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    with pytest.raises(DataError, match=r"f row 1, column 'prompt' starts with its own system.*remove data\.system"):
        one({"prompt": messages}, system="t")


def test_a_template_without_the_placeholder_is_refused():
    with pytest.raises(DataError, match=r"prompt_template='Solve it' lacks the placeholder \{prompt\}"):
        Wording(prompt_template="Solve it")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": " "}, r"f row 1: the prompt \(column 'prompt'\) is empty: ' '; fill it in or remove the row"),
        ({"prompt": None}, "the prompt .* is empty: None"),
        ({"prompt": []}, r"the prompt .* is empty: \[\]"),
        ({"prompt": "x", "solution": ""}, r"the solution .* is empty: ''.*data\.columns\.solution=null"),
        ({"prompt": "x", "answer": None}, r"the answer .* is empty: None.*data\.columns\.answer=null"),
        ({"prompt": 3}, "column 'prompt' is a int; a prompt is a string or a list of chat messages"),
        ({"prompt": ["x"]}, "holds the message 'x'; write {'role'"),
        ({"prompt": [{"role": "users", "content": "x"}]}, "holds the message .*one of system, user, assistant"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "holds the message .*'content': text"),
        ({"prompt": [{"role": "user", "content": ""}]}, "text that is not empty"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "ends with a turn of role 'assistant'; remove it"),
    ],
)
def test_a_bad_row_is_named_with_the_field_the_value_and_the_remedy(row, message):
    with pytest.raises(DataError, match=message):
        one(row)


def test_a_row_that_lacks_a_column_of_the_others_is_named():
    with pytest.raises(DataError, match=r"f row 2: the solution .* is empty: None"):
        questions_from_rows([{"prompt": "x", "solution": "y"}, {"prompt": "z"}], source="f")


def test_ids_come_from_the_column_or_from_the_row_number():
    rows = [{"prompt": "x", "uid": 7}, {"prompt": "x", "uid": 8}]
    assert [question.id for question in questions_from_rows(rows, source="f")] == ["f:0", "f:1"]
    mapped = questions_from_rows(rows, columns=ColumnMapping(id="uid"), source="f")
    assert [question.id for question in mapped] == ["7", "8"]


def test_duplicate_ids_name_both_rows():
    rows = [{"prompt": "x", "uid": 7}, {"prompt": "y", "uid": 8}, {"prompt": "z", "uid": "7"}]
    with pytest.raises(DataError, match=r"f: rows 1 and 3 have the same id '7'.*data\.columns\.id=null"):
        questions_from_rows(rows, columns=ColumnMapping(id="uid"), source="f")


def test_a_file_is_loaded_with_its_stem_in_the_ids_and_notes_on_what_was_guessed(tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"problem": f"{n}+1", "answer": n + 1}) + "\n" for n in range(5)))
    notes = []
    questions = load_questions(str(file), limit=3, notes=notes)
    assert [question.id for question in questions] == ["sums:0", "sums:1", "sums:2"]
    assert [question.answer for question in questions] == ["1", "2", "3"]
    assert notes == ["sums: the prompt is read from column 'problem'"]


def test_one_row_can_be_turned_without_a_file():
    question = question_from_row(GSM8K_ROW, columns=GSM8K, index=4, source="gsm")
    assert (question.id, question.answer) == ("gsm:4", "24")


def test_a_required_field_that_is_missing_names_who_needs_it_and_the_remedy():
    questions = questions_from_rows([GSM8K_ROW, GSM8K_ROW], source="gsm")
    require(questions, ("answer",), "the maths verifier")
    with pytest.raises(
        DataError,
        match=r"2 of 2 questions have no solution \(first: 'gsm:0'\), which the method 'paint' needs; "
        r"set data\.columns\.solution .*\(columns: question, answer\)",
    ):
        require(questions, ("solution",), "the method 'paint'")


@pytest.mark.parametrize(
    ("name", "columns", "count", "solved"),
    [
        ("gsm8k_train.jsonl", GSM8K, 7473, True),
        ("gsm_symbolic_worked.jsonl", ColumnMapping(), 999, True),
        ("aime24.json", ColumnMapping(), 30, True),
        ("aime25.jsonl", ColumnMapping(), 30, False),
        ("amc23_40.jsonl", ColumnMapping(), 40, False),
        ("hmmt_feb25.jsonl", ColumnMapping(), 30, False),
    ],
)
def test_the_public_files_load(name, columns, count, solved):
    if not (MATHS / name).exists():
        pytest.skip(f"{name} is not beside this checkout")
    questions = load_questions(str(MATHS / name), columns=columns)
    assert len(questions) == count
    assert all(question.answer and len(question.answer) < 60 for question in questions)
    assert all((question.solution is not None) == solved for question in questions)


def test_reference_solutions_of_gsm8k_verify_against_their_own_answers():
    if not (MATHS / "gsm8k_test.jsonl").exists():
        pytest.skip("gsm8k_test.jsonl is not beside this checkout")
    questions = load_questions(str(MATHS / "gsm8k_test.jsonl"), columns=GSM8K)
    verifier = MathsVerifier(timeout=30.0)
    verdicts = verifier.verify(questions, [question.solution for question in questions])
    verifier.close()
    assert all(verdict.success for verdict in verdicts)
