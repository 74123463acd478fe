"""Distances of laws of similarity."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from ratedist.errors import InputError
from ratedist.sim.distance import law_distance, pair_scores


def test_against_scipy() -> None:
    rng = np.random.default_rng(0)
    for one, other in (
        (rng.normal(0, 1, 300), rng.normal(0.3, 1.2, 500)),
        (np.round(rng.random(100), 1), np.round(rng.random(70), 1)),
        (np.ones(3), np.array([1.0, 0.5])),
    ):
        distance = law_distance(one, other)
        assert distance.wasserstein == pytest.approx(scipy.stats.wasserstein_distance(one, other))
        assert distance.kolmogorov == pytest.approx(scipy.stats.ks_2samp(one, other).statistic)


def test_pairs_are_of_different_requests_with_their_position_difference() -> None:
    blocks = np.random.default_rng(1).standard_normal((3, 2, 4, 5))
    pairs = pair_scores(blocks, [2, 1, 2])
    assert pairs.scores.size == 2 * 1 + 2 * 2 + 1 * 2
    assert sorted(np.unique(pairs.difference).tolist()) == [0, 1]
    a, b = blocks[0, 1].ravel(), blocks[2, 0].ravel()
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert np.abs(pairs.scores[pairs.difference == 1] - expected).min() < 1e-6


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"scores = '0 values': must be at least one, all finite"):
        law_distance([], [1.0])
    with pytest.raises(InputError, match=r"all finite"):
        law_distance([np.nan], [1.0])
