from __future__ import annotations

import threading

import pytest
import torch

from selfdistill.errors import RolloutError
from selfdistill.models.loading import LoraConfig, ModelConfig, load_policy
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.sync import adapter, make_sync
from selfdistill.rollouts.sync.adapter import AdapterSync
from selfdistill.rollouts.sync.export import export_adapter, export_weights
from selfdistill.rollouts.sync.handshake import Stale


@pytest.fixture
def sync(lora_policy, tmp_path):
    return AdapterSync(lora_policy, tmp_path / "sync", 1e-3)


@pytest.fixture
def engine(fake_control, model_folder):
    return fake_control(model_folder)


def test_each_of_three_versions_is_proven(sync, engine, lora_policy, change):
    for step in range(3):
        change(lora_policy, step)
        served = sync.export(f"step-{step}")
        report = sync.push(engine)

        assert report.version == served.version == served.adapter == engine.version()
        assert report.max_difference < 1e-4 and report.mean_difference <= report.max_difference
        assert report.seconds > 0


def test_nothing_is_paused_and_the_version_is_set_after_the_adapter_is_there(sync, engine):
    name = sync.export("step-1").version

    sync.push(engine)

    assert engine.calls == [f"load_adapter {name}", f"set_version {name}", "draw"]


def test_the_engine_keeps_the_last_two_adapters_and_the_disk_their_folders(sync, engine, tmp_path):
    names = []
    for step in range(4):
        names.append(sync.export(f"step-{step}").version)
        sync.push(engine)

    assert list(engine.adapters) == names[2:]
    assert sorted(path.name for path in (tmp_path / "sync").iterdir()) == sorted(names[2:])


def test_an_adapter_is_unloaded_only_after_a_later_one_is_proven(sync, engine):
    for step in range(3):
        sync.export(f"step-{step}")
        sync.push(engine)

    assert [call.split()[0] for call in engine.calls[-4:]] == ["load_adapter", "set_version", "draw", "unload_adapter"]


def test_an_adapter_is_ten_times_smaller_than_all_weights(tmp_path):
    policy = load_policy(ModelConfig(path="embedded", device="cpu", lora=LoraConfig(r=8)), seed=0)

    assert export_adapter(policy, tmp_path / "adapter") * 10 < export_weights(policy, tmp_path / "full")


def test_the_base_weights_are_bit_for_bit_the_same_after_twenty_syncs(sync, engine, lora_policy, change):
    def base():
        return {name: w.clone() for name, w in lora_policy.model.named_parameters() if "lora_" not in name}

    before, served = base(), {name: w.clone() for name, w in engine.model.state_dict().items()}
    for step in range(20):
        change(lora_policy, step, size=0.01)
        sync.export(f"step-{step}")
        sync.push(engine)

    assert all(torch.equal(weight, before[name]) for name, weight in base().items())
    assert all(torch.equal(weight, served[name]) for name, weight in engine.model.state_dict().items())


def test_syncing_neither_uses_nor_changes_the_global_random_generator(sync, engine, lora_policy):
    lora_policy.model.train()
    state = torch.get_rng_state()

    sync.export("step-1")
    sync.push(engine)

    assert torch.equal(torch.get_rng_state(), state)
    assert lora_policy.model.training


def test_an_old_adapter_under_the_right_name_is_stale_and_is_taken_away(sync, engine, lora_policy, change):
    change(lora_policy, 1)
    sync.export("step-1")
    sync.push(engine)
    old = engine.adapters[sync.served.version]
    change(lora_policy, 2)
    name = sync.export("step-2").version
    load = engine.load_adapter

    def keep_the_old(name, folder):
        load(name, folder)
        engine.adapters[name] = old

    engine.load_adapter = keep_the_old

    with pytest.raises(Stale, match="differ from the trainer's by"):
        sync.push(engine)

    assert name not in engine.adapters and len(engine.adapters) == 1


def test_an_adapter_on_another_base_is_stale(sync, fake_control, tiny_model, tmp_path):
    with torch.no_grad():
        tiny_model.model.layers[0].mlp.up_proj.weight.mul_(2)
    tiny_model.save_pretrained(tmp_path / "other")
    sync.export("step-1")

    with pytest.raises(Stale):
        sync.push(fake_control(tmp_path / "other"))


