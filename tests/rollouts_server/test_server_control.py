"""A server's weights under control, over HTTP: each call does one thing, or is one clear error."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from selfdistill.errors import RolloutError
from selfdistill.rollouts.control import Served
from selfdistill.rollouts.server import ServerControl
from selfdistill.rollouts.server import control as control_module
from selfdistill.rollouts.server.faults import Unreachable
from selfdistill.rollouts.server.http import Address


@pytest.fixture
def control(server):
    return ServerControl(Address(server.url, None, 5.0))


def test_an_adapter_is_loaded_and_forgotten(server, control):
    control.load_adapter("a", Path("/adapters/a"))
    assert server.adapters == {"a"}
    control.unload_adapter("a")
    assert server.adapters == set()


def test_forgetting_an_adapter_that_is_not_there_is_no_error(control):
    control.unload_adapter("never")


def test_an_adapter_under_a_used_name_is_refused_in_the_servers_words(server, control):
    control.load_adapter("a", Path("/adapters/a"))
    with pytest.raises(RolloutError, match=rf"{server.url} refused.*400: has already been loaded"):
        control.load_adapter("a", Path("/adapters/b"))


def test_weights_are_named_and_the_name_comes_back(control):
    assert control.version() == "default"
    control.set_version("v4")
    assert control.version() == "v4"


def test_full_weights_are_replaced_between_pause_and_resume(server, control):
    control.pause()
    control.reload(Path("/weights"))
    control.reset_prefix_cache()
    control.resume()
    assert server.calls == ["/pause", "/collective_rpc", "/reset_prefix_cache", "/resume"]


def test_a_prefix_cache_that_stays_in_use_is_an_error(server, control, monkeypatch):
    monkeypatch.setattr(control_module, "CACHE_SECONDS", 0.15)
    server.paused = 10**6
    with pytest.raises(Unreachable, match="prefix cache was in use"):
        control.reset_prefix_cache()


def test_one_token_is_drawn_behind_each_prompt(control, server, expected_response):
    control.load_adapter("a", Path("/adapters/a"))
    prompts = [(10, 11 + index) for index in range(40)]
    drawn = control.draw(prompts, Served("v", "a"))
    assert [token for token, _ in drawn] == [
        expected_response(prompt, place, 1).ids[0] for place, prompt in enumerate(prompts)
    ]
    assert all(value <= 0 for _, value in drawn)


def test_drawing_with_an_unknown_adapter_is_an_error(control):
    with pytest.raises(RolloutError, match="does not know the adapter 'a'"):
        control.draw([(10,)], Served("v", "a"))


def test_workers_are_counted(control):
    assert control.world_size() == 2


@pytest.mark.parametrize("answer", ["", "{}", '{"weight_version": 3}'])
def test_a_version_that_makes_no_sense_is_an_error(server, control, answer):
    server.broken_calls["/weight_info"] = (200, answer)
    with pytest.raises(Unreachable, match="malformed answer: /weight_info"):
        control.version()


@pytest.mark.parametrize("answer", ["{}", '{"world_size": 0}', '{"world_size": true}'])
def test_a_world_size_that_makes_no_sense_is_an_error(server, control, answer):
    server.broken_calls["/get_world_size"] = (200, answer)
    with pytest.raises(RolloutError, match="world size"):
        control.world_size()


def test_a_call_that_hangs_ends_within_its_limit(server, control, monkeypatch):
    monkeypatch.setattr(control_module, "CALL_SECONDS", 0.2)
    server.broken_calls["/weight_info"] = "hang"
    with pytest.raises(Unreachable, match=r"not done within 0\.2 s.*selfdistill serve RECIPE"):
        control.version()


def test_a_server_that_is_not_there_may_come_back(server, control):
    server.stop()
    with pytest.raises(Unreachable, match=rf"{server.url} failed: no connection"):
        control.version()
    server.start()
    assert control.version() == "default"


def test_a_5xx_may_pass_and_a_4xx_does_not(server, control):
    server.broken_calls["/resume"] = (503, '{"error": {"message": "busy"}}')
    with pytest.raises(Unreachable, match="503: busy"):
        control.resume()
    server.broken_calls["/resume"] = (422, '{"detail": "no"}')
    with pytest.raises(RolloutError, match="422: no") as failure:
        control.resume()
    assert not isinstance(failure.value, Unreachable)


def test_calls_work_where_an_event_loop_runs_already(control):
    async def inside():
        return control.version()

    assert asyncio.run(inside()) == "default"


def test_a_password_in_the_address_is_not_shown():
    address = Address("http://user:secret@127.0.0.1:1", None, 5.0)
    assert ServerControl(address).name == "http://127.0.0.1:1"
