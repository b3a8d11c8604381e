"""`selfdistill serve`: the commands that it prints, and the servers that it runs."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from selfdistill import cli
from selfdistill.errors import RecipeError, RolloutError
from selfdistill.rollouts.serve import ServeCommand, serve_commands, served_model
from selfdistill.rollouts.serve_processes import run_servers
from selfdistill.rollouts.vllm_arguments import as_flags, devices_per_engine
from selfdistill.rollouts.vllm_install import VARIABLE, VllmInstall, find_vllm, probe
from selfdistill.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "recipes" / "embedded" / "sc_sdpo.yaml"
GPU_VLLM = VllmInstall(Path("envs/gpu/bin/python"), "vllm", "0.32.0")
CPU_VLLM = VllmInstall(Path("envs/my cpu/bin/python"), "vllm-cpu", "0.32.0")


def commands_for(path, *overrides, install=GPU_VLLM, source="model") -> list[ServeCommand]:
    recipe = load_recipe(path, ["rollouts.engine=vllm_server", *overrides])
    return serve_commands(
        recipe.model, recipe.rollouts, recipe.needs(), source=source, seed=recipe.train.seed, install=install
    )


def flags(command: ServeCommand) -> dict[str, list[str]]:
    """Return the words behind each flag."""
    found: dict[str, list[str]] = {}
    for word in command.words:
        if word.startswith("--"):
            found[word] = []
        elif found:
            found[list(found)[-1]].append(word)
    return found


@pytest.fixture
def cuda(monkeypatch):
    """Return a function that pretends that there are so many GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return pretend


def test_adapters_on_a_gpu(cuda) -> None:
    cuda(1)
    (command,) = commands_for(ROOT / "recipes" / "paint" / "qwen3-1.7b.yaml", "rollouts.vllm.memory=0.4")
    found = flags(command)
    assert command.words[:3] == ("vllm", "serve", "model")
    assert found["--enable-lora"] == [] and found["--max-lora-rank"] == ["64"] and found["--max-loras"] == ["2"]
    assert found["--lora-target-modules"][:2] == ["q_proj", "k_proj"]
    assert found["--dtype"] == ["bfloat16"] and found["--gpu-memory-utilization"] == ["0.4"]
    assert found["--enable-scale-out"] == [] and found["--generation-config"] == ["vllm"]
    assert found["--host"] == ["127.0.0.1"] and found["--port"] == ["8000"]
    assert command.environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert command.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert not {"--weight-transfer-config", "--enforce-eager", "--trust-remote-code", "--revision"} & found.keys()


def test_all_weights_on_gpus_are_received_by_vllms_weight_transfer(cuda) -> None:
    cuda(2)
    (command,) = commands_for(EMBEDDED)
    assert json.loads(flags(command)["--weight-transfer-config"][0]) == {"backend": "nccl"}
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "1"  # the trainer takes the first
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in command.environment
    (within,) = commands_for(EMBEDDED, "rollouts.server.sync=ipc")
    assert json.loads(flags(within)["--weight-transfer-config"][0]) == {"backend": "ipc"}
    assert "CUDA_VISIBLE_DEVICES" not in within.environment
    assert within.environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    (folder,) = commands_for(EMBEDDED, "rollouts.server.sync=folder")
    assert "--weight-transfer-config" not in flags(folder)


def test_on_a_cpu_the_wheels_own_command_is_not_used() -> None:
    (command,) = commands_for(EMBEDDED, "model.device=cpu", install=CPU_VLLM)
    found = flags(command)
    assert command.words[:3] == ("envs/my cpu/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert found["--model"] == ["model"]
    assert found["--enforce-eager"] == [] and found["--dtype"] == ["float32"]
    assert int(found["--kv-cache-memory-bytes"][0]) % 2**30 == 0
    assert "--gpu-memory-utilization" not in found and "--weight-transfer-config" not in found
    assert command.environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"


def test_a_cpu_wheel_serves_on_the_cpu_even_beside_a_gpu(cuda) -> None:
    cuda(4)
    (command,) = commands_for(EMBEDDED, install=CPU_VLLM)
    assert "--enforce-eager" in flags(command) and "CUDA_VISIBLE_DEVICES" not in command.environment


@pytest.mark.parametrize(("rank", "served"), [(1, "1"), (2, "8"), (16, "16"), (65, "128"), (257, "320"), (512, "512")])
def test_ranks_are_rounded_up_to_what_vllm_knows(rank, served) -> None:
    (command,) = commands_for(EMBEDDED, "model.device=cpu", f"model.lora.r={rank}")
    assert flags(command)["--max-lora-rank"] == [served]


def test_a_rank_beyond_vllms_largest_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"model.lora.r is 513.*512 at most"):
        commands_for(EMBEDDED, "model.device=cpu", "model.lora.r=513")


