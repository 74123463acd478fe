"""predictors.heterogeneous: its void, and traffic whose blocks differ in popularity."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.predictors import PairSample, predictor_class
from ratedist.predictors.heterogeneous import void
from ratedist.predictors.sample_fusion import Units, fuse_sample


def test_void_is_a_mixture() -> None:
    """E exp(−RΛ) for R gamma of mean 1 and variance c; exp(−Λ) at c = 0; 0 beyond a hard core."""
    rng = np.random.default_rng(0)
    rate = np.array([0.0, 0.3, 2.0, 10.0])
    for c in (0.5, 2.0):
        drawn = rng.gamma(1 / c, c, size=200_000)
        expected = np.exp(-drawn[:, None] * rate).mean(axis=0)
        np.testing.assert_allclose(void(rate, np.array(c)), expected, atol=0.004)
    np.testing.assert_allclose(void(rate, np.array(0.0)), np.exp(-rate))
    np.testing.assert_allclose(void(rate, np.array(1e-6)), np.exp(-rate), rtol=1e-4)
    assert void(np.array([3.0]), np.array([-0.5])).tolist() == [0.0]
    assert void(np.array([1.0]), np.array([-0.5]))[0] == pytest.approx(0.25)


def popular(requests: int, rng: np.random.Generator) -> np.ndarray:
    """(requests, 4, 12): half of the blocks near their position's direction, half anywhere."""
    places = np.random.default_rng(5).normal(size=(4, 12))
    x = rng.normal(size=(requests, 4, 12))
    near = rng.random((requests, 4)) < 0.5
    x[near] = (places + 0.4 * rng.normal(size=(requests, 4, 12)))[near]
    return x


def sample_of(x: np.ndarray) -> PairSample:
    requests, blocks = x.shape[:2]
    flat = x.reshape(requests * blocks, -1)
    owner = np.repeat(np.arange(requests), blocks)
    return PairSample.from_vectors(flat, flat, owner, np.tile(np.arange(blocks), requests))


@pytest.mark.parametrize("variant", ["leader", "tree"])
def test_sees_popularity_where_positions_do_not(variant: str) -> None:
    """16 → 48: within 15 % of the mean of 12 batches, where the plain position-marked process is 25 % low."""
    rng = np.random.default_rng(6)
    sample = sample_of(popular(16, rng))
    errors = {}
    measured = []
    for _ in range(12):
        batch = sample_of(popular(48, rng))
        units = Units.of(batch.request, batch.position, batch.duplicate, np.ones(len(batch.request), bool))
        fused = fuse_sample(batch.scores("keys"), units, np.arange(48), np.array([0.6]), variant)
        measured.append(fused.kept.sum())
    for name in ("position-marked", "heterogeneous"):
        kept = predictor_class(name)(sample).predict([4] * 48, 0.6, variant=variant).kept[0]
        errors[name] = float(np.log(kept / np.mean(measured)))
    assert errors["position-marked"] < -0.25
    assert abs(errors["heterogeneous"]) < 0.15


def test_copies_saturate_by_themselves() -> None:
    """One of four prefixes before blocks like nothing: distinct blocks are the prefixes and the rest."""
    rng = np.random.default_rng(8)
    prefixes = rng.normal(size=(4, 2, 300))

    def batch(requests: int) -> np.ndarray:
        x = rng.normal(size=(requests, 5, 300))
        x[:, :2] = prefixes[rng.integers(0, 4, requests)]
        return x

    prediction = predictor_class("heterogeneous")(sample_of(batch(16))).predict([5] * 64, [0.9])
    assert prediction.kept[0] == pytest.approx(64 * 3 + 8, rel=0.03)
    assert prediction.k_error[0] == pytest.approx(0, abs=1e-6)


def test_band_is_that_of_accumulation_and_wider_where_the_two_disagree() -> None:
    sample = sample_of(popular(16, np.random.default_rng(9)))
    widths = {}
    for name in ("heterogeneous", "accumulation"):
        for requests in (16, 64):
            prediction = predictor_class(name)(sample).predict([4] * requests, [0.6])
            assert prediction.kept_low is not None
            assert prediction.kept_high is not None
            ends = (prediction.kept_high[0] - 0.5) / (prediction.kept_low[0] + 0.5)
            widths[name, requests] = float(np.log(ends))
    assert widths["heterogeneous", 16] == pytest.approx(widths["accumulation", 16], rel=0.02)
    assert widths["heterogeneous", 64] >= widths["accumulation", 64] * (1 - 1e-6)
