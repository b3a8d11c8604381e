"""Siblings share their prompt's pass under gradient too, and states and gradients are those of separate rows."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from selfdistill.scoring import Forwarding, response_states, row_batches, sequence_length
from selfdistill.scoring.siblings import sharing_pays

Pair = tuple[tuple[int, ...], tuple[int, ...]]
EXACT_STATES = {"atol": 1e-10, "rtol": 1e-10}
EXACT_GRADIENTS = {"atol": 1e-9, "rtol": 1e-9}


class Unrounded(TorchFunctionMode):
    """Leave float64 alone where transformers rounds to float32 (norms, eager attention): a sum of rounded gradients is
    not the rounded sum."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if arguments and isinstance(arguments[0], Tensor) and arguments[0].dtype == torch.float64:
            if function is Tensor.float:
                return arguments[0]
            arguments = tuple(torch.float64 if one is torch.float32 else one for one in arguments)
            named = {name: torch.float64 if one is torch.float32 else one for name, one in named.items()}
        return function(*arguments, **named)


def ids(count: int, seed: int) -> tuple[int, ...]:
    generator = random.Random(seed)
    return tuple(generator.randrange(3, 61) for _ in range(count))


def siblings(prompt: tuple[int, ...], *lengths: int) -> list[Pair]:
    return [(prompt, ids(length, 100 * len(prompt) + place)) for place, length in enumerate(lengths)]


LONG, SHORT, ONE = ids(19, 1), ids(7, 2), ids(1, 3)
ROWS: list[Pair] = [
    *siblings(LONG, 9, 1, 3, 14),
    (ids(11, 4), ids(6, 5)),  # a prompt of its own
    *siblings(SHORT, 2, 12),
    *siblings(ONE, 5, 1),
    *siblings(LONG, 7),  # the first prompt again, apart from its siblings
]


def sharing(budget: int = 10_000, pass_tokens: int = 0, **named: Any) -> Forwarding:
    return Forwarding(budget, pass_tokens=pass_tokens, **named)


def separate(budget: int = 10_000) -> Forwarding:
    return Forwarding(budget, reuse_prefix=False)


def update(model: nn.Module, pairs: Sequence[Pair], forwarding: Forwarding) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Every row's states, and the gradient of a loss that weighs each number of each state differently."""
    model.zero_grad()
    states: dict[int, Tensor] = {}
    for batch in row_batches(pairs, forwarding, model):
        with Unrounded():
            hidden = response_states(model, [pairs[row] for row in batch], forwarding)
        rows = dict(zip(batch, hidden.split([len(pairs[row][1]) for row in batch]), strict=True))
        torch.stack([_loss(row, one) for row, one in rows.items()]).sum().backward()
        states |= {row: one.detach() for row, one in rows.items()}
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return [states[row] for row in range(len(pairs))], gradients


def _loss(row: int, states: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(row)
    weights = torch.randn(states.shape, generator=generator, dtype=torch.float64).to(states.dtype)
    return (weights * states + 0.1 * states**2).sum()


def assert_alike(model: nn.Module, pairs: Sequence[Pair], forwarding: Forwarding) -> None:
    states, gradients = update(model, pairs, forwarding)
    expected_states, expected_gradients = update(model, pairs, separate())
    for one, other in zip(states, expected_states, strict=True):
        torch.testing.assert_close(one, other, **EXACT_STATES)
    assert gradients and gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], **EXACT_GRADIENTS)


def shapes(model: nn.Module, compute: Callable[[], Any]) -> list[tuple[int, int, int]]:
    """Rows, positions read and positions seen (read before, too) of every forward pass."""
    seen: list[tuple[int, int, int]] = []
    handle = model.base_model.register_forward_pre_hook(
        lambda _, __, named: seen.append((*named["input_ids"].shape, named["attention_mask"].shape[1])),
        with_kwargs=True,
    )
    compute()
    handle.remove()
    return seen


