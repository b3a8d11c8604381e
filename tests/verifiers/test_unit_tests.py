"""Programs run in the sandbox; skipped where there is no isolation."""

import threading
import time
from types import MappingProxyType

import pytest

from selfdistill.errors import DataError, SandboxError
from selfdistill.questions.code import prepare_code
from selfdistill.questions.question import Question
from selfdistill.rollouts.rollout import Rollout
from selfdistill.rollouts.verifying import verifying
from selfdistill.sandbox import Limits, Sandbox, isolation_available
from selfdistill.verifiers import UnitTestVerifier
from selfdistill.verifiers.unit_test_kinds import same_tokens

needs_isolation = pytest.mark.skipif(
    isolation_available() is None, reason="neither bubblewrap nor namespaces work here"
)

CHECK = """
def check(candidate):
    assert candidate([1, 2]) == 3
    assert candidate([]) == 0
    assert candidate([5]) == 5, "one"
    assert True, "nothing"
"""
STUB = 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """Add them."""\n'


def question(**row):
    row = prepare_code({"prompt": "Solve it.", **row}, "row 1")
    return Question(id="q", messages=({"role": "user", "content": str(row["prompt"])},), columns=MappingProxyType(row))


def asserts(*tests, setup=""):
    return question(test_list=list(tests), test_setup_code=setup)


def check(code=CHECK, stub=STUB, entry="total"):
    return question(prompt=stub, entry_point=entry, test=code)


def script(*cases, **columns):
    return question(tests=[{"input": given, "output": expected} for given, expected in cases], **columns)


@pytest.fixture(scope="module")
def verifier():
    verifier = UnitTestVerifier(Sandbox(Limits(wall_seconds=2.0)), workers=2)
    yield verifier
    verifier.close()


@pytest.fixture
def judge(verifier):
    def verdict(asked, program):
        return verifier.verify([asked], [f"Here it is:\n```python\n{program}\n```"])[0]

    return verdict


pytestmark = needs_isolation


def test_a_right_function_succeeds(judge):
    verdict = judge(asserts("assert double(2) == 4", "assert double('a') == 'aa'"), "def double(x):\n    return 2 * x")
    assert (verdict.reward, verdict.success, verdict.passed, verdict.well_formed) == (1.0, True, 1.0, True)
    assert verdict.feedback is None and verdict.answer == "def double(x):\n    return 2 * x"


def test_success_needs_every_test_and_the_share_is_apart(judge):
    verdict = judge(
        asserts("assert f(1) == 1", "assert f(2) == 4", "assert f(3) == 9"), "def f(x):\n    return 2 * x - 1"
    )
    assert (verdict.reward, verdict.success, verdict.passed) == (0.0, False, 1 / 3)
    assert verdict.privileged
    assert verdict.feedback.splitlines()[1:5] == ["Wrong answer.", "Input: f(2)", "Expected: 4", "Got: 3"]


def test_a_response_without_a_program_fails_with_its_own_reason(verifier):
    verdict = verifier.verify([asserts("assert f(1) == 1")], ["```python\ndef f(x):\n    return"])[0]
    assert (verdict.success, verdict.well_formed, verdict.answer, verdict.passed) == (False, False, None, 0.0)
    assert "No program" in verdict.feedback and not verdict.privileged


def test_a_runtime_error_is_told_with_its_line_and_is_not_privileged(judge):
    verdict = judge(asserts("assert f(4) == 1", "assert f(0) == 1"), "def f(x):\n    y = 4\n    return y // x")
    assert verdict.passed == 0.5 and not verdict.privileged
    assert verdict.feedback.splitlines()[1:] == [
        "Runtime error: ZeroDivisionError: integer division or modulo by zero",
        "Line 3: return y // x",
        "Input: f(0)",
    ]


def test_only_the_programs_own_frames_count(judge):
    verdict = judge(asserts("assert f(4) == 1"), "import json\ndef f(x):\n    return json.loads('{')")
    assert "JSONDecodeError" in verdict.feedback and "Line 3: return json.loads('{')" in verdict.feedback


