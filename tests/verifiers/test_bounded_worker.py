import os
import signal

import pytest

from selfdistill.errors import SelfDistillError
from selfdistill.verifiers.worker import BoundedWorker, WorkerFault

TARGETS = """
import os, sys

def double(x):
    print("noise on the standard output")
    return 2 * x

def misbehave(how):
    if how == "hang":
        while True:
            pass
    if how == "one long call in C":
        return len(str(10 ** (10 ** 9)))
    if how == "die":
        os._exit(3)
    if how == "memory":
        return len(bytearray(4 << 30))
    if how == "recursion":
        return misbehave(how)
    if how == "raise":
        raise KeyError("x")
    return os.getpid()
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "worker_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(tmp_path)
    workers = []

    def make(name, **settings):
        workers.append(BoundedWorker(f"worker_targets:{name}", **{"timeout": 5.0, **settings}))
        return workers[-1]

    yield make
    for made in workers:
        made.close()


def test_a_child_serves_many_calls_and_its_prints_do_no_harm(worker):
    doubling = worker("double")
    assert [doubling.call(x=x) for x in (1, "a", [2])] == [2, "aa", [2, 2]]
    assert doubling.starts == 1


@pytest.mark.parametrize("how", ["hang", "one long call in C"])
def test_a_call_that_takes_too_long_is_killed_and_the_next_one_works(worker, how):
    target = worker("misbehave", timeout=0.5)
    with pytest.raises(WorkerFault, match=r"more than 0\.5 s") as fault:
        target.call(how=how)
    assert fault.value.kind == "timeout"
    assert isinstance(target.call(how="no"), int)
    assert target.starts == 2


@pytest.mark.parametrize("how", ["die", "memory", "recursion", "raise"])
def test_a_call_that_fails_is_a_fault_and_the_next_one_works(worker, how):
    target = worker("misbehave")
    with pytest.raises(WorkerFault) as fault:
        target.call(how=how)
    assert fault.value.kind == "crash"
    assert isinstance(target.call(how="no"), int)


def test_closing_ends_the_process(worker):
    target = worker("misbehave")
    pid = target.call(how="no")
    target.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_target_that_does_not_import_is_one_clear_error(worker):
    with pytest.raises(SelfDistillError, match=r"worker_targets:absent did not start: AttributeError.*doctor"):
        worker("absent").call()


def test_a_child_ends_itself_when_its_parent_never_comes_back(worker):
    target = worker("misbehave", timeout=0.2)
    child = target._running_child()
    child.send({"how": "hang"})
    assert child.process.wait(timeout=60) == -signal.SIGALRM