def test_an_engine_that_restarts_gets_the_last_version_again(sync, engine, lora_policy, change):
    for step in range(3):
        change(lora_policy, step)
        sync.export(f"step-{step}")
        sync.push(engine)
    engine.restart()

    report = sync.push(engine)

    assert report.version == engine.version()
    assert list(engine.adapters) == [report.version]


def test_a_push_that_failed_half_way_can_be_repeated(sync, engine):
    sync.export("step-1")
    engine.fails.add("draw")
    with pytest.raises(RolloutError, match="fails to draw"):
        sync.push(engine)
    engine.fails.clear()

    assert sync.push(engine).version == engine.version()
    assert len(engine.adapters) == 1


def test_a_push_can_be_repeated_when_nothing_failed(sync, engine):
    sync.export("step-1")
    sync.push(engine)

    assert sync.push(engine).version == engine.version()


def test_the_same_step_exported_twice_gets_two_names(sync, lora_policy, change, engine):
    first = sync.export("step-1").version
    sync.push(engine)
    change(lora_policy, 1)
    second = sync.export("step-1").version
    sync.push(engine)

    assert first != second and list(engine.adapters) == [first, second]


def test_two_runs_give_the_same_step_different_names(lora_policy, tmp_path):
    one, other = (AdapterSync(lora_policy, tmp_path, 1e-3).export("step-1").version for _ in range(2))

    assert one != other and one.endswith("-step-1") and other.endswith("-step-1")


def test_one_export_serves_several_engines_at_a_time(sync, fake_control, model_folder, lora_policy, change):
    change(lora_policy, 1)
    sync.export("step-1")
    engines = [fake_control(model_folder, name=f"http://engine:{port}") for port in (8000, 8001, 8002)]
    reports = {}

    def push(engine):
        reports[engine.name] = sync.push(engine)

    threads = [threading.Thread(target=push, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {report.version for report in reports.values()} == {sync.served.version} and len(reports) == 3


def test_the_weights_of_the_export_are_pushed_even_if_the_trainer_has_gone_on(sync, engine, lora_policy, change):
    change(lora_policy, 1)
    sync.export("step-1")
    change(lora_policy, 2)

    assert sync.push(engine).max_difference < 1e-4


def test_a_folder_stays_while_it_is_being_pushed(sync, engine, tmp_path):
    first = sync.export("step-0").version
    load = engine.load_adapter

    def slowly(name, folder):
        for step in range(1, 4):
            sync.export(f"step-{step}")
        assert (tmp_path / "sync" / first).is_dir()
        load(name, folder)

    engine.load_adapter = slowly
    assert sync.push(engine).version == first
    assert not (tmp_path / "sync" / first).exists()


def test_without_an_export_there_is_nothing_to_push(sync, engine):
    with pytest.raises(RolloutError, match="no weights were exported yet"):
        sync.push(engine)
    with pytest.raises(RolloutError, match="no weights were exported yet"):
        _ = sync.served


def test_closing_takes_the_adapters_back_and_leaves_nothing_on_disk(sync, engine, fake_control, model_folder, tmp_path):
    dead = fake_control(model_folder, name="http://dead:8000")
    for step in range(3):
        sync.export(f"step-{step}")
        sync.push(engine)
        sync.push(dead)
    dead.fails.add("unload_adapter")

    sync.close()

    assert engine.adapters == {}
    assert not (tmp_path / "sync").exists()


def test_closing_waits_only_briefly_for_an_engine_that_hangs(sync, engine, monkeypatch, tmp_path):
    sync.export("step-1")
    sync.push(engine)
    never = threading.Event()
    engine.unload_adapter = lambda name: never.wait(30)
    monkeypatch.setattr(adapter, "_COURTESY", 0.05)

    sync.close()

    assert not never.is_set() and not (tmp_path / "sync").exists()
    never.set()


def test_adapters_go_to_the_folder_that_the_recipe_names(lora_policy, tmp_path):
    shared = RolloutsConfig.model_validate({"server": {"folder": str(tmp_path / "shared")}})
    sync = make_sync(lora_policy, shared, tmp_path / "run" / "sync")

    served = sync.export("step-1")

    assert isinstance(sync, AdapterSync)
    assert (tmp_path / "shared" / served.version / "adapter_model.safetensors").is_file()