@pytest.mark.parametrize(
    "program, words",
    [
        ("def f(x:\n    return x", "SyntaxError"),
        ("import nothing_of_this_name\ndef f(x):\n    return x", "ModuleNotFoundError"),
        ("def g(x):\n    return x", "NameError"),
        ("def f():\n    return 1", "TypeError"),
        ("def f(x):\n    return f(x)", "RecursionError"),
        ("def f(x):\n    return [0] * 10**12", "MemoryError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\ndef f(x):\n    os._exit(0)", "ended before its tests did"),
        ("import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("def f(x):\n    raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})", "Odd"),
    ],
)
def test_programs_that_break_are_told_how(judge, program, words):
    verdict = judge(asserts("assert f(1) == 1", "assert f(2) == 2"), program)
    assert not verdict.success and verdict.passed == 0.0 and not verdict.privileged
    assert "Runtime error" in verdict.feedback and words in verdict.feedback


def test_an_endless_call_leaves_time_for_the_others(judge):
    program = "def f(x):\n    while x == 1:\n        pass\n    return x"
    verdict = judge(asserts("assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3"), program)
    assert verdict.passed == 2 / 3 and not verdict.privileged
    assert verdict.feedback.splitlines()[1:] == ["Time limit exceeded (2 seconds).", "Input: f(1)"]


def test_a_program_that_swallows_the_alarm_is_ended_from_outside(judge):
    program = (
        "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass"
    )
    start = time.perf_counter()
    verdict = judge(asserts("assert f(1) == 1", "assert f(2) == 2"), program)
    assert "Time limit" in verdict.feedback and verdict.passed == 0.0
    assert time.perf_counter() - start < 10


def test_what_a_program_prints_does_no_harm(judge):
    program = "import sys\ndef f(x):\n    print('x' * 10**6)\n    print('{\"case\": 0}', file=sys.stderr)\n    return x"
    assert judge(asserts("assert f(1) == 1"), program).success


def test_programs_may_use_dataclasses_and_leave_threads(judge):
    program = (
        "import threading, time\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\ndef f(x):\n    return P(x).x\n"
        "if __name__ == '__main__':\n    raise SystemExit"
    )
    assert judge(asserts("assert f(1) == 1"), program).success


def test_the_tests_of_a_check_function_are_told_apart(judge):
    verdict = judge(check(), "def total(numbers):\n    return sum(numbers) or 1")
    assert verdict.passed == 2 / 3 and "Input: total([])" in verdict.feedback


def test_a_body_alone_is_joined_with_the_prompt(verifier):
    assert verifier.verify([check()], ["    return sum(numbers)\n"])[0].success


def test_the_prompts_stub_does_not_stand_in_for_the_program(judge):
    code = "def check(candidate):\n    assert candidate([]) == None\n"
    verdict = judge(check(code), "def other(x):\n    return x")
    assert not verdict.success and "NameError" in verdict.feedback


def test_the_prompts_helpers_are_there(judge):
    stub = "import math\n\ndef helper(x):\n    return math.floor(x)\n\ndef f(x):\n    '''Down.'''\n"
    code = "def check(candidate):\n    assert candidate(2.5) == helper(2.1)\n"
    assert judge(check(code, stub, "f"), "def f(x):\n    return helper(x)").success


EXAMINED = """
import math, random
def close(a, b):
    assert abs(a - b) < 1e-6
def check(candidate):
    for x in range(3):
        assert candidate(x) == x / 3
    assert math.isclose(candidate(6), 2.0)
    rng = random.random()
    got = candidate(rng)
    assert abs(got - rng / 3) < 1e-9
    for x in (9, 12):
        close(candidate(x), x / 3)
    assert candidate(3) is not None
    assert candidate(candidate(9)) == 1
"""


def test_loops_helpers_tolerances_and_dependent_calls_are_judged(judge):
    asked = check(EXAMINED, "def third(x):\n    pass\n", "third")
    verdict = judge(asked, "def third(x):\n    return x / 3")
    assert verdict.success and verdict.passed == 1.0
    verdict = judge(asked, "def third(x):\n    return x / 3 if x < 9 else 1")
    assert not verdict.success and verdict.passed == 4 / 6  # the helper's loop and the nested calls
    assert verdict.privileged
    verdict = judge(asked, "def third(x):\n    return 1 / 0 if x == 6 else x / 3")
    assert verdict.passed == 5 / 6 and "ZeroDivisionError" in verdict.feedback and not verdict.privileged


def test_examined_asserts_may_use_standard_modules_and_their_setup(judge):
    tests = ("assert double(2) == sys.maxsize - sys.maxsize + two() * 2", "assert double(3)", "assert not double(0)")
    asked = asserts(*tests, setup="def two():\n    return 2")
    assert judge(asked, "def double(x):\n    return 2 * x").success
    assert judge(asked, "def double(x):\n    return 4").passed == 2 / 3


