from __future__ import annotations

import base64
import contextlib
import dataclasses
import pickle
import sys
import threading
import types
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from selfdistill.errors import RolloutError
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.sync import base_folder, make_sync, transfer
from selfdistill.rollouts.sync.handshake import Stale
from selfdistill.rollouts.sync.transfer import TransferSync


@dataclass(frozen=True)
class ParamMeta:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class InitInfo:
    rank: int
    master_address: str = ""
    master_port: int = 0
    world_size: int = 0


class TrainerEngine:
    """Behaves as vLLM's trainer engines do: connects at first, and finishes each update itself."""

    made: ClassVar[list[TrainerEngine]] = []

    def __init__(self, info: InitInfo, client: Any, source: Any) -> None:
        self.info, self.client, self.source, self.open = info, client, source, True
        self.made.append(self)
        client.init_weight_transfer_engine({"world_size": info.world_size})

    def send_weights(self) -> None:
        declared = [(meta.name, meta.dtype, meta.shape) for meta in self.source.metadata()]
        sent = dict(self.source)
        assert declared == [(name, weight.dtype, tuple(weight.shape)) for name, weight in sent.items()]
        assert not any(weight.requires_grad for weight in sent.values())
        self.client.start_weight_update()
        self.client.update_weights(sent)
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.open = False


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    """A stand-in for the parts of vLLM that are used."""
    TrainerEngine.made = []

    class Factory:
        @staticmethod
        def trainer_init(info, *, client, source):
            return TrainerEngine(info, client, source)

    package = "vllm.distributed.weight_transfer"
    contents = {
        "vllm": {},
        "vllm.distributed": {},
        package: {},
        f"{package}.base": {"ParamMeta": ParamMeta, "materialize_full_tensor": lambda tensor: tensor},
        f"{package}.factory": {"WeightTransferTrainerFactory": Factory},
        f"{package}.nccl_engine": {"NCCLTrainerInitInfo": InitInfo},
        f"{package}.ipc_engine": {"IPCTrainerInitInfo": InitInfo},
    }
    modules = {name: types.ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name])
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(params=["nccl", "ipc"])
def sync(request, full_policy):
    return TransferSync(full_policy, request.param, 1e-3, "127.0.0.1")


@pytest.fixture
def nccl(full_policy):
    return TransferSync(full_policy, "nccl", 1e-3, "127.0.0.1")


@pytest.fixture
def engine(fake_control, full_policy, tmp_path):
    return fake_control(base_folder(full_policy, tmp_path / "base"))


def test_each_of_three_versions_of_a_tied_model_is_proven(sync, engine, full_policy, change):
    for step in range(3):
        change(full_policy, step)
        served = sync.export(f"step-{step}")
        report = sync.push(engine)

        assert report.version == served.version == engine.version() and served.adapter is None
        assert report.max_difference < 1e-4


def test_an_update_goes_in_order_and_the_version_goes_along_when_it_is_finished(sync, engine):
    name = sync.export("step-1").version

    sync.push(engine)

    assert engine.calls == [
        "init_weight_transfer_engine",
        "pause",
        f"set_version updating to {name}",
        "start_weight_update",
        "update_weights",
        f"finish_weight_update {name}",
        "reset_prefix_cache",
        "resume",
        "draw",
    ]


def test_handles_of_gpu_memory_travel_as_text(sync, engine):
    handles = [{"GPU-1": (torch.float32, (1, 2))}]
    received = []
    engine.update_weights = received.append
    sync.export("step-1")
    with contextlib.suppress(RolloutError):  # nothing was loaded, so the proof fails
        sync.push(engine)
    client = TrainerEngine.made[-1].client
    client.update_weights({"names": ["w"], "ipc_handles": handles})

    assert received[-1].keys() == {"names", "ipc_handles_pickled"}
    assert pickle.loads(base64.b64decode(received[-1]["ipc_handles_pickled"])) == handles


def test_engine_and_trainer_connect_once(sync, engine):
    for step in range(3):
        sync.export(f"step-{step}")
        sync.push(engine)

    assert engine.calls.count("init_weight_transfer_engine") == len(TrainerEngine.made) == 1


def test_nccl_has_a_port_per_engine_and_counts_the_trainer_among_the_workers(nccl, engine, fake_control):
    other = fake_control(engine.base, name="http://engine:8001")
    nccl.export("step-1")
    nccl.push(engine)
    nccl.push(other)

    first, second = (made.info for made in TrainerEngine.made)
    assert first.rank == 0 and first.master_address == "127.0.0.1" and first.world_size == 3
    assert first.master_port > 0 and second.master_port > 0


def test_the_bytes_are_those_of_the_weights_and_of_the_head_under_its_own_name(sync, engine, full_policy):
    sync.export("step-1")

    model = full_policy.model
    expected = sum(w.numel() * 4 for w in model.parameters()) + model.lm_head.weight.numel() * 4
    assert sync.push(engine).bytes == expected