def computed(model: nn.Module, pairs: Sequence[Pair], forwarding: Forwarding) -> int:
    """Real positions that the model computes."""
    count = 0

    def note(_: nn.Module, __: Any, named: dict[str, Any]) -> None:
        nonlocal count
        count += int(named["attention_mask"][:, -named["input_ids"].shape[1] :].sum())

    handle = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    for batch in row_batches(pairs, forwarding, model):
        response_states(model, [pairs[row] for row in batch], forwarding)
    handle.remove()
    return count


PLAIN_POSITIONS = sum(sequence_length(pair) for pair in ROWS)
SHARED_POSITIONS = sum(len(response) - 1 for _, response in ROWS) + len(LONG) + len(SHORT) + len(ONE) + 11


@pytest.mark.parametrize("budget", [1, 25, 60, 100, 10_000])
def test_shared_prompts_give_the_states_and_gradients_of_separate_rows(
    attention_model: PreTrainedModel, budget: int
) -> None:
    assert_alike(attention_model.train(), ROWS, sharing(budget))


@pytest.mark.parametrize("pass_tokens", [3, 20])
def test_responses_that_share_a_pass_or_do_not_give_the_same_gradients(
    windowed_model: PreTrainedModel, pass_tokens: int
) -> None:
    assert_alike(windowed_model, ROWS, sharing(pass_tokens=pass_tokens))


def test_gradients_hold_for_eager_attention(attention_model: PreTrainedModel) -> None:
    attention_model.set_attn_implementation("eager")
    assert_alike(attention_model.train(), ROWS, sharing(60))


LENGTHS = st.integers(1, 12)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(st.tuples(LENGTHS, st.lists(LENGTHS, min_size=1, max_size=4)), min_size=1, max_size=4),
    budget=st.integers(1, 150),
    pass_tokens=st.integers(0, 10),
    order=st.randoms(use_true_random=False),
)
def test_any_mixture_of_prompts_and_responses_gives_the_same_gradients(
    windowed_model: PreTrainedModel,
    groups: list[tuple[int, list[int]]],
    budget: int,
    pass_tokens: int,
    order: random.Random,
) -> None:
    pairs = [pair for seed, (prompt, lengths) in enumerate(groups) for pair in siblings(ids(prompt, seed), *lengths)]
    order.shuffle(pairs)
    assert_alike(windowed_model, pairs, sharing(budget, pass_tokens))


def adapted(model: PreTrainedModel, dropout: float = 0.0) -> nn.Module:
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["k_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
        lora_dropout=dropout,
    )
    torch.manual_seed(2)
    return peft.get_peft_model(model, config).double().train()


def test_adapters_get_the_gradients_of_separate_rows(attention_model: PreTrainedModel) -> None:
    model = adapted(attention_model)
    assert_alike(model, ROWS, sharing(60))
    assert computed(model.base_model.model, ROWS, sharing()) == SHARED_POSITIONS


def test_a_shared_prompt_is_computed_once_and_a_lone_row_once(attention_model: PreTrainedModel) -> None:
    assert computed(attention_model.train(), ROWS, sharing()) == SHARED_POSITIONS
    assert computed(attention_model, ROWS, separate()) == PLAIN_POSITIONS


def test_rows_without_siblings_in_a_given_micro_batch_are_computed_beside_it(windowed_model: PreTrainedModel) -> None:
    shared = response_states(windowed_model, ROWS, sharing())
    torch.testing.assert_close(shared, response_states(windowed_model, ROWS), **EXACT_STATES)
    seen = shapes(windowed_model, lambda: response_states(windowed_model, ROWS, sharing()))
    assert seen[0] == (3, 19, 19)
    assert seen[-1] == (1, 16, 16)


def test_gradients_are_the_same_to_the_last_bit_when_computed_again(windowed_model: PreTrainedModel) -> None:
    _, first = update(windowed_model, ROWS, sharing())
    _, second = update(windowed_model, ROWS, sharing())
    assert all(torch.equal(gradient, second[name]) for name, gradient in first.items())