def test_objects_that_the_program_makes_reach_direct_tests(judge):
    asked = asserts("assert depth(root) == 2", setup="root = Node(1)\nroot.left = Node(2)")
    program = (
        "class Node:\n    def __init__(self, v):\n        self.v, self.left = v, None\n"
        "def depth(n):\n    return 0 if n is None else 1 + depth(n.left)"
    )
    assert judge(asked, program).success


def test_objects_that_the_program_makes_reach_examined_tests_as_arguments(judge):
    asked = asserts("assert abs(width([Pair(1, 3)], 2) - 4) < 1e-9", "assert Pair(1, 3) is not None")
    program = "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
    assert judge(asked, program + "def width(pairs, by):\n    return (pairs[0].b - pairs[0].a) * by").success
    assert judge(asked, program + "def width(pairs, by):\n    return 3").passed == 0.5


@pytest.mark.parametrize(
    "value, literal",
    [
        ("{'a': [1, (2.5,), None]}", "{'a': [1, (2.5,), None]}"),
        ("{3, 1}", "{1, 3}"),
        ("frozenset({3, 1})", "{1, 3}"),
        ("set()", "[]"),
        ("10 ** 5000", "0"),
        ("float('inf')", "1e999"),
        ("1 + 2j", "(1+2j)"),
        ("b'ab'", "b'ab'"),
        ("(i for i in [1])", "[1]"),
        ("collections.Counter('aa')", "{'a': 2}"),
        ("collections.namedtuple('P', 'x y')(1, 2)", "(1, 2)"),
        ("True", "1"),
    ],
)
def test_values_compare_as_in_python(judge, value, literal):
    program = f"import collections\ndef f():\n    return {value}"
    python = eval(value, {"collections": __import__("collections")}) == eval(literal)
    assert judge(asserts(f"assert f() == {literal}"), program).success is python


def test_tests_that_do_not_run_are_the_datas_fault(judge):
    with pytest.raises(DataError, match=r"question 'q'.*ZeroDivisionError"):
        judge(asserts("assert f(1)", setup="one = 1 / 0"), "def f(x):\n    return x")


def test_a_question_without_tests_is_refused(verifier):
    with pytest.raises(DataError, match="'tests'"):
        verifier.verify([Question(id="q", messages=())], ["x = 1"])


def test_a_script_is_judged_by_its_words(judge):
    asked = script(("2 3\n", "5\n6\n"), ("1 1\n", "2 1"))
    assert judge(asked, "a, b = map(int, input().split())\nprint(a + b, '', a * b)").success
    verdict = judge(asked, "a, b = map(int, input().split())\nprint(a + b, 6)")
    assert verdict.passed == 0.5 and verdict.privileged
    assert verdict.feedback.splitlines()[1:] == ["Wrong answer.", "Input: 1 1", "Expected: 2 1", "Got: 2 6"]


def test_a_script_stops_at_its_first_runtime_error_and_the_rest_counts_as_failed(judge):
    asked = script(("1", "1"), ("0", "0"), ("1", "1"), ("1", "1"))
    verdict = judge(asked, "n = int(input())\nprint(1 // n)")
    assert verdict.passed == 0.25 and not verdict.privileged
    assert "ZeroDivisionError" in verdict.feedback and "Line 2: print(1 // n)" in verdict.feedback


def test_a_script_may_be_a_main_function_and_read_standard_input_anyhow(judge):
    program = (
        "import sys\ndef main():\n    print(sys.stdin.buffer.read().decode())\nif __name__ == '__main__':\n    main()"
    )
    assert judge(script(("a b", "a b")), program).success
    assert judge(script(("a b", "a b")), "print(open(0).read())\nexit()").success