def test_log_probabilities_are_asked_for_as_the_recipe_needs_them() -> None:
    (plain,) = commands_for(EMBEDDED, "model.device=cpu")
    (truncated,) = commands_for(EMBEDDED, "model.device=cpu", "rollouts.sampling.top_k=5")
    assert flags(plain)["--logprobs-mode"] == ["processed_logprobs"]
    assert flags(truncated)["--logprobs-mode"] == ["raw_logprobs"]


def test_options_become_flags_and_win() -> None:
    (command,) = commands_for(
        EMBEDDED,
        "model.device=cpu",
        "rollouts.vllm.options={max_model_len: 256, max_num_seqs: 9, enforce_eager: false, "
        "enable_prefix_caching: true, hf_overrides: {a b: 1}, seed: null}",
    )
    found = flags(command)
    assert found["--max-model-len"] == ["256"] and found["--max-num-seqs"] == ["9"]
    assert "--no-enforce-eager" in found and "--enforce-eager" not in found and "--enable-prefix-caching" in found
    assert json.loads(found["--hf-overrides"][0]) == {"a b": 1}


def test_an_option_that_is_no_python_name_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"'--max-model-len' is no .*did you mean 'max_model_len'"):
        commands_for(EMBEDDED, "model.device=cpu", "rollouts.vllm.options={--max-model-len: 5}")


def test_flags_of_every_kind() -> None:
    assert as_flags({"a_b": True, "c": False, "d": None, "e": [1, "x y"], "f": {"g": [1]}, "h": 0.5}) == [
        *("--a-b", "--no-c", "--e", "1", "x y", "--f", '{"g": [1]}', "--h", "0.5")
    ]
    assert devices_per_engine({"tensor_parallel_size": 2, "pipeline_parallel_size": 3}) == 6


def test_its_own_code_runs_only_where_the_recipe_says_so() -> None:
    (command,) = commands_for(EMBEDDED, "model.device=cpu", "model.trust_remote_code=true")
    assert "--trust-remote-code" in flags(command)


def test_a_revision_goes_with_a_hub_id_only() -> None:
    (hub,) = commands_for(EMBEDDED, "model.device=cpu", "model.revision=abc", source="owner/name")
    (folder,) = commands_for(EMBEDDED, "model.device=cpu", "model.revision=abc", source=str(ROOT))
    assert flags(hub)["--revision"] == ["abc"] and "--revision" not in flags(folder)
    assert "HF_HUB_OFFLINE" in folder.environment and "HF_HUB_OFFLINE" not in hub.environment


def test_every_server_here_gets_gpus_of_its_own_if_there_are_enough(cuda) -> None:
    cuda(5)
    urls = "rollouts.server.urls=[http://127.0.0.1:1, http://192.0.2.1:2, http://localhost:3]"
    one, far, two = commands_for(EMBEDDED, urls, "rollouts.vllm.options.tensor_parallel_size=2")
    assert one.environment["CUDA_VISIBLE_DEVICES"] == "1,2" and two.environment["CUDA_VISIBLE_DEVICES"] == "3,4"
    assert "CUDA_VISIBLE_DEVICES" not in far.environment
    cuda(3)
    few = commands_for(EMBEDDED, urls, "rollouts.vllm.options.tensor_parallel_size=2")
    assert all("CUDA_VISIBLE_DEVICES" not in command.environment for command in few)


def test_addresses_elsewhere_are_printed_with_a_remark() -> None:
    urls = "rollouts.server.urls=[http://127.0.0.1:1, http://192.0.2.1:2, https://localhost]"
    here, far, secure = commands_for(EMBEDDED, "model.device=cpu", urls, install=CPU_VLLM)
    assert (here.local, far.local, secure.local) == (True, False, True)
    assert here.remarks == () and "Not an address of this machine" in far.remarks[0] and "https" in secure.remarks[0]
    assert far.words[:3] == ("vllm", "serve", "model")  # this machine's paths are nothing to that one
    assert flags(secure)["--port"] == ["443"]


