"""predictors.growth: curves of known shape, exact and with noise."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.predictors.growth import Growth, bins_of


def curve(height: float, scale: float, power: float, steps: int) -> np.ndarray:
    shares = height * (1 + np.arange(steps) / scale) ** -power
    shares[0] = 1.0
    return shares[None]


def replicates(shares: np.ndarray, noise: float, count: int = 16) -> np.ndarray:
    """Replicates of a jackknife whose every step errs by ``noise``, relatively."""
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(count, 1, 1)) + 0.3 * rng.normal(size=(count, *shares.shape))
    out = shares * (1 + noise * errors / np.sqrt(count - 1))
    out[:, :, -1] = np.nan
    return out


@pytest.mark.parametrize(
    ("height", "scale", "power"),
    [(0.9, 2.0, 0.5), (1.0, 20.0, 1.2), (0.5, 0.5, 0.3), (0.8, 40.0, 2.5), (1.0, 40.0, 6.0)],
)
def test_continues_a_known_curve(height: float, scale: float, power: float) -> None:
    """16 steps to 64: new blocks within 15 %, or 5 % of all, and weights that are weights.

    Even at an error of half a percent three numbers leave that much open at four times the sample.
    """
    whole = curve(height, scale, power, 64)
    growth = Growth.of(whole[:, :16], replicates(whole[:, :16], 0.005), 384)
    share, weight = growth.ahead(whole[:, :16], np.arange(16, 64))
    assert weight.sum(axis=0) == pytest.approx(1)
    assert (weight >= 0).all()
    assert ((share >= 0) & (share <= 1)).all()
    predicted = (weight[:, :, None] * share).sum()
    assert predicted == pytest.approx(whole[0, 16:].sum(), rel=0.15, abs=0.05 * whole.sum())


def test_noise_leaves_more_curves_open() -> None:
    whole = curve(0.9, 5.0, 0.6, 64)[:, :16]
    spreads = []
    for noise in (0.02, 0.1, 0.4):
        share, weight = Growth.of(whole, replicates(whole, noise), 384).ahead(whole, np.arange(16, 64))
        total = share.sum(axis=2)
        mean = (weight * total).sum(axis=0)
        spreads.append(float(np.sqrt((weight * (total - mean) ** 2).sum(axis=0))[0]))
    assert spreads[0] < spreads[1] < spreads[2]
    assert spreads[2] > 3 * spreads[0]


def test_a_constant_share_stays() -> None:
    """Unique blocks: 60 % of every request, whoever came before; at most 2 % of it lost by 64.

    A grid whose flattest slope is 0.02 loses 5 %.
    """
    flat = np.full((1, 16), 0.6)
    share, weight = Growth.of(flat, replicates(flat, 0.005), 384).ahead(flat, np.arange(16, 64))
    mean = (weight[:, :, None] * share).sum(axis=0)[0]
    assert mean[0] == pytest.approx(0.6, rel=0.02)
    assert 0.588 < mean[-1] <= 0.6


@pytest.mark.parametrize("steps", [2, 3, 5, 12, 16, 64])
def test_bins_cover_every_step_after_the_first(steps: int) -> None:
    bins = bins_of(steps)
    assert bins[0] == 1
    assert (np.diff(bins) > 0).all()
    assert bins[-1] < steps


def test_two_requests_without_replicates_still_have_a_continuation() -> None:
    share, weight = Growth.of(np.array([[1.0, 0.5]]), None, 8).ahead(np.array([[1.0, 0.5]]), np.array([2, 3]))
    mean = (weight[:, :, None] * share).sum(axis=0)[0]
    assert 0.2 < mean[1] <= mean[0] <= 0.51
