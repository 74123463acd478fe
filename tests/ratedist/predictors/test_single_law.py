"""Predictors of one law: what they take from the sample."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.predictors import PairSample, predictor_class
from ratedist.predictors.sample_fusion import Units, fuse_sample

NAMES = ["empirical", "pareto-tail"]


def sample_of(x: np.ndarray) -> PairSample:
    requests, blocks = x.shape[:2]
    flat = x.reshape(requests * blocks, -1)
    owner = np.repeat(np.arange(requests), blocks)
    return PairSample.from_vectors(flat, flat + 0.3, owner, np.tile(np.arange(blocks), requests))


def test_chances_are_shares_of_the_pairs() -> None:
    """Two requests: block 0 meets at least one match with the share of the pairs that exceed."""
    x = np.random.default_rng(0).normal(size=(8, 5, 4))
    x[3, 0] = x[0, 0]
    sample = sample_of(x)
    score = sample.scores("keys")[sample.comparable]
    for threshold in (-0.2, 0.3, 0.8):
        share = (score > threshold).mean()
        prediction = predictor_class("empirical")(sample).predict([1, 1], threshold)
        assert prediction.kept[0] == pytest.approx(2 - share, rel=1e-9)
    assert predictor_class("empirical")(sample).predict([1, 1], 1.0).kept[0] == pytest.approx(
        2 - sample.exact[sample.comparable].mean()
    )


def test_tail_reaches_beyond_the_sample() -> None:
    """Directions in 5 dimensions: a chance of one in 138 within 25 % of the law, 0.5·I(1 − s²; 2, ½), and one
    beyond the sample's largest score within a factor of 8, where the sample itself has nothing."""
    import scipy

    x = np.random.default_rng(1).normal(size=(30, 6, 5))
    sample = sample_of(x)
    top = sample.scores("keys")[sample.comparable].max()
    for threshold, factor in ((0.9, 1.25), ((1 + top) / 2, 8)):
        truth = 0.5 * scipy.special.betainc(2, 0.5, 1 - threshold**2)
        kept = predictor_class("pareto-tail")(sample).predict([1, 1], threshold).kept[0]
        assert truth / factor < 2 - kept < truth * factor
    assert predictor_class("empirical")(sample).predict([1, 1], (1 + top) / 2).kept[0] == 2


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_an_atom(name: str) -> None:
    """A prefix that all share: half of the pairs of first blocks, at any threshold, without error."""
    x = np.random.default_rng(2).normal(size=(12, 2, 200))
    x[:, 0] = x[0, 0]
    prediction = predictor_class(name)(sample_of(x)).predict([2, 2], [0.9, 1.0])
    assert prediction.kept == pytest.approx([4 - 2 * (1 - 0.75**2)] * 2, rel=1e-6)
    assert prediction.k_error == pytest.approx([0, 0], abs=1e-6)
    assert prediction.v_error == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["leader", "tree"])
def test_one_law_is_enough_where_there_is_one(name: str, variant: str) -> None:
    """Directions in 16 dimensions: kept blocks and errors of 20 batches of 8 requests within 4 %."""
    rng = np.random.default_rng(3)
    predictor = predictor_class(name)(sample_of(rng.normal(size=(24, 8, 16))))
    prediction = predictor.predict([8] * 8, 0.5, variant=variant)
    kept, squared = [], []
    for _ in range(20):
        sample = sample_of(rng.normal(size=(8, 8, 16)))
        units = Units.of(sample.request, sample.position, sample.duplicate, np.ones(64, bool))
        fused = fuse_sample(sample.scores("keys"), units, np.arange(8), np.array([0.5]), variant)
        kept.append(fused.kept.sum())
        error = sample.squared_errors("own-norm")[0]
        squared.append(error[np.arange(64), fused.representative[0]].mean())
    assert prediction.kept[0] == pytest.approx(np.mean(kept), rel=0.04)
    assert prediction.k_error[0] == pytest.approx(np.sqrt(np.mean(squared)), rel=0.04)


def test_few_pairs_leave_the_sample_s_own_law() -> None:
    x = np.random.default_rng(4).normal(size=(4, 2, 6))
    few = predictor_class("pareto-tail")(sample_of(x)).predict([2] * 4, [0.1, 0.5])
    own = predictor_class("empirical")(sample_of(x)).predict([2] * 4, [0.1, 0.5])
    np.testing.assert_allclose(few.kept, own.kept)
