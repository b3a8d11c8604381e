"""Runs on Ray: workers, restarts, stops and errors look like those of one process; servers are kept alive.

One cluster of this machine, on loopback, serves all tests but the one that starts its own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selfdistill import cli
from selfdistill.errors import RolloutError
from selfdistill.parallel.failures import Failure
from selfdistill.parallel.ray_cluster import RayOptions
from selfdistill.parallel.ray_cluster import cluster as own_cluster
from selfdistill.parallel.ray_command import _again, _explained
from selfdistill.parallel.ray_servers import ServerActor, Servers
from selfdistill.parallel.ray_worker import Relay, RelayProgress, Replay, relative_paths
from selfdistill.training.progress import NullProgress
from selfdistill.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "embedded" / "grpo.yaml"
FAKE_SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *words): pass
print("started with", sys.argv[1], flush=True)
HTTPServer((sys.argv[3], int(sys.argv[5])), Answer).serve_forever()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster with room for every test; its address."""
    ray = pytest.importorskip("ray", reason="ray is not installed: `make ray` installs it")
    pytest.importorskip("ray.train.torch", reason="ray's train extra is not installed: `make ray` installs it")
    with own_cluster(RayOptions(workers=4)):
        yield ray.get_runtime_context().gcs_address


def train(words: list[str], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selfdistill", "train", *words]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_that_loses_a_worker_completes_by_itself_and_has_every_step_once(
    tmp_path, cluster, run_words, quiet_environment, logged_steps
) -> None:
    words = [*run_words("run", reward="deadly", steps=6), "--ray", "--workers", "2", "--address", cluster]
    done = train([*words, "--max-failures", "1"], quiet_environment, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    assert done.stdout == f"run folder: {tmp_path / 'run'}\n"
    assert logged_steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    shown = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("step ")]
    assert shown[0] == "1" and shown[-1] == "6"
    assert "started again from the last checkpoint (failure 1 of at most 1)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_is_wrong_with_the_recipe_is_one_line_and_not_tried_again(
    tmp_path, cluster, run_words, quiet_environment
) -> None:
    words = [*run_words("run", "data.train=missing.jsonl"), "--ray", "--workers", "1", "--address", cluster]
    done = train([*words, "--max-failures", "3"], quiet_environment, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    said = [line for line in done.stderr.splitlines() if line.startswith("selfdistill: ")]
    assert len(said) == 1 and "missing.jsonl" in said[0]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_on_an_own_cluster_stops_with_a_checkpoint_says_how_to_go_on_and_leaves_nothing(
    tmp_path, run_words, quiet_environment, logged_steps
) -> None:
    pytest.importorskip("ray.train.torch", reason="ray is not installed: `make ray` installs it")
    before = set(Path(tempfile.gettempdir()).glob("sd-ray-*"))
    words = [*run_words("run", steps=1000), "--ray", "--workers", "2"]
    command = [sys.executable, "-m", "selfdistill", "train", *words]
    process = subprocess.Popen(
        command, env=quiet_environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: process.poll() is not None or (metrics.exists() and metrics.read_bytes().count(b"\n") > 1), 120)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert re.match(r"stopped after step \d+ of 1000; go on with: selfdistill train ", out)
    assert out.endswith("--resume --ray --workers 2\n")
    done = int(out.split()[3])
    assert logged_steps(tmp_path / "run") == list(range(1, done + 1))
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:06d}").is_dir()
    assert set(Path(tempfile.gettempdir()).glob("sd-ray-*")) <= before


@pytest.fixture
def server_settings(tmp_path) -> dict[str, object]:
    program = tmp_path / "server.py"
    program.write_text(FAKE_SERVER)
    return {
        "recipe": load_recipe(RECIPE, [f"output.folder={tmp_path / 'run'}"]).to_yaml(),
        "overrides": [],
        "folder": str(tmp_path),
        "relative": [],
        "own_servers": True,
        "server_program": (sys.executable, str(program)),
        "secrets": {},
    }


def test_a_server_that_dies_comes_back_at_its_address_and_all_end_with_the_run(
    tmp_path, cluster, server_settings
) -> None:
    from selfdistill.parallel import ray_servers

    said: list[str] = []
    servers = Servers(server_settings, 2, gpus=0, logs=tmp_path / "logs", say=said.append, start_seconds=60)
    with servers:
        urls = servers.urls
        assert len(set(urls)) == 2 and all(url.startswith("http://127.0.0.1:") for url in urls)
        for one in server_processes(tmp_path):
            assert os.getpriority(os.PRIO_PROCESS, one) == os.getpriority(os.PRIO_PROCESS, 0)
            os.kill(one, signal.SIGKILL)
        until(lambda: sum("starting it again (1 of 5 times)" in line for line in said) == 2)
        until(lambda: all(map(ray_servers._answers, urls)))
        ray = sys.modules["ray"]
        ray.kill(servers._servers[0].actor)
        until(lambda: any("is gone with its actor" in line for line in said))
        until(lambda: all(map(ray_servers._answers, urls)))
        assert servers.urls == urls
    until(lambda: not server_processes(tmp_path), 10)
    assert (tmp_path / "logs" / "server-0.log").read_text().count("started with ") == 3


