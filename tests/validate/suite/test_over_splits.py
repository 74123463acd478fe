"""validate.suite.over_splits against splits whose spread is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.validate.suite.over_splits import (
    split_weights,
    weighted_mean_interval,
    weighted_quantile_interval,
)


def rows_of(splits: np.ndarray, rows: int) -> tuple[list[str], list[int], np.ndarray]:
    """``rows`` equal rows per split of (workloads, seeds) values: all that varies is the split."""
    workloads, seeds = splits.shape
    name = [f"w{w}" for w in range(workloads) for _ in range(seeds * rows)]
    seed = [s for _ in range(workloads) for s in range(seeds) for _ in range(rows)]
    return name, seed, np.repeat(splits.ravel(), rows)


def test_spread_is_that_of_the_splits() -> None:
    """Over 300 experiments of 4 workloads × 3 splits the mean interval is as wide as normal means with this
    variance are spread, and it holds the true mean about as often as it promises; bands that took rows for
    independent would be √50 times too narrow.

    The bootstrap is ``ratedist.validate.suite.over_splits.split_weights``.
    """
    rng = np.random.default_rng(3)
    centres = np.array([[0.0], [1.0], [5.0], [-2.0]])  # workloads differ, and are not drawn again
    widths, held = [], []
    for experiment in range(300):
        name, seed, values = rows_of(centres + rng.standard_normal((4, 3)), 50)
        drawn = split_weights(name, seed, draws=200, rng_seed=experiment)
        assert drawn is not None
        interval = weighted_mean_interval(values, *drawn)
        assert interval is not None
        widths.append(interval[1] - interval[0])
        held.append(interval[0] <= centres.mean() <= interval[1])
    # The variance of a mean of 12; 1.645 deviations either way; little is known from three splits each.
    assert np.mean(widths) == pytest.approx(2 * 1.645 / math.sqrt(12), rel=0.1)
    assert 0.78 < np.mean(held) < 0.92


def test_weights_leave_their_mean_alone() -> None:
    name, seed, _ = rows_of(np.zeros((2, 3)), 4)
    drawn = split_weights([*name, "lonely"], [*seed, 0], draws=4000)
    assert drawn is not None
    split, weights = drawn
    assert split.tolist() == [number for number in range(6) for _ in range(4)] + [6]
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.06)
    assert (weights[:, :6].reshape(-1, 2, 3).sum(axis=2) == 3).all()
    assert (weights[:, 6] == 1).all()  # a split without another one stays as it is


def test_quantiles_follow_the_splits() -> None:
    name, seed, values = rows_of(np.array([[0.0, 0.0, 9.0, 9.0]]), 5)
    drawn = split_weights(name, seed)
    assert drawn is not None
    assert weighted_quantile_interval(values, *drawn, 0.5) == [0.0, 9.0]
    assert weighted_quantile_interval(np.ones(20), *drawn, 0.5) == [1.0, 1.0]
    values[values == 9.0] = np.inf
    assert weighted_quantile_interval(values, *drawn, 0.5) is None
    weights = np.array([[1.0, 1.0, 1.0, 1.0]])
    for q, expected in ((0.2, 4.0), (0.5, 10.0), (0.9, 18.0), (1.0, 20.0)):
        ordered = np.arange(1.0, 21.0)[::-1].copy()
        assert weighted_quantile_interval(ordered, drawn[0], weights, q) == [expected, expected]


def test_one_split_says_nothing_of_others() -> None:
    assert split_weights(["w", "w", "v"], [0, 0, 3]) is None
    with pytest.raises(InputError, match=r"seed = 1: must have an entry per row, 2"):
        split_weights(["w", "w"], [0])
