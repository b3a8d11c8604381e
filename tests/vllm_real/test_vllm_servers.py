"""Our client and our weight sync against real vLLM servers: ids in, ids out, from the weights of the last sync."""

from __future__ import annotations

import pytest
import torch

from selfdistill.rollouts.control import Served
from selfdistill.rollouts.sampler import Sampling
from selfdistill.rollouts.server import ServerControl
from selfdistill.rollouts.server.http import Client, addresses
from selfdistill.rollouts.sync import Stale, make_sync
from selfdistill.rollouts.sync.handshake import fixed_text, shake_hands

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SAMPLING = Sampling(temperature=1.0, max_new_tokens=24)


def differences(policy, prompts, completions, rescored) -> torch.Tensor:
    """Return engine minus trainer, nats, of every token that was drawn."""
    pairs = [
        torch.tensor(completion.logprobs) - torch.tensor(rescored(policy, prompt, completion.ids))
        for prompt, own in zip(prompts, completions, strict=True)
        for completion in own
    ]
    return torch.cat(pairs)


def control_of(server) -> ServerControl:
    (address,) = addresses(server.recipe.rollouts.server)
    return ServerControl(address)


@pytest.mark.parametrize("kind", ["lora_server", "full_server"])
def test_every_sync_is_proven_and_rollouts_come_from_the_new_weights(
    kind, request, tmp_path, policy_of, change, rescored, prompts_of
) -> None:
    server = request.getfixturevalue(kind)
    policy = policy_of(server)
    engine = server.engine(policy, tmp_path / "sync")
    prompts, seeds = prompts_of(policy, 4), [[100 * index, 100 * index + 1] for index in range(4)]
    drawn, versions = [], set()
    for step in range(3):
        change(policy, step)
        report = engine.sync(f"step-{step}")
        assert report.mean_difference < 1e-3 and report.bytes > 0
        versions.add(report.version)
        drawn.append(engine.sample(prompts, seeds, SAMPLING))
        gap = differences(policy, prompts, drawn[-1], rescored).abs()
        assert gap.mean() < 1e-3 and gap.max() < 1e-2
    assert len(versions) == 3
    assert drawn[0] != drawn[1] != drawn[2]
    engine.close()
    assert not (tmp_path / "sync").exists()


def test_temperature_and_truncation_change_what_is_drawn_but_not_what_is_reported(
    full_server, tmp_path, policy_of, rescored, prompts_of
) -> None:
    policy = policy_of(full_server)
    engine = full_server.engine(policy, tmp_path / "sync")
    engine.sync("start")
    prompts = prompts_of(policy, 2)
    (greedy,), (again,) = (
        engine.sample(prompts[:1], [[seed]], Sampling(temperature=0, max_new_tokens=24)) for seed in (1, 2)
    )
    assert greedy[0].ids == again[0].ids
    assert greedy[0].logprobs == pytest.approx(rescored(policy, prompts[0], greedy[0].ids), abs=1e-3)
    (truncated,) = engine.sample(prompts[:1], [[3]], Sampling(temperature=1.0, top_k=5, max_new_tokens=8))
    assert truncated[0].logprobs is None
    engine.close()


def test_siblings_are_one_request_and_the_same_as_alone(
    lora_server, tmp_path, policy_of, change, prompts_of, monkeypatch
) -> None:
    policy = policy_of(lora_server)
    change(policy, 5)  # less sure of its answers
    engine = lora_server.engine(policy, tmp_path / "sync")
    engine.sync("start")
    requests = []
    generate = Client.generate

    async def counted(client, body, expected, **rest):
        requests.append(expected.responses)
        return await generate(client, body, expected, **rest)

    monkeypatch.setattr(Client, "generate", counted)
    (prompt,) = prompts_of(policy, 1)
    (together,) = engine.sample([prompt], [[500, 501, 502, 503]], SAMPLING)
    assert requests == [4]
    alone = engine.sample([prompt] * 4, [[500], [501], [502], [503]], SAMPLING)
    assert requests == [4, 1, 1, 1, 1]
    assert [own[0].ids for own in alone] == [completion.ids for completion in together]
    assert len({completion.ids for completion in together}) > 1
    ends = set(policy.chat.end_of_turn_ids)
    for completion in together:
        assert completion.finish_reason == ("stop" if completion.ids[-1] in ends else "length")
        assert not ends.intersection(completion.ids[:-1])
        assert completion.finish_reason == "stop" or len(completion.ids) == SAMPLING.max_new_tokens
    engine.close()


