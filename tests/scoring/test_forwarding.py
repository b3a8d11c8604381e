import pytest

from selfdistill.errors import RecipeError
from selfdistill.scoring import Forwarding


def test_shared_prompts_are_reused_and_rows_are_padded_unless_told_otherwise() -> None:
    forwarding = Forwarding(100)
    assert forwarding.reuse_prefix and not forwarding.padding_free


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_below_one_token_is_refused_by_its_name(budget: int) -> None:
    with pytest.raises(RecipeError, match=rf"train\.micro_batch_tokens is {budget}; it must be at least 1"):
        Forwarding(budget)


def test_a_negative_pad_id_is_refused() -> None:
    with pytest.raises(RecipeError, match="pad_id is -1"):
        Forwarding(100, pad_id=-1)


def test_a_negative_cost_of_a_pass_is_refused() -> None:
    with pytest.raises(RecipeError, match="pass_tokens is -1"):
        Forwarding(100, pass_tokens=-1)