def dropout_in_attention(model: PreTrainedModel) -> nn.Module:
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 1e-12  # as good as none, so that the result can be compared
    return model


def dropout_in_the_configuration(model: PreTrainedModel) -> nn.Module:
    model.config.hidden_dropout = 0.1
    return model


def dropout_in_adapters(model: PreTrainedModel) -> nn.Module:
    return adapted(model, dropout=1e-12)


def checkpointing(model: PreTrainedModel) -> nn.Module:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


EXCLUDED = [dropout_in_attention, dropout_in_the_configuration, dropout_in_adapters, checkpointing]


@pytest.mark.parametrize("exclude", EXCLUDED)
def test_a_model_that_drops_at_random_or_recomputes_shares_nothing_while_it_trains(
    windowed_model: PreTrainedModel, exclude: Callable[[PreTrainedModel], nn.Module]
) -> None:
    model = exclude(windowed_model)
    assert computed(windowed_model, ROWS, sharing()) == PLAIN_POSITIONS
    assert row_batches(ROWS, sharing(60), model) == row_batches(ROWS, sharing(60))
    assert torch.equal(response_states(model, ROWS, sharing()), response_states(model, ROWS, separate()))
    model.eval()  # nothing is dropped or recomputed now
    assert computed(windowed_model, ROWS, sharing()) == SHARED_POSITIONS
    assert_alike(model, ROWS, sharing(60))


def test_a_noisy_router_shares_nothing(windowed_model: PreTrainedModel) -> None:
    windowed_model.config.router_jitter_noise = 0.01
    assert computed(windowed_model, ROWS, sharing()) == PLAIN_POSITIONS


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4))


def dynamic_rope() -> PreTrainedModel:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=61, **sizes, max_position_embeddings=16, rope_parameters=rope))


