"""What a server says about itself is checked before a run begins; each lack is one sentence with its remedy."""

from __future__ import annotations

import pytest

from selfdistill.errors import RolloutError
from selfdistill.rollouts.needs import Needs
from selfdistill.rollouts.sampler import Sampling


def _needs(**changes):
    return Needs(**{"new_tokens": 20, "lora_rank": 8, "training": Sampling(max_new_tokens=20), **changes})


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("development", False, "VLLM_SERVER_DEV_MODE=1"),
        ("scale_out", False, "--enable-scale-out"),
        ("context", 20, r"context of 20 tokens \(max_model_len\)"),
        ("lora", None, "--enable-lora"),
        ("lora", {"max_lora_rank": 4}, "up to rank 4.*model.lora.r is 8"),
        ("lora_updates", False, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ("key", "secret", "401.*api_key_variable"),
    ],
)
def test_a_server_that_cannot_serve_the_run_is_refused_at_once(server, make_engine, attribute, value, words):
    setattr(server, attribute, value)
    with pytest.raises(RolloutError, match=words) as failure:
        make_engine(server, needs=_needs())
    assert server.url in str(failure.value)
    assert attribute == "key" or "selfdistill serve RECIPE" in str(failure.value)
    assert server.calls.count("/health") == 0 and server.requests == []


def test_full_training_does_not_need_adapters(server, make_engine, fake_sync):
    server.lora = None
    make_engine(server, sync=fake_sync(adapters=False), needs=_needs(lora_rank=None))


def test_a_mode_that_loses_the_log_probabilities_is_refused(server, make_engine):
    server.logprobs_mode = "raw_logprobs"
    hot = Sampling(temperature=1.2, max_new_tokens=20)
    with pytest.raises(RolloutError, match=r"logprobs_mode raw_logprobs.*--logprobs-mode processed_logprobs"):
        make_engine(server, needs=_needs(training=hot))
    make_engine(server, needs=_needs())


def test_a_mode_does_not_matter_where_no_mode_has_the_log_probabilities(server, make_engine):
    make_engine(server, needs=_needs(training=Sampling(temperature=0.6, top_p=0.9, max_new_tokens=20)))


@pytest.mark.parametrize(
    "answer", ["", "[]", "{}", '{"vllm_config": 3}', '{"vllm_config": {"model_config": {"max_model_len": "long"}}}']
)
def test_a_description_that_makes_no_sense_is_an_error_in_time(server, make_engine, answer):
    server.broken_calls["/server_info"] = (200, answer)
    with pytest.raises(RolloutError, match="malformed answer"):
        make_engine(server, recovery_seconds=0.1)


def test_something_else_that_listens_there_is_no_server(server, make_engine):
    server.broken_calls["/server_info"] = (302, "elsewhere")
    with pytest.raises(RolloutError, match="/server_info answers 302"):
        make_engine(server)
