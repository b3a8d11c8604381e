from __future__ import annotations

import pytest
import torch

from selfdistill.rollouts.row_cache import RowCache

LAYERS = 2


def states(rows: int, columns: int, start: int = 0) -> torch.Tensor:
    """[rows, 1 head, columns, 1]: 100 x row + column + 1."""
    numbers = 100 * torch.arange(rows)[:, None] + torch.arange(start, start + columns) + 1
    return numbers[:, None, :, None].float()


def filled(rows: int, columns: int, window: int | None = None) -> RowCache:
    cache = RowCache([window] * LAYERS)
    for layer in range(LAYERS):
        cache.update(states(rows, columns), -states(rows, columns), layer)
    return cache


def seen(cache: RowCache, new: torch.Tensor) -> list[list[float]]:
    keys, values = cache.update(new, -new, 1)
    assert torch.equal(values, -keys)
    return keys[:, 0, :, 0].tolist()


def every(cache: RowCache) -> torch.Tensor:
    return torch.arange(cache.row_layers[0].rows)


def test_what_was_stored_comes_back_with_the_new_column():
    cache = RowCache.gathered([(filled(2, 3), torch.arange(2))], 3, reserve=2)
    assert (cache.width, cache.room, cache.get_seq_length()) == (3, 2, 3)
    assert seen(cache, states(2, 1, 3)) == [[1, 2, 3, 4], [101, 102, 103, 104]]


def test_rows_of_different_lengths_end_at_the_same_column_behind_zeros():
    short, long = filled(1, 2), filled(2, 4)
    cache = RowCache.gathered([(long, torch.tensor([1])), (short, torch.tensor([0, 0]))], 4, reserve=1)
    assert seen(cache, states(3, 1, 9)) == [[101, 102, 103, 104, 10], [0, 0, 1, 2, 110], [0, 0, 1, 2, 210]]


def test_columns_that_no_row_needs_any_more_are_cut_off():
    cache = RowCache.gathered([(filled(2, 5), torch.arange(2))], 3, reserve=1)
    assert seen(cache, states(2, 1, 5)) == [[3, 4, 5, 6], [103, 104, 105, 106]]


def test_gathering_empties_what_it_takes():
    source = filled(2, 3)
    RowCache.gathered([(source, torch.arange(2))], 3, reserve=1)
    assert all(layer.keys is None and layer.values is None for layer in source.row_layers)


def test_rows_move_up_when_others_leave():
    cache = RowCache.gathered([(filled(5, 2), torch.arange(5))], 2, reserve=1)
    cache.keep([0, 4, 2])
    assert seen(cache, states(3, 1, 9)) == [[1, 2, 10], [401, 402, 110], [201, 202, 210]]


@pytest.mark.parametrize(("width", "expected"), [(2, 3), (3, 4), (4, 4), (6, 4)])
def test_queries_see_the_columns_of_their_window(width, expected):
    cache = RowCache.gathered([(filled(1, width, window=4), torch.arange(1))], width, reserve=1)
    assert cache.is_sliding == [True] * LAYERS
    assert cache.get_mask_sizes(1, 0) == (expected, width + 1 - expected)
    assert len(seen(cache, states(1, 1, width))[0]) == expected
