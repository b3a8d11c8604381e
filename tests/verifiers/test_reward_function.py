import numpy as np
import pytest

from selfdistill.errors import RecipeError
from selfdistill.questions.question import Question
from selfdistill.verifiers import RewardFunctionVerifier, load_reward_function


def question(text="2+2", *, chat=False, **columns):
    return Question(
        id="q:0",
        messages=({"role": "user", "content": text},),
        solution="it is 4",
        answer="4",
        columns={"prompt": text, **columns},
        conversational=chat,
    )


def verdicts(function, rewards=1, **settings):
    return RewardFunctionVerifier(function, **settings).verify([question()] * rewards, ["r"] * rewards)


def test_the_function_gets_keyword_lists_of_prompts_completions_and_columns():
    seen = {}

    def score(prompts, completions, **kwargs):
        seen.update(prompts=prompts, completions=completions, **kwargs)
        return [1.0, 0.0]

    RewardFunctionVerifier(score).verify([question("a", level=1), question("b", level=2)], ["x", "y"])
    assert seen == {
        "prompts": ["a", "b"],
        "completions": ["x", "y"],
        "level": [1, 2],
        "solution": ["it is 4"] * 2,
        "answer": ["4"] * 2,
    }


def test_conversational_questions_give_message_lists():
    seen = {}

    def score(prompts, completions):
        seen.update(prompts=prompts, completions=completions)
        return [0.0]

    RewardFunctionVerifier(score).verify([question("a", chat=True)], ["x"])
    assert seen["prompts"] == [[{"role": "user", "content": "a"}]]
    assert seen["completions"] == [[{"role": "assistant", "content": "x"}]]


def test_a_column_of_the_file_wins_over_the_mapped_field_of_the_same_name():
    def score(completions, answer):
        return [float(value == "raw") for value in answer]

    assert RewardFunctionVerifier(score).verify([question(answer="raw")], ["x"])[0].success


def test_a_function_without_keyword_catch_all_gets_only_what_it_names():
    assert verdicts(lambda completions: [1.0 for _ in completions])[0].success
    assert verdicts(lambda completions, extra=3: [1.0])[0].success


def test_success_is_the_threshold_and_not_partial_credit():
    partial, full = verdicts(lambda completions: [0.4, 0.5], rewards=2)
    assert (partial.reward, partial.success) == (0.4, False)
    assert "scored 0.4; 0.5 is needed" in partial.feedback
    assert (full.reward, full.success, full.feedback) == (0.5, True, None)
    assert not verdicts(lambda completions: [0.5], threshold=0.6)[0].success


def test_no_reward_counts_as_zero_and_not_as_success():
    (none,) = verdicts(lambda completions: [None], threshold=-1.0)
    assert (none.reward, none.success) == (0.0, False)


def test_the_final_answer_is_kept_for_majority_votes():
    verifier = RewardFunctionVerifier(lambda completions: [1.0])
    assert verifier.verify([question()], [r"\boxed{4}"])[0].answer == "4"
    assert verifier.equivalent("4", " 4 ") and not verifier.equivalent("4", "4.0")


def test_arrays_and_scalars_of_arrays_are_accepted():
    assert verdicts(lambda completions: np.array([1.0]))[0].reward == 1.0
    assert verdicts(lambda completions: [np.float32(0.25)])[0].reward == 0.25
    assert verdicts(lambda completions: (True,))[0].reward == 1.0


def test_no_responses_do_not_call_the_function():
    assert RewardFunctionVerifier(lambda: 1 / 0).verify([], []) == []


def broken(prompts, completions, **kwargs):
    raise KeyError("level")


async def asynchronous(completions):
    return [1.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (broken, r"broken raised KeyError: 'level'; it was called with .*completions"),
        (lambda completions: [1.0, 2.0], "returned 2 rewards for 1 completions; return one number per completion"),
        (lambda completions: 1.0, "returned float; return a list"),
        (lambda completions: None, "returned NoneType; return a list"),
        (lambda completions: "1", "returned str; return a list"),
        (lambda completions: [float("nan")], "returned nan for completion 0; return a finite number"),
        (lambda completions: [float("inf")], "returned inf for completion 0"),
        (lambda completions: ["1"], "returned '1' for completion 0"),
        (lambda completion: [1.0], r"asks for 'completion'.* \(did you mean 'completions'\?\)"),
    ],
)
def test_a_faulty_function_is_named_with_the_fault_and_the_remedy(function, message):
    with pytest.raises(RecipeError, match=message) as error:
        verdicts(function)
    assert "test_reward_function:" in str(error.value)


@pytest.mark.filterwarnings("ignore:coroutine")
def test_an_asynchronous_function_is_refused():
    with pytest.raises(RecipeError, match="asynchronous returned coroutine"):
        verdicts(asynchronous)


def test_what_is_no_function_is_refused():
    with pytest.raises(RecipeError, match="'score' is not callable"):
        RewardFunctionVerifier("score")
    with pytest.raises(RecipeError, match="success_threshold=nan"):
        RewardFunctionVerifier(broken, threshold=float("nan"))


@pytest.fixture
def rewards_file(tmp_path):
    file = tmp_path / "rewards.py"
    file.write_text("def score(completions):\n    return [1.0 for _ in completions]\n\nLIMIT = 3\n")
    return file


def test_a_function_loads_from_a_file_and_from_a_module(rewards_file):
    assert load_reward_function(f"{rewards_file}:score")(completions=["x"]) == [1.0]
    assert load_reward_function("math:fsum")([1, 2]) == 3


def test_a_path_that_names_no_function_says_how_to_write_one(rewards_file):
    with pytest.raises(RecipeError, match=r"'rewards\.py' does not name a function; write file\.py:function"):
        load_reward_function("rewards.py")


def test_a_missing_file_names_the_nearest_one(rewards_file):
    with pytest.raises(RecipeError, match=r"no file .*reward\.py \(did you mean 'rewards\.py'\?\)"):
        load_reward_function(f"{rewards_file.parent / 'reward.py'}:score")


def test_a_missing_function_names_the_nearest_one(rewards_file):
    with pytest.raises(RecipeError, match=r"no function 'scores' \(did you mean 'score'\?\)"):
        load_reward_function(f"{rewards_file}:scores")


def test_a_value_that_is_not_callable_is_refused(rewards_file):
    with pytest.raises(RecipeError, match="'LIMIT' is a int, not a function"):
        load_reward_function(f"{rewards_file}:LIMIT")


def test_a_file_that_does_not_import_says_why(tmp_path):
    (tmp_path / "bad.py").write_text("import nowhere_to_be_found")
    with pytest.raises(RecipeError, match=r"bad\.py does not import \(ModuleNotFoundError.*correct the file"):
        load_reward_function(f"{tmp_path / 'bad.py'}:score")


def test_a_module_that_does_not_exist_says_so():
    with pytest.raises(RecipeError, match=r"module nowhere\.rewards does not import .*install it, or write file"):
        load_reward_function("nowhere.rewards:score")