def test_a_server_that_cannot_start_is_one_error_that_names_its_log(tmp_path, cluster, server_settings) -> None:
    broken = server_settings | {"server_program": (sys.executable, "-c", "raise SystemExit(3)")}
    with pytest.raises(RolloutError, match=r"ended with exit code 3; see .*server-0\.log"):
        Servers(broken, 1, gpus=0, logs=tmp_path / "logs", say=lambda text: None, start_seconds=60).__enter__()


def server_processes(folder: Path) -> list[int]:
    """Return the processes that run this test's fake server."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if str(folder / "server.py").encode() in words and words[1] != b"-c":
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_nothing_of_a_cluster_of_this_machine_can_be_reached_from_outside(cluster) -> None:
    assert cluster.startswith("127.0.0.1:")


def test_an_address_without_a_cluster_is_one_error(capsys) -> None:
    pytest.importorskip("ray.train.torch", reason="ray is not installed: `make ray` installs it")
    assert cli.main(["train", str(RECIPE), "--ray", "--address", "127.0.0.1:9"]) == 1
    assert "--address 127.0.0.1:9: there is no Ray cluster (" in capsys.readouterr().err


def test_without_ray_the_command_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["train", str(RECIPE), "--ray"]) == 1
    assert "pip install 'selfdistill[ray]'" in capsys.readouterr().err


class Said(NullProgress):
    def __init__(self) -> None:
        self.calls: list[object] = []

    def advance(self, n: int) -> None:
        self.calls.append(n)

    def message(self, text: str) -> None:
        self.calls.append(text)

    def step_line(self, metrics, total=None) -> None:
        self.calls.append((metrics["step"], total))


def test_what_a_worker_shows_is_shown_again_in_order_and_amounts_are_added_up() -> None:
    progress, said = RelayProgress(), Said()
    with progress.phase("sampling", 10):
        for _ in range(5):
            progress.advance(2)
        progress.responses(1, 2, 10)
    progress.step_line({"step": 1}, 3)
    progress.message("done")
    events = progress.take()
    assert [event[0] for event in events] == ["phase", "advance", "responses", "end", "step_line", "message"]
    Replay(said).show(events)
    assert said.calls == [10, (1, 3), "done"] and progress.take() == []


def test_a_restarted_attempt_is_told_with_what_ended_the_one_before() -> None:
    relay = Relay()
    assert relay.begin() == 0
    relay.fail({"rank": 1, "kind": "run", "text": "out of disk", "at": 1.0})
    assert relay.begin() == 1
    (event,), attempts, hopeless = relay.take()
    assert (event[0], event[1][0]["text"], event[2]) == ("restart", "out of disk", 1)
    assert (attempts, hopeless) == (2, False)
    assert relay.exchange([("message", "x")]) is False
    relay.stop()
    assert relay.exchange([]) is True
    relay.fail({"rank": 1, "kind": "input", "text": "no file", "at": 1.0})
    assert relay.begin() == -1 and relay.take()[1:] == (2, True)


def test_the_error_of_a_worker_is_the_users_error() -> None:
    own = Failure(1, "run", "the engine is gone; start it", 2.0)
    peer = Failure(0, "peer", "process 1 of 2 failed: the engine is gone; start it", 1.0)
    assert str(_explained({0: "x", 1: "y"}, [peer, own])) == "the engine is gone; start it"
    gone = str(_explained({0: "TrainingError: x", 1: "ActorDiedError: The actor died"}, [peer]))
    assert gone.startswith("the worker of rank 1 is gone (ActorDiedError: The actor died)") and "--max-failures" in gone
    assert "no room" in str(_explained("ControllerError: no room", []))


def test_how_to_go_on_names_what_the_run_was_given() -> None:
    words = ["train", "run.yaml", "train.steps=9", "--ray", "--workers", "2", "--address", "10.0.0.1:6379"]
    words += ["--cpus-per-worker", "0.5"]
    assert _again(cli.parse(words)) == (
        "selfdistill train run.yaml train.steps=9 --resume --ray --workers 2 --address 10.0.0.1:6379 "
        "--cpus-per-worker 0.5"
    )


def test_relative_paths_of_a_recipe_are_found(tmp_path) -> None:
    (tmp_path / "rows.jsonl").touch()
    recipe = load_recipe(RECIPE, ["data.task=custom", "data.train=rows.jsonl", "data.reward=rewards.py:f"])
    assert relative_paths(recipe, tmp_path) == ["rows.jsonl"]


def test_an_actor_without_a_server_has_nothing_to_end(server_settings) -> None:
    folder = Path.cwd()
    try:
        actor = ServerActor(server_settings)
        assert actor.poll() is None
        actor.end()
    finally:
        os.chdir(folder)
    assert threading.active_count() >= 1
