"""Scattered pairs are what a Poisson process would be, given how many there are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.exceedances import Exceedances
from ratedist.exceedances.scatter import scatter


def tally(exceedances: Exceedances, null: str, draws: int) -> dict[tuple[int, int], int]:
    counts: dict[tuple[int, int], int] = {}
    for made in scatter(exceedances, draws, np.random.default_rng(0), null):
        pairs = list(zip(made.first.tolist(), made.second.tolist(), strict=True))
        assert len(set(pairs)) == exceedances.count
        requests = made.request_of
        assert all(requests[x] != requests[y] for x, y in pairs)
        for x, y in pairs:
            counts[min(x, y), max(x, y)] = counts.get((min(x, y), max(x, y)), 0) + 1
    return counts


@pytest.mark.parametrize("null", ["homogeneous", "positions"])
def test_scattered_pairs_are_uniform(ragged: Exceedances, null: str) -> None:
    """Every candidate pair comes up at its own rate (``scatter``), within 4.5 binomial errors."""
    draws = 3000
    counts = tally(ragged, null, draws)
    rates = ragged.position_rates()
    request, position = ragged.request_of, ragged.position_of
    for x, y in itertools.combinations(range(ragged.block_count), 2):
        if request[x] == request[y]:
            assert (x, y) not in counts
            continue
        rate = ragged.rate if null == "homogeneous" else rates[position[x], position[y]]
        error = math.sqrt(rate * (1 - rate) / draws)
        assert abs(counts.get((x, y), 0) / draws - rate) < 4.5 * error + 1e-12


def test_positions_keep_their_counts(ragged: Exceedances) -> None:
    seen = ragged.position_rates()
    for made in scatter(ragged, 20, np.random.default_rng(1), "positions"):
        np.testing.assert_allclose(made.position_rates(), seen)


def test_full_cells_stay_full() -> None:
    """A prefix that everyone shares leaves its positions no choice."""
    mask = np.zeros((5, 3, 5, 3), dtype=bool)
    mask[:, 0, :, 0] = True
    mask[0, 2, 1, 1] = True
    made = next(scatter(Exceedances.from_scores(mask), 1, np.random.default_rng(0), "positions"))
    np.testing.assert_array_equal(made.per_block[made.position_of == 0], 4)
    assert len(set(zip(made.first, made.second, strict=True))) == 11
    assert made.count == 11


def test_pairs_are_drawn_independently() -> None:
    """Homogeneous draws: the number that share a block has the mean of independent pairs."""
    rng = np.random.default_rng(2)
    mask = rng.random((10, 8, 10, 8)) < 0.01
    exceedances = Exceedances.from_scores(mask)
    shared = []
    for made in scatter(exceedances, 800, rng):
        shared.append(np.sum(made.per_block * (made.per_block - 1)) / 2)
    pairs = exceedances.count * (exceedances.count - 1) / 2
    degree = 2 * (9 * 8 - 1)
    expected = pairs * degree / (exceedances.candidate_pairs - 1)
    assert abs(np.mean(shared) - expected) < 4 * np.std(shared) / math.sqrt(800)


def test_unknown_null(ragged: Exceedances) -> None:
    with pytest.raises(InputError, match=r"null = 'marked': must be one of homogeneous, positions"):
        next(scatter(ragged, 1, np.random.default_rng(0), "marked"))