def test_an_engine_that_restarts_is_connected_anew(sync, engine, full_policy, change):
    change(full_policy, 1)
    sync.export("step-1")
    sync.push(engine)
    engine.restart()

    assert sync.push(engine).max_difference < 1e-4
    assert [made.open for made in TrainerEngine.made] == [False, True]


def test_weights_that_have_moved_on_are_not_passed_off_as_those_of_the_export(sync, engine, full_policy, change):
    sync.export("step-1")
    change(full_policy, 1)

    with pytest.raises(RolloutError, match=r"no longer those of '.*-step-1' and cannot be sent as such"):
        sync.push(engine)

    assert engine.calls == []


def test_an_optimiser_step_counts_as_moved_on(sync, engine, full_policy):
    sync.export("step-1")
    optimizer = torch.optim.AdamW(full_policy.model.parameters(), lr=1e-6)
    full_policy.model(torch.arange(4, 20)[None]).logits.sum().backward()
    optimizer.step()

    with pytest.raises(RolloutError, match="no longer those of"):
        sync.push(engine)


def test_weights_that_move_during_the_transfer_are_refused(sync, engine, full_policy, change):
    name = sync.export("step-1").version
    receive = engine.update_weights

    def meanwhile(info):
        receive(info)
        change(full_policy, 1)

    engine.update_weights = meanwhile

    with pytest.raises(RolloutError, match="no longer those of"):
        sync.push(engine)
    assert engine.running and engine.version() != name


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.layers.1."])
def test_a_half_updated_engine_is_stale(sync, engine, full_policy, change, kept):
    change(full_policy, 1)
    name = sync.export("step-1").version
    engine.kept = lambda weight: weight.startswith(kept)

    with pytest.raises(Stale):
        sync.push(engine)
    assert engine.version() == f"not proven to be {name}"


@pytest.mark.parametrize(
    "method", ["init_weight_transfer_engine", "start_weight_update", "update_weights", "reset_prefix_cache"]
)
def test_after_a_failure_the_engine_serves_unproven_and_the_next_push_connects_anew(sync, engine, method):
    name = sync.export("step-1").version
    engine.fails.add(method)

    with pytest.raises(RolloutError, match=f"fails to {method}"):
        sync.push(engine)

    assert engine.running and engine.version() != name
    engine.fails.clear()
    assert sync.push(engine).version == name
    assert len(TrainerEngine.made) == 2 and TrainerEngine.made[-1].open


def test_what_vllm_raises_is_one_sentence_with_a_remedy(sync, engine, monkeypatch):
    def break_down(self):
        raise RuntimeError("NCCL error: unhandled system error\nmore lines")

    monkeypatch.setattr(TrainerEngine, "send_weights", break_down)
    sync.export("step-1")

    with pytest.raises(RolloutError, match=r"http://engine:8000 by (nccl|ipc) \(NCCL error: unhandled system error\)"):
        sync.push(engine)


def test_nccl_does_not_wait_for_ever(nccl, engine, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(transfer, "_PATIENCE", 0.05)
    monkeypatch.setattr(TrainerEngine, "send_weights", lambda self: never.wait(30))
    nccl.export("step-1")

    try:
        with pytest.raises(RolloutError, match="not done after 0 s"):
            nccl.push(engine)
    finally:
        never.set()
    assert engine.running and not TrainerEngine.made[0].open


def test_an_address_of_another_machine_is_named(full_policy, engine):
    sync = TransferSync(full_policy, "nccl", 1e-3, "192.0.2.1")
    sync.export("step-1")

    with pytest.raises(RolloutError, match=r"rollouts\.server\.master_address: '192\.0\.2\.1' is no address of this"):
        sync.push(engine)


def test_without_vllm_beside_the_trainer_the_error_says_so(full_policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer", None)

    with pytest.raises(RolloutError, match=r"'nccl' needs vLLM 0\.32 in the trainer's environment"):
        TransferSync(full_policy, "nccl", 1e-3, "127.0.0.1")


def test_closing_lets_go_of_the_connections(sync, engine):
    sync.export("step-1")
    sync.push(engine)

    sync.close()

    assert [made.open for made in TrainerEngine.made] == [False]


@pytest.mark.parametrize(("in_process", "backend"), [(False, "nccl"), (True, "ipc")])
def test_with_a_gpu_weights_are_sent_and_not_written(full_policy, tmp_path, in_process, backend):
    on_gpu = dataclasses.replace(full_policy, device=torch.device("cuda"))

    sync = make_sync(on_gpu, RolloutsConfig(), tmp_path, in_process=in_process)

    assert isinstance(sync, TransferSync) and sync.backend == backend
