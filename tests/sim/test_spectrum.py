"""Spectra of residuals from fewer samples than dimensions."""

from __future__ import annotations

import numpy as np

from ratedist.sim.spectrum import estimate_spectrum


def drawn(shares: np.ndarray, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, shares.size)) * np.sqrt(shares)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_recovers_the_spread_of_similarity() -> None:
    """Effective dimension against the spread of similarity of fresh draws; the sample's spectrum fails it."""
    size = 600
    cases = {
        "flat": np.full(size, 1 / size),
        "spiked": np.concatenate([np.full(5, 0.06), np.full(size - 5, 0.7 / (size - 5))]),
        "power": np.arange(1, size + 1) ** -1.0 / (np.arange(1, size + 1) ** -1.0).sum(),
    }
    for name, shares in cases.items():
        sample, fresh = drawn(shares, 200, 1), drawn(shares, 800, 2)
        table = fresh @ fresh.T
        truth = 1 / np.square(table[np.triu_indices(800, 1)]).mean()
        fit = estimate_spectrum(sample, np.repeat(np.arange(20), 10), rank=64)
        assert abs(fit.effective_dimension / truth - 1) < 0.12, name
        empirical = np.linalg.eigvalsh(sample @ sample.T) / 200
        assert 1 / np.square(empirical).sum() < 0.9 * truth
        np.testing.assert_allclose(fit.basis @ fit.basis.T, np.eye(len(fit.basis)), atol=1e-5)
        assert np.all(np.diff(fit.shares) <= 0)
        assert fit.shares.sum() <= 1


def test_finds_the_directions_of_spikes() -> None:
    shares = np.concatenate([np.full(3, 0.15), np.full(297, 0.55 / 297)])
    fit = estimate_spectrum(drawn(shares, 300, 3), np.arange(300), rank=50)
    np.testing.assert_allclose(fit.shares[:3], 0.15, rtol=0.25)
    assert fit.shares[3] < 0.02
    assert np.linalg.norm(fit.basis[:3, :3]) ** 2 > 2.8


def test_one_request_or_one_row_gives_a_flat_spectrum() -> None:
    rows = drawn(np.full(20, 1 / 20), 5, 4)
    for residuals, groups in ((rows, np.zeros(5, dtype=int)), (rows[:1], np.zeros(1, dtype=int))):
        fit = estimate_spectrum(residuals, groups, rank=10)
        assert fit.shares.size == 0
        assert fit.rest_dimension == 20
