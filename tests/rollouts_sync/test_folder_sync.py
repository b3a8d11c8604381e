from __future__ import annotations

import pytest
import torch

from selfdistill.errors import RolloutError
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.sync import base_folder, make_sync
from selfdistill.rollouts.sync.folder import FolderSync
from selfdistill.rollouts.sync.handshake import Stale


@pytest.fixture
def sync(full_policy, tmp_path):
    return FolderSync(full_policy, tmp_path / "sync", 1e-3)


@pytest.fixture
def engine(fake_control, full_policy, tmp_path):
    """Untied, as engines are started: a reload may then leave the head behind."""
    return fake_control(base_folder(full_policy, tmp_path / "base"))


def test_each_of_three_versions_of_a_tied_model_is_proven(sync, engine, full_policy, change):
    for step in range(3):
        change(full_policy, step)
        served = sync.export(f"step-{step}")
        report = sync.push(engine)

        assert report.version == served.version == engine.version() and served.adapter is None
        assert report.max_difference < 1e-4


def test_requests_are_held_back_while_the_weights_change(sync, engine):
    name = sync.export("step-1").version

    sync.push(engine)

    assert engine.calls == [
        "pause",
        f"set_version updating to {name}",
        f"reload {name}",
        "reset_prefix_cache",
        f"set_version {name}",
        "resume",
        "draw",
    ]


def test_only_the_latest_version_stays_on_disk(sync, engine, tmp_path):
    for step in range(3):
        name = sync.export(f"step-{step}").version
        sync.push(engine)

    assert [path.name for path in (tmp_path / "sync").iterdir()] == [name]


def test_weights_that_were_not_reloaded_are_stale_under_any_name(sync, engine, full_policy, change):
    change(full_policy, 1)
    name = sync.export("step-1").version
    engine.kept = lambda weight: True

    with pytest.raises(Stale, match="differ from the trainer's by"):
        sync.push(engine)

    assert engine.version() == f"not proven to be {name}" and engine.running


@pytest.mark.parametrize(
    "kept", ["lm_head.weight", "model.embed_tokens.weight", "model.layers.1.", "model.layers.0.mlp.down_proj"]
)
def test_a_half_updated_engine_is_stale(sync, engine, full_policy, change, kept):
    change(full_policy, 1)
    sync.export("step-1")
    engine.kept = lambda weight: weight.startswith(kept)

    with pytest.raises(Stale, match="half updated"):
        sync.push(engine)


def test_right_weights_under_another_name_are_stale(sync, engine):
    sync.export("step-1")
    engine.deaf = True

    with pytest.raises(Stale, match="'default' and not"):
        sync.push(engine)


@pytest.mark.parametrize("method", ["pause", "set_version", "reload", "reset_prefix_cache"])
def test_an_engine_that_fails_to_update_serves_again_but_not_under_the_versions_name(sync, engine, method):
    name = sync.export("step-1").version
    engine.fails.add(method)

    with pytest.raises(RolloutError, match=f"fails to {method}"):
        sync.push(engine)

    assert engine.running and engine.version() != name
    engine.fails.clear()
    assert sync.push(engine).version == engine.version() == name


def test_an_engine_that_cannot_resume_is_an_error(sync, engine):
    sync.export("step-1")
    engine.fails.add("resume")

    with pytest.raises(RolloutError, match="fails to resume"):
        sync.push(engine)


def test_an_interrupted_update_lets_the_engine_serve_again(sync, engine, monkeypatch):
    name = sync.export("step-1").version

    def interrupt(_folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "reload", interrupt)

    with pytest.raises(KeyboardInterrupt):
        sync.push(engine)

    assert engine.running and engine.version() != name


def test_an_engine_that_restarts_gets_the_last_version_again(sync, engine, full_policy, change):
    change(full_policy, 1)
    sync.export("step-1")
    sync.push(engine)
    engine.restart()
    change(full_policy, 2)

    assert sync.push(engine).max_difference < 1e-4


def test_exporting_leaves_mode_gradients_and_the_global_random_generator_as_they_were(sync, full_policy):
    full_policy.model.train()
    state = torch.get_rng_state()

    sync.export("step-1")

    assert torch.equal(torch.get_rng_state(), state)
    assert full_policy.model.training
    assert all(weight.grad is None and weight.requires_grad for weight in full_policy.model.parameters())


def test_an_export_that_fails_leaves_the_version_before(sync, engine, monkeypatch, tmp_path):
    first = sync.export("step-1").version

    def full(*_args, **_options):
        raise OSError("No space left on device")

    monkeypatch.setattr("selfdistill.rollouts.sync.export._untie", full)
    with pytest.raises(RolloutError, match="cannot be written"):
        sync.export("step-2")

    assert sync.served.version == first
    assert [path.name for path in (tmp_path / "sync").iterdir()] == [first]
    assert sync.push(engine).version == first


def test_closing_leaves_nothing_on_disk(sync, engine, tmp_path):
    sync.export("step-1")
    sync.push(engine)

    sync.close()

    assert not (tmp_path / "sync").exists()


def test_all_weights_go_by_folder_where_there_is_no_gpu(full_policy, tmp_path):
    for in_process in (False, True):
        assert isinstance(make_sync(full_policy, RolloutsConfig(), tmp_path, in_process=in_process), FolderSync)


@pytest.mark.parametrize("way", ["nccl", "ipc"])
def test_weights_cannot_be_sent_from_a_cpu(full_policy, tmp_path, way):
    config = RolloutsConfig.model_validate({"server": {"sync": way}})

    with pytest.raises(RolloutError, match=f"'{way}' sends weights from a GPU, and the model is on cpu; use auto"):
        make_sync(full_policy, config, tmp_path)