@pytest.mark.parametrize("build", [mamba, dynamic_rope])
def test_a_model_that_remembers_more_than_keys_and_values_shares_nothing(build: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(1)
    model = build().train()
    assert computed(model, ROWS, sharing()) == PLAIN_POSITIONS
    assert row_batches(ROWS, sharing(60), model) == row_batches(ROWS, sharing(60))


def test_a_model_that_leaves_the_cache_unused_gives_the_same_gradients(
    windowed_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = windowed_model.model.layers[1].forward

    def uncached(*arguments: Any, **named: Any) -> Tensor:
        return forward(*arguments, **{**named, "past_key_values": None})

    monkeypatch.setattr(windowed_model.model.layers[1], "forward", uncached)
    assert_alike(windowed_model, ROWS, sharing(100))


def test_packed_rows_share_nothing(windowed_model: PreTrainedModel) -> None:
    packed = sharing(60, padding_free=True)
    assert row_batches(ROWS, packed, windowed_model) == row_batches(ROWS, packed)
    assert_alike(windowed_model, ROWS, packed)


def test_sharing_can_be_switched_off(windowed_model: PreTrainedModel) -> None:
    off = sharing(reuse_prefix=False)
    assert computed(windowed_model, ROWS, off) == PLAIN_POSITIONS
    assert row_batches(ROWS, off, windowed_model) == row_batches(ROWS, off)


def test_rows_without_siblings_are_grouped_by_length(windowed_model: PreTrainedModel) -> None:
    pairs = [(ids(5, seed), ids(4 + seed, seed)) for seed in range(5)]
    assert not sharing_pays(pairs, sharing())
    assert row_batches(pairs, sharing(20), windowed_model) == row_batches(pairs, sharing(20))
    assert_alike(windowed_model, pairs, sharing(20))


@pytest.mark.parametrize(("prompt", "rows", "pays"), [(10, 8, False), (100, 2, False), (100, 8, True), (600, 2, True)])
def test_a_prompt_is_shared_only_if_that_spares_more_than_a_pass_costs(prompt: int, rows: int, pays: bool) -> None:
    pairs = siblings(ids(prompt, 1), *[20] * rows)
    assert sharing_pays(pairs, sharing(pass_tokens=256)) is pays


def test_siblings_meet_in_one_micro_batch_whatever_their_lengths(windowed_model: PreTrainedModel) -> None:
    pairs = [pair for seed in range(4) for pair in siblings(ids(30, seed), 2, 20, 40)]
    assert len({pairs[row][0] for row in row_batches(pairs, separate(290), windowed_model)[0]}) == 4
    batches = row_batches(pairs, sharing(290), windowed_model)
    assert batches == [[2, 1, 0], [5, 4, 3], [8, 7, 6], [11, 10, 9]]  # two rows each of 69, 49 and 31 exceed 290
    assert row_batches(pairs, sharing(298), windowed_model) == [[2, 1, 0, 5, 4, 3], [8, 7, 6, 11, 10, 9]]


def test_siblings_whom_the_budget_cannot_hold_are_divided_by_length(windowed_model: PreTrainedModel) -> None:
    pairs = siblings(LONG, 2, 30, 2, 30, 2, 30)
    assert row_batches(pairs, sharing(150), windowed_model) == [[1, 3, 5], [0, 2, 4]]  # 3 * 48 <= 150 < 3 * 48 + 20


def test_a_question_with_a_much_longer_prompt_has_a_micro_batch_of_its_own(windowed_model: PreTrainedModel) -> None:
    pairs = [*siblings(ids(90, 1), 5, 5), *siblings(ids(10, 2), 5, 5), *siblings(ids(12, 3), 5, 5)]
    assert row_batches(pairs, sharing(pass_tokens=5), windowed_model) == [[0, 1], [4, 5, 2, 3]]


BUDGETS = st.integers(1, 400)
GROUPS = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(1, 40), min_size=1, max_size=6)), min_size=1, max_size=6
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=GROUPS, budget=BUDGETS, pass_tokens=st.integers(0, 40))
def test_every_row_is_in_one_micro_batch_and_the_longest_come_first(
    windowed_model: PreTrainedModel, groups: list[tuple[int, list[int]]], budget: int, pass_tokens: int
) -> None:
    pairs = [pair for seed, (prompt, lengths) in enumerate(groups) for pair in siblings(ids(prompt, seed), *lengths)]
    batches = row_batches(pairs, sharing(budget, pass_tokens), windowed_model)
    assert sorted(row for batch in batches for row in batch) == list(range(len(pairs)))
    longest = [max(sequence_length(pairs[row]) for row in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize("budget", [25, 60, 100, 1000])
@pytest.mark.parametrize("pass_tokens", [0, 10])
def test_what_a_micro_batch_remembers_stays_within_the_budget(
    windowed_model: PreTrainedModel, budget: int, pass_tokens: int
) -> None:
    forwarding = sharing(budget, pass_tokens)
    for batch in row_batches(ROWS, forwarding, windowed_model):
        pairs = [ROWS[row] for row in batch]
        seen = shapes(windowed_model, lambda pairs=pairs: response_states(windowed_model, pairs, forwarding))
        activations = sum(rows * read for rows, read, _ in seen)
        copies = sum(rows * visible for rows, read, visible in seen if visible > read)
        assert len(batch) == 1 or max(activations, copies) <= budget


def test_a_micro_batch_that_only_separate_rows_fit_into_is_not_shared() -> None:
    pairs = [*siblings(ids(50, 1), *[2] * 8), *siblings(ids(2, 2), *[50] * 8)]
    separately, together = 16 * (50 + 1), 8 * (50 + 1) + 8 * (50 + 49)  # keys and values that are remembered
    assert not sharing_pays(pairs, sharing(separately, pass_tokens=10))
    assert sharing_pays(pairs, sharing(together, pass_tokens=10))