def test_a_line_survives_the_shell(tmp_path) -> None:
    words = (
        sys.executable,
        "-c",
        "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['A']]))",
        'a "b" $c',
    )
    line = ServeCommand("http://127.0.0.1:1", words, {"A": "x y; $z"}, None, True, ()).line()
    assert "\n" not in line
    printed = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [['a "b" $c'], "x y; $z"]


def test_the_key_is_named_and_never_printed(monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    (command,) = commands_for(EMBEDDED, "model.device=cpu", "rollouts.server.api_key_variable=MY_KEY")
    assert 'VLLM_API_KEY="$MY_KEY"' in command.line() and "secret" not in command.line()


def test_with_adapters_the_models_own_folder_is_served_and_nothing_is_loaded(tmp_path, monkeypatch) -> None:
    recipe = load_recipe(EMBEDDED, ["model.lora.r=8"])
    monkeypatch.setattr("selfdistill.rollouts.serve.load_policy", None)
    assert Path(served_model(recipe.model, 0, tmp_path / "served")).name == "embedded"
    assert not (tmp_path / "served").exists()


def test_full_training_of_a_tied_model_is_served_from_an_untied_copy(tmp_path) -> None:
    served = Path(served_model(load_recipe(EMBEDDED).model, 0, tmp_path / "served"))
    assert served == tmp_path / "served"
    assert json.loads((served / "config.json").read_text())["tie_word_embeddings"] is False


def test_full_training_of_an_untied_model_needs_no_copy(tmp_path, monkeypatch) -> None:
    own = served_model(load_recipe(EMBEDDED).model, 0, tmp_path / "own")
    monkeypatch.setattr("selfdistill.rollouts.serve.load_policy", None)
    recipe = load_recipe(EMBEDDED, [f"model.path={own}"])
    assert served_model(recipe.model, 0, tmp_path / "served") == own


# What is installed


def test_an_interpreter_without_vllm_is_none(monkeypatch, tmp_path) -> None:
    assert probe(tmp_path / "no python") is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no python"))
    assert find_vllm() is None


@pytest.mark.parametrize(("distribution", "cpu"), [("vllm", False), ("vllm-cpu", True)])
def test_an_interpreter_says_what_it_has(tmp_path, distribution, cpu) -> None:
    python = tmp_path / "bin" / "python"
    fake_program(python, f"import json; print(json.dumps({{{distribution!r}: '0.32.0'}}))")
    install = find_vllm(str(python))
    assert install == VllmInstall(python, distribution, "0.32.0") and install.cpu is cpu
    assert install.server_command()[0] == (str(python) if cpu else "vllm")
    fake_program(tmp_path / "bin" / "vllm", "")
    assert install.server_command()[0] == str(python if cpu else tmp_path / "bin" / "vllm")


# Running


def fake_program(path: Path, code: str) -> Path:
    """Write a program that runs ``code``."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(code)}")
    path.chmod(0o755)
    return path


SERVER = """
import os, signal, subprocess, sys, time
here = sys.argv[1]
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
def end(*_):
    open(here + ".ended", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in here else end)
with open(here + ".part", "w") as file:
    file.write(f"{os.getpid()} {worker.pid} {os.environ.get('VLLM_API_KEY')}")
os.rename(here + ".part", here)
time.sleep(60)
"""
RUN = """
import sys
from selfdistill.errors import RolloutError
from selfdistill.rollouts.serve import ServeCommand
from selfdistill.rollouts.serve_processes import run_servers
commands = [
    ServeCommand(f"http://127.0.0.1:{index + 1}", (sys.argv[1], name), {}, None, True, ())
    for index, name in enumerate(sys.argv[2:])
]
try:
    sys.exit(run_servers(commands, end_seconds=0.5))
except RolloutError as error:
    sys.exit(f"failed: {error}")
"""


def started(path: Path) -> tuple[int, int]:
    """Wait until a fake server runs; return its process id and its worker's."""
    for _ in range(1000):
        if path.exists():
            server, worker, _ = path.read_text().split()
            return int(server), int(worker)
        signal.sigtimedwait([], 0.02)
    raise AssertionError(f"{path.name} did not start")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def supervisor(tmp_path):
    """Return a function that runs `run_servers` in a process of its own, over fake servers of these names."""
    program = fake_program(tmp_path / "bin" / "server", SERVER)
    running = []

    def start(*names: str) -> tuple[subprocess.Popen[str], list[tuple[int, int]]]:
        files = [tmp_path / name for name in names]
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(program), *map(str, files)],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process, [started(file) for file in files]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_server_and_what_it_started(supervisor, tmp_path, number) -> None:
    process, servers = supervisor("one", "two")
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert (tmp_path / "one.ended").exists() and (tmp_path / "two.ended").exists()
    assert not any(is_running(child) for pair in servers for child in pair)


