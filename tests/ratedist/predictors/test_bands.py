"""Bands of predictions: coverage where the process is known, and how domains combine."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from ratedist.predictors import PairSample, predictor_class
from ratedist.predictors.base import Outcome, Prediction, Predictor, Spread
from ratedist.predictors.sample_fusion import Units, fuse_sample

BLOCKS = 5
THRESHOLDS = np.array([0.5, 0.65])


def traffic(requests: int, rng: np.random.Generator) -> np.ndarray:
    """(requests, blocks, 20): topics of unequal popularity, blocks near their topic's, a fifth new."""
    topics = np.random.default_rng(7).normal(size=(10, BLOCKS, 20))
    popularity = 1 / np.arange(1.0, 11.0)
    topic = rng.choice(10, p=popularity / popularity.sum(), size=requests)
    x = topics[topic] + 0.75 * rng.normal(size=(requests, BLOCKS, 20))
    fresh = rng.random((requests, BLOCKS)) < 0.2
    x[fresh] = rng.normal(size=(int(fresh.sum()), 20))
    return x


def sample_of(x: np.ndarray) -> PairSample:
    requests, blocks = x.shape[:2]
    flat = x.reshape(requests * blocks, -1)
    return PairSample.from_vectors(
        flat, flat, np.repeat(np.arange(requests), blocks), np.tile(np.arange(blocks), requests)
    )


def kept(x: np.ndarray, variant: str) -> np.ndarray:
    sample = sample_of(x)
    units = Units.of(sample.request, sample.position, sample.duplicate, np.ones(len(sample.request), bool))
    order = np.arange(len(x))
    return fuse_sample(sample.scores("keys"), units, order, THRESHOLDS, variant).kept.sum(axis=1)


@pytest.mark.parametrize(
    ("variant", "requests", "bias"), [("leader", 12, 0.04), ("leader", 48, 0.12), ("tree", 12, 0.05)]
)
def test_bands_of_accumulation_cover_new_batches(variant: str, requests: int, bias: float) -> None:
    """60 samples of 12 requests, each predicting another batch: 90 % bands cover at least 80 %.

    With 60 trials the standard error of a coverage of 90 % is 3.9 % (thresholds share their requests), so
    80 % is 2.6 of them below. The mean error of ln(kept) has a standard error of 0.02; from 12 to 12 there
    is none, at 48 how the curve is continued may add to it.
    """
    rng = np.random.default_rng(21)
    inside, errors, widths = [], [], []
    for _ in range(60):
        predictor = predictor_class("accumulation")(sample_of(traffic(12, rng)))
        prediction = predictor.predict([BLOCKS] * requests, THRESHOLDS, variant=variant)
        found = kept(traffic(requests, rng), variant)
        low, high = prediction.kept_low, prediction.kept_high
        assert low is not None
        assert high is not None
        inside.append((np.floor(low) <= found) & (found <= np.ceil(high)))
        errors.append(np.log(prediction.kept / found))
        widths.append(np.log(high / low) / 2)
    assert np.mean(inside) >= 0.8
    assert np.abs(np.mean(errors, axis=0)).max() < bias
    # Not by being wide: at most 2.5 times a band that knew the spread of the errors.
    assert (np.mean(widths, axis=0) < 2.5 * 1.645 * np.std(errors, axis=0)).all()


class Fixed(Predictor):
    """A predictor that keeps half of the blocks, with a spread given in advance."""

    name = "fixed"
    spread: Spread | None = Spread(np.array([0.1]), np.array([0.2]), 10)

    def _fit(self, sample: PairSample) -> None:
        pass

    def _fuse(self, full_blocks: np.ndarray, thresholds: np.ndarray, variant: str) -> Outcome:
        return Outcome(np.array([full_blocks.sum() / 2]), np.zeros((2, 1)), self.spread)


def log_width(prediction: Prediction) -> float:
    assert prediction.kept_low is not None
    assert prediction.kept_high is not None
    return float(np.log((prediction.kept_high[0] - 0.5) / (prediction.kept_low[0] + 0.5)) / 2)


def test_domains_add_up_and_chance_averages_out() -> None:
    """Four alike domains: calibration's part of ln(kept) stays 0.1, chance's 0.2 halves."""
    predictor = Fixed(sample_of(traffic(4, np.random.default_rng(0))))
    quantile = float(scipy.stats.t.ppf(0.95, 10))
    one = predictor.predict([1000] * 16, 0.7)
    four = predictor.predict([1000] * 16, 0.7, domains=[0, 1, 2, 3] * 4)
    assert log_width(one) == pytest.approx(quantile * np.hypot(0.1, 0.2), rel=1e-6)
    assert log_width(four) == pytest.approx(quantile * np.hypot(0.1, 0.1), rel=1e-6)
    assert one.compression_low == pytest.approx(16000 / one.kept_high)
    assert one.compression_high == pytest.approx(16000 / one.kept_low)


def test_bands_end_where_counts_do() -> None:
    predictor = Fixed(sample_of(traffic(4, np.random.default_rng(0))))
    prediction = predictor.predict([5, 1, 1, 1], 0.7)
    assert prediction.kept_low == pytest.approx([4.0])  # never above what is predicted
    assert prediction.kept_high is not None
    assert prediction.kept_high[0] <= 8


def test_one_domain_without_a_spread_leaves_no_band() -> None:
    predictor = Fixed(sample_of(traffic(4, np.random.default_rng(0))))
    predictor.spread = None  # type: ignore[misc]
    prediction = predictor.predict([5, 5], 0.7)
    assert prediction.kept_low is None
    assert prediction.kept_high is None
    assert prediction.compression_low is None
    assert prediction.compression_high is None