def test_a_half_updated_server_is_caught(full_server, tmp_path, policy_of, change, monkeypatch) -> None:
    policy = policy_of(full_server)
    control = control_of(full_server)
    sync = make_sync(policy, full_server.recipe.rollouts, tmp_path / "sync")
    sync.export("whole")
    sync.push(control)

    def tied(policy, folder) -> int:
        """Write the weights as transformers does: the head, being the embeddings, is not among them."""
        policy.model.save_pretrained(folder)
        return 1

    monkeypatch.setattr("selfdistill.rollouts.sync.folder.export_weights", tied)
    change(policy, 7)
    served = sync.export("half")
    with pytest.raises(Stale, match="half updated"):
        sync.push(control)
    assert control.version() != served.version
    monkeypatch.undo()
    sync.export("whole again")
    assert sync.push(control).mean_difference < 1e-3
    sync.close()


def test_an_engine_with_other_weights_of_the_same_name_is_caught(full_server, tmp_path, policy_of, change) -> None:
    policy = policy_of(full_server)
    control = control_of(full_server)
    sync = make_sync(policy, full_server.recipe.rollouts, tmp_path / "sync")
    sync.export("before")
    sync.push(control)
    change(policy, 8)
    served = sync.export("after")
    control.set_version(served.version)
    with pytest.raises(Stale, match="differ from the trainer's"):
        shake_hands(control, Served(served.version, None), fixed_text(policy), 1e-3)
    sync.push(control)
    sync.close()


def test_a_server_that_is_killed_in_the_middle_of_a_batch_and_restarted_gets_the_weights_again(
    lora_server, tmp_path, policy_of, change, rescored, prompts_of
) -> None:
    policy = policy_of(lora_server)
    change(policy, 9)
    engine = lora_server.engine(policy, tmp_path / "sync")
    report = engine.sync("step-9")
    prompts, seeds = prompts_of(policy, 12), [[1000 * index + place for place in range(8)] for index in range(12)]
    sampling = Sampling(temperature=1.0, max_new_tokens=200)
    stream = engine.stream(prompts, seeds, sampling)
    kept = [next(stream) for _ in range(3)]
    lora_server.kill()
    lora_server.stop()
    lora_server.start()
    done = dict(kept)
    for place, completion in stream:
        assert place not in done
        done[place] = completion
    assert done.keys() == {(index, place) for index in range(12) for place in range(8)}
    assert all(done[place] is completion for place, completion in kept)
    assert control_of(lora_server).version() == report.version
    completions = [[done[index, place] for place in range(8)] for index in range(12)]
    assert differences(policy, prompts, completions, rescored).abs().mean() < 1e-3
    engine.close()


def test_smollm2_agrees_with_the_trainer(smollm2_server, tmp_path, policy_of, change, rescored, prompts_of) -> None:
    policy = policy_of(smollm2_server)
    change(policy, 1)
    engine = smollm2_server.engine(policy, tmp_path / "sync")
    assert engine.sync("start").mean_difference < 1e-3
    prompts = prompts_of(policy, 2)
    completions = engine.sample(prompts, [[1, 2], [3, 4]], SAMPLING)
    assert differences(policy, prompts, completions, rescored).abs().mean() < 1e-3
    engine.close()