def test_a_server_that_does_not_end_is_killed(supervisor) -> None:
    process, servers = supervisor("stubborn")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert not any(is_running(child) for pair in servers for child in pair)


def test_when_one_server_dies_the_others_end_and_the_message_says_which(supervisor, tmp_path) -> None:
    process, servers = supervisor("one", "two")
    os.kill(servers[1][0], signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "failed: the server at http://127.0.0.1:2 ended by SIGKILL" in errors
    assert (tmp_path / "one.ended").exists()
    assert not any(is_running(child) for pair in servers for child in pair)


def test_what_cannot_be_run_is_refused(monkeypatch) -> None:
    with pytest.raises(RolloutError, match="no address of this machine"):
        run_servers([ServeCommand("http://192.0.2.1:1", ("x",), {}, None, False, ())])
    with pytest.raises(RolloutError, match=r"could not be started: no/such/program.*--python"):
        run_servers([ServeCommand("http://127.0.0.1:1", ("no/such/program",), {}, None, True, ())])
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(RolloutError, match="NO_KEY, which is not set"):
        run_servers([ServeCommand("http://127.0.0.1:1", ("x",), {}, "NO_KEY", True, ())])
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(RolloutError, match=f"already listens at {url}"):
            run_servers([ServeCommand(url, ("x",), {}, None, True, ())])


# The command


@pytest.fixture
def fake_vllm(tmp_path, monkeypatch) -> Path:
    """An interpreter that says it has vLLM for CPUs; started as a server it prints its words and fails."""
    code = """
    import json, sys
    if "-c" in sys.argv:
        print(json.dumps({"vllm-cpu": "0.32.0"}))
    else:
        print("started", *sys.argv[1:], flush=True)
        sys.exit(3)
    """
    program = fake_program(tmp_path / "bin" / "python", code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, str(program))
    return program


def test_serve_prints_a_script_with_remarks_as_comments(fake_vllm, capsys) -> None:
    assert cli.main(["serve", str(EMBEDDED), "model.lora.r=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# The recipe samples with transformers: train it with rollouts.engine=vllm_server."
    assert lines[1] == "# http://127.0.0.1:8000" and len(lines) == 3
    words = shlex.split(lines[2])
    assert "VLLM_SERVER_DEV_MODE=1" in words and str(fake_vllm) in words


def test_serve_runs_the_servers_and_says_which_one_ended(fake_vllm, capfd) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    arguments = ["serve", str(EMBEDDED), "--run", "rollouts.engine=vllm_server", f"rollouts.server.urls={url}"]
    assert cli.main([*arguments, "model.lora.r=8"]) == 1
    out, err = capfd.readouterr()
    assert "started -m vllm.entrypoints.openai.api_server --model" in out
    assert err == (
        f"selfdistill: the server at {url} ended with exit code 3, so the others were ended too; "
        "read what it printed above, and start again\n"
    )


def test_serve_without_vllm_prints_the_command_and_the_remedy(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no python"))
    arguments = ["serve", str(EMBEDDED), "model.lora.r=8", "model.device=cpu"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "vLLM was not found; install it" in out and " vllm serve " in out
    assert cli.main([*arguments, "--run"]) == 1
    assert "vLLM is not installed; install it" in capsys.readouterr().err
    assert cli.main([*arguments, "--python", "nowhere"]) == 1
    assert "vLLM is not installed for nowhere" in capsys.readouterr().err