@pytest.mark.parametrize(
    "program, words",
    [
        ("print(1)\nraise SystemExit(3)", "exit code 3"),
        ("while True: pass", "Time limit"),
        ("while True: print('x' * 10000)", "writes more"),
        ("print(1", "SyntaxError"),
        ("print(1)\n1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_script_that_does_not_end_well_fails(judge, program, words):
    verdict = judge(script(("", "1")), program)
    assert not verdict.success and words in verdict.feedback


@pytest.mark.parametrize(
    "program",
    [
        "def shift(xs, by):\n    return [x + by for x in xs]",
        "class Solution:\n    def shift(self, xs, by):\n        return [x + by for x in xs]",
    ],
)
def test_a_named_function_may_be_a_method_of_solution(judge, program):
    asked = question(tests=[{"input": "[1, 2]\n3", "output": "[4, 5]"}], fn_name="shift")
    assert judge(asked, program).success
    assert "NameError" in judge(asked, "def other():\n    pass").feedback


def test_a_test_that_comes_to_no_assert_passes_unless_what_prepares_it_raised(judge):
    code = "def check(candidate):\n    assert candidate(1) == 1 + 0 * len(str())\n"
    code += "    for x in candidate(2):\n        assert x == 0\n    y = candidate(3) + 1\n    assert y == 4\n"
    asked = check(code, "def f(x):\n    '''Odd.'''\n", "f")
    assert judge(asked, "def f(x):\n    return {1: 1, 2: [], 3: 3}[x]").passed == 1.0
    assert judge(asked, "def f(x):\n    return {1: 1, 2: [], 3: 'a'}[x]").passed == 2 / 3
    assert judge(asked, "def f(x):\n    return {1: 1, 2: [1], 3: 3}[x]").passed == 2 / 3


def test_numbers_are_text_unless_a_tolerance_is_given(judge):
    assert not same_tokens("1.0", "1") and same_tokens("1.0 a", "1 a", 1e-6)
    assert not same_tokens("nan", "1", 1e-6) and not same_tokens("1 2", "1", 1e-6) and not same_tokens("b", "a", 1.0)
    assert judge(script(("", "0.333333"), tolerance=1e-4), "print(1 / 3)").success
    assert not judge(script(("", "0.333333")), "print(1 / 3)").success


def test_verdicts_come_in_order_and_equal_programs_run_once(verifier, monkeypatch):
    ran = []
    run = verifier.sandbox.run
    monkeypatch.setattr(verifier.sandbox, "run", lambda *args, **named: ran.append(1) or run(*args, **named))
    one, other = asserts("assert f(1) == 1"), asserts("assert f(1) == 2")
    programs = ["def f(x):\n    return 1", "def f(x):\n    return 2", "def f(x):\n    return 1\n"]
    asked = [one, one, one, other, other, other]
    verdicts = verifier.verify(asked, [f"```python\n{program}\n```" for program in programs * 2])
    assert [verdict.success for verdict in verdicts] == [True, False, True, False, True, False]
    assert len(ran) == 4


HOSTILE = (
    "import os\nwhile True:\n    os.fork()",
    "import os, signal\nos.kill(-1, signal.SIGKILL)\nos.kill(os.getppid(), signal.SIGKILL)",
    "held = []\nwhile True:\n    held.append('x' * 10**7)",
    "import sys\nwhile True:\n    sys.stdout.write('{}' * 10**6)",
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
)


def test_hostile_programs_spoil_no_verdict_beside_them_nor_the_next_batch(verifier):
    right = "def f(x):\n    return x"
    programs = [program for one in HOSTILE for program in (right, one)]
    asked = asserts("assert f(1) == 1")
    for batch in (programs, [right] * 3):
        with verifying(verifier) as verified:
            for place, program in enumerate(batch):
                verified.add((0, place), Rollout(asked, place, (), (), None, f"```python\n{program}\n```", "stop"))
            [group] = verified.groups(1, len(batch))
        assert [verdict.success for verdict in group.verdicts] == [program == right for program in batch]


def test_any_thread_may_ask_and_close_may_be_followed_by_more():
    verifier = UnitTestVerifier(workers=2)
    asked = asserts("assert f(1) == 1")
    found = []

    def ask(value):
        program = f"```python\ndef f(x):\n    return {value}\n```"
        found.append((value, verifier.verify([asked], [program])[0].success))

    threads = [threading.Thread(target=ask, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(0, False), (1, True), (2, False), (3, False)]
    verifier.close()
    ask(1)
    assert found[-1] == (1, True)
    verifier.close()
    verifier.close()


def test_programs_are_equivalent_when_their_text_is(verifier):
    assert verifier.equivalent("x = 1\n", " x = 1") and not verifier.equivalent("x = 1", "x = 2")


def test_without_isolation_nothing_runs(monkeypatch):
    monkeypatch.setattr("selfdistill.sandbox.sandbox.fault", lambda name: "not here")
    with pytest.raises(SandboxError, match="allow_unsandboxed"):
        UnitTestVerifier()
