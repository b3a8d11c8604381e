"""vLLM in process, over a stand-in for vLLM: the order of things, what is asked of it, and what may go wrong."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from selfdistill.errors import DataError, RecipeError, RolloutError
from selfdistill.models.loading import LoraConfig, ModelConfig, Policy
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.control import Served
from selfdistill.rollouts.needs import Needs
from selfdistill.rollouts.sampler import Completion, Sampling, SyncReport
from selfdistill.rollouts.vllm_engine import VllmEngine
from selfdistill.rollouts.vllm_engine.control import LlmControl

END = 2  # <|im_end|> of the tiny tokenizer
SAMPLING = Sampling(temperature=1.0, max_new_tokens=4)


class FakeSync:
    """Hands out an adapter without looking at the policy."""

    def __init__(self, policy, config, folder, *, in_process) -> None:
        assert in_process
        self.exported: list[str] = []
        self.closed = False

    @property
    def served(self) -> Served:
        return Served(self.exported[-1], self.exported[-1])

    def export(self, version) -> Served:
        self.exported.append(version)
        return self.served

    def push(self, control) -> SyncReport:
        control.load_adapter(self.served.version, "folder")
        control.set_version(self.served.version)
        return SyncReport(self.served.version, 1, 0.0, 0.0, 0.0)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engine_on(vllm, tiny_model, tiny_tokenizer, tiny_chat, tmp_path, monkeypatch):
    """Return a function that makes an engine for a policy that claims to be on a device."""
    monkeypatch.setattr("selfdistill.rollouts.vllm_engine.engine.make_sync", FakeSync)
    monkeypatch.setattr("selfdistill.rollouts.vllm_engine.engine.base_folder", lambda policy, folder: "base")
    engines = []

    def make(device="cpu", **settings) -> VllmEngine:
        config = ModelConfig(lora=LoraConfig(r=8))
        policy = Policy(tiny_model, tiny_tokenizer, tiny_chat, config, torch.device(device))
        needs = Needs(new_tokens=4, lora_rank=8, training=SAMPLING)
        engines.append(VllmEngine(policy, RolloutsConfig(engine="vllm", **settings), needs, tmp_path))
        return engines[-1]

    return make


def test_nothing_is_built_before_the_first_sync_and_sampling_wants_one(engine_on, vllm) -> None:
    engine = engine_on()
    with pytest.raises(RolloutError, match="sync comes before sampling"):
        engine.sample([[5]], [[0]], SAMPLING)
    assert not vllm.made
    assert engine.sync("one").version == "one"
    (llm,) = vllm.made
    assert llm.arguments["model"] == "base" and llm.arguments["enable_lora"] and llm.arguments["max_lora_rank"] == 8
    engine.sync("two")
    assert len(vllm.made) == 1


def test_after_a_sync_that_failed_nothing_is_drawn(engine_on, monkeypatch) -> None:
    engine = engine_on()
    engine.sync("one")

    def fail(sync, control) -> None:
        raise RolloutError("stale")

    monkeypatch.setattr(FakeSync, "push", fail)
    with pytest.raises(RolloutError, match="stale"):
        engine.sync("two")
    with pytest.raises(RolloutError, match="sync comes before sampling"):
        engine.sample([[5]], [[0]], SAMPLING)


def test_completions_come_back_at_their_places_with_ids_and_log_probabilities(engine_on, vllm) -> None:
    engine = engine_on(max_rows=3)
    engine.sync("one")
    counted: list[int] = []
    done = engine.sample([[5, 6], [7]], [[10, 11, 12, 13], [48]], SAMPLING, on_tokens=counted.append)
    assert [completion.ids for completion in done[0]] == [tuple(range(seed, seed + 4)) for seed in (10, 11, 12, 13)]
    assert done[1] == [Completion((48, 0), (-1.0, -1.0), "stop")]  # 0: <|endoftext|>, added below
    assert {completion.finish_reason for completion in done[0]} == {"length"}
    assert sum(counted) == 18
    requests = vllm.made[0].llm_engine.requests
    assert [(ids, params.n, params.seed) for _, ids, params, _ in requests] == [
        ([5, 6], 3, 10),
        ([5, 6], 1, 13),
        ([7], 1, 48),
    ]


@pytest.fixture(autouse=True)
def two_ends(monkeypatch, tiny_chat) -> None:
    monkeypatch.setattr(tiny_chat, "end_of_turn_ids", (END, 0))


def test_a_request_names_the_adapter_of_the_last_sync_and_the_ends_that_we_know(engine_on, vllm) -> None:
    engine = engine_on()
    engine.sync("one")
    engine.sync("two")
    sampling = Sampling(temperature=0.7, top_k=3, top_p=0.9, max_new_tokens=4, stop_token_ids=(30,))
    (done,) = engine.sample([[5]], [[28]], sampling)
    assert done[0] == Completion((28, 29, 30), None, "stop")
    _, _, params, adapter = vllm.made[0].llm_engine.requests[-1]
    assert (adapter.lora_name, adapter.lora_int_id) == ("two", 2)
    assert (params.temperature, params.top_k, params.top_p) == (0.7, 3, 0.9)
    assert params.stop_token_ids == [END, 0, 30] and params.ignore_eos and params.detokenize is False
    assert params.logprobs is None  # truncated: vLLM has none at the sampling temperature before truncation


@pytest.mark.parametrize("ending", ["closed", "raised"])
def test_what_is_left_is_aborted_when_the_consumer_stops(engine_on, vllm, ending) -> None:
    engine = engine_on()
    engine.sync("one")
    fake = vllm.made[0].llm_engine
    if ending == "closed":
        stream = engine.stream([[5], [6]], [[1], [10]], SAMPLING)
        assert next(stream)[0] == (0, 0)  # 1, then the end
        stream.close()
        assert fake.aborted == [fake.requests[1][0]]
    else:

        def stop(count) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.sample([[5], [6]], [[10], [20]], SAMPLING, on_tokens=stop)
        assert len(fake.aborted) == 2
    assert not fake.running


def test_on_a_gpu_it_sleeps_whenever_the_trainer_works(engine_on, vllm, monkeypatch) -> None:
    engine = engine_on("cuda")
    engine.sync("one")
    (llm,) = vllm.made
    assert llm.arguments["enable_sleep_mode"] and llm.arguments["gpu_memory_utilization"] == 0.5
    assert llm.calls == []
    engine.sample([[5]], [[1]], SAMPLING)
    assert llm.calls == [("sleep", 1)]
    engine.sync("two")
    engine.sample([[5]], [[1]], SAMPLING)
    with pytest.raises(DataError):
        engine.sample([[]], [[1]], SAMPLING)
    awake, asleep = ("wake_up",), ("sleep", 1)
    assert llm.calls == [asleep, awake, asleep, awake, asleep]


def test_on_a_cpu_it_never_sleeps(engine_on, vllm) -> None:
    engine = engine_on()
    engine.sync("one")
    engine.sample([[5]], [[1]], SAMPLING)
    assert "enable_sleep_mode" not in vllm.made[0].arguments and vllm.made[0].calls == []
    assert vllm.made[0].arguments["enforce_eager"]


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("fail", RuntimeError("EngineCore died\ntrace"), r"failed while it drew responses \(EngineCore died\)"),
        ("reason", "abort", "ended a response after 2 tokens with 'abort'"),
        ("logprob", float("nan"), "not finite"),
    ],
)
def test_what_vllm_gets_wrong_is_one_sentence(engine_on, vllm, attribute, value, message) -> None:
    engine = engine_on()
    engine.sync("one")
    setattr(vllm.made[0].llm_engine, attribute, value)
    with pytest.raises(RolloutError, match=message):
        engine.sample([[5]], [[1]], SAMPLING)


def test_prompts_that_do_not_fit_are_refused_before_anything_is_drawn(engine_on, vllm) -> None:
    engine = engine_on()
    engine.sync("one")
    with pytest.raises(RecipeError, match="61 tokens and max_new_tokens 4 exceed vLLM's context of 64"):
        engine.sample([[5] * 61], [[1]], SAMPLING)
    with pytest.raises(RolloutError, match="refuses a prompt of 2 tokens"):
        engine.sample([[5], [5, 49]], [[1], [2]], SAMPLING)
    fake = vllm.made[0].llm_engine
    assert not fake.running and fake.requests[0][0] in fake.aborted


def test_without_vllm_the_remedy_is_named(engine_on, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RolloutError, match=r"selfdistill\[vllm\].*make vllm.*rollouts.engine=vllm_server"):
        engine_on()


def test_a_vllm_that_does_not_start_is_named_with_its_reason(engine_on, vllm) -> None:
    engine = engine_on()
    vllm.refuse = ValueError("No available memory for the cache blocks")
    with pytest.raises(RolloutError, match=r"No available memory for the cache blocks.*rollouts.vllm.memory"):
        engine.sync("one")


def test_vllms_settings_do_not_stay_in_the_environment(engine_on, monkeypatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    before = dict(os.environ)
    engine_on().sync("one")
    assert dict(os.environ) == before


def test_closing_ends_vllm_once_and_asks_nothing_of_it(engine_on, vllm) -> None:
    engine = engine_on()
    engine.sync("one")
    engine.close()
    engine.close()
    assert vllm.made[0].llm_engine.shut


def test_the_control_loads_and_unloads_adapters_under_new_numbers(vllm) -> None:
    llm = vllm()
    control = LlmControl(llm)
    control.load_adapter("a", "first")
    control.load_adapter("b", "second")
    assert [(request.lora_name, request.lora_path) for request in llm.llm_engine.loras.values()] == [
        ("a", "first"),
        ("b", "second"),
    ]
    with pytest.raises(RolloutError, match="already has an adapter 'a'"):
        control.load_adapter("a", "third")
    with pytest.raises(RolloutError, match="could not load the adapter in missing"):
        control.load_adapter("c", "missing")
    control.unload_adapter("a")
    control.unload_adapter("unknown")
    assert list(llm.llm_engine.loras) == [2]
    with pytest.raises(RolloutError, match="no adapter 'a'"):
        control.draw([[1]], Served("a", "a"))


def test_the_control_reloads_names_and_draws(vllm) -> None:
    llm = vllm()
    control = LlmControl(llm)
    control.pause()
    control.reload("weights")
    control.reset_prefix_cache()
    control.set_version("step")
    control.resume()
    assert llm.calls == [("reload_weights", 600.0, {"weights_path": "weights"}), ("reset_prefix_cache",)]
    assert control.version() == "step" and control.world_size() == 1
    assert control.draw([[1], [2, 3]], Served("step", None)) == [(0, -1.0), (0, -1.0)]


def test_a_closed_control_says_so(vllm) -> None:
    control = LlmControl(vllm())
    control.closed = True
    with pytest.raises(RolloutError, match="has been closed"):
        control.version()
