"""Which tokens eviction keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ratedist.validate.quality.evict import SINKS, evict


def test_first_recent_and_most_attended_tokens_stay() -> None:
    received = torch.zeros(1, 2, 20)
    received[0, 0, [7, 9, 11, 1]] = torch.tensor([1.0, 3.0, 2.0, 9.0])
    received[0, 1, [5, 6, 12]] = 1.0
    kept = evict(received, torch.tensor([20]), 0.6)  # 12 tokens: 4 first, 6 recent, 2 by attention
    assert torch.nonzero(kept[0, 0]).flatten().tolist() == [0, 1, 2, 3, 9, 11, *range(14, 20)]
    assert torch.nonzero(kept[0, 1]).flatten().tolist() == [0, 1, 2, 3, 5, 6, *range(14, 20)]


def test_small_budget_goes_to_the_first_and_the_very_last() -> None:
    kept = evict(torch.rand(1, 1, 20), torch.tensor([20]), 0.25)
    assert torch.nonzero(kept[0, 0]).flatten().tolist() == [0, 1, 2, 3, 19]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    keep=st.floats(0.01, 1.0),
    seed=st.integers(0, 9),
)
def test_budget_is_kept_and_nothing_beyond_the_end(lengths: list[int], keep: float, seed: int) -> None:
    received = torch.rand(len(lengths), 2, max(lengths), generator=torch.Generator().manual_seed(seed))
    kept = evict(received, torch.tensor(lengths), keep)
    for row, length in enumerate(lengths):
        budget = min(length, max(1, round(torch.tensor(length * keep).item())))
        assert kept[row].sum(1).tolist() == [budget, budget]
        assert not bool(kept[row, :, length:].any())
        assert bool(kept[row, :, : min(SINKS, budget)].all())


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_what_is_evicted_received_no_more_than_what_was_chosen(keep: float) -> None:
    received = torch.rand(1, 1, 50, generator=torch.Generator().manual_seed(1))
    kept = evict(received, torch.tensor([50]), keep)[0, 0]
    budget = round(50 * keep)
    between = torch.arange(SINKS, 50 - (budget + 1) // 2)
    chosen, gone = between[kept[between]], between[~kept[between]]
    assert len(chosen) == budget - SINKS - (budget + 1) // 2
    assert float(received[0, 0, chosen].min()) >= float(received[0, 0, gone].max())
