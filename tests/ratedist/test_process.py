"""ratedist/process.py against samples of the process itself."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.process import (
    EmpiricalMixing,
    GammaMixing,
    HashRecall,
    MarkedProcess,
    MatchProcess,
    Mixing,
    NoMixing,
)
from ratedist.similarity import Gaussian, Spherical

RUNS = 40_000
MIXINGS: list[Mixing] = [NoMixing(), GammaMixing(0.7), EmpiricalMixing([0.0, 1.0, 5.0, 0.5])]


def sampled_scores(process: MatchProcess, above: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Scores above a level that RUNS independent blocks meet: Poisson numbers of draws from the tail."""
    tail = float(process.law.sf(above))
    rate = process.representatives * tail * process.mixing.rvs(RUNS, rng)
    counts = rng.poisson(rate)
    scores = process.law.isf(tail * rng.random(int(counts.sum())))
    if process.recall is not None:
        found = rng.random(scores.size) < process.recall(scores)
        owner = np.repeat(np.arange(RUNS), counts)[found]
        return np.split(scores[found], np.cumsum(np.bincount(owner, minlength=RUNS))[:-1])
    return np.split(scores, np.cumsum(counts)[:-1])


def assert_mean(values: np.ndarray, expected: float, sigmas: float = 4.5) -> None:
    error = values.std(ddof=1) / np.sqrt(values.size) + 1e-12
    assert abs(values.mean() - expected) < sigmas * error, (values.mean(), expected, error)


@pytest.mark.parametrize("mixing", MIXINGS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("recall", [None, HashRecall(4, 6)], ids=["all", "hashed"])
def test_mixed_void_and_counts_against_samples(mixing: Mixing, recall: HashRecall | None) -> None:
    process = MatchProcess(Spherical(16), 60.0, mixing=mixing, recall=recall)
    rng = np.random.default_rng(1)
    tau = 0.45
    scores = sampled_scores(process, tau, rng)
    counts = np.array([s.size for s in scores])
    assert_mean(counts, float(process.rate(tau)))
    assert_mean((counts == 0).astype(float), float(process.void(tau)))
    for k in (0, 1, 3):
        assert_mean((counts == k).astype(float), float(process.exceedance_pmf(k, tau)))
    assert np.var(counts) == pytest.approx(float(process.exceedance_variance(tau)), rel=0.1)
    best = np.array([s.max() if s.size else -1.0 for s in scores])
    assert_mean((best <= 0.6).astype(float), float(process.best_match_cdf(0.6)))
    matched = best[best > tau]
    assert_mean(2 - 2 * matched, process.best_match_mean(lambda s: 2 - 2 * s, tau))


@pytest.mark.parametrize("law", [Spherical(64), Gaussian(0.5, 0.07)], ids=repr)
@pytest.mark.parametrize("count", [1e-9, 3.0, 500.0])
def test_best_match_mean(law: Spherical | Gaussian, count: float) -> None:
    """Against adaptive quadrature of 2(1 − τ)(1 − G(τ)) − 2∫(1 − G)."""
    tau = float(law.isf(0.02))
    process = MatchProcess(law, count)

    def better(s: float) -> float:
        return -float(np.expm1(-count * law.sf(s)))

    middle = tau + 0.3 * (1 - tau)
    integral = sum(
        scipy.integrate.quad(better, a, b, epsrel=1e-10, epsabs=0, limit=200)[0]
        for a, b in ((tau, middle), (middle, 1.0))
    )
    expected = (2 * (1 - tau) * better(tau) - 2 * integral) / better(tau)
    assert process.best_match_mean(lambda s: 2 - 2 * s, tau) == pytest.approx(expected, rel=2e-5)


def test_intensity_is_the_derivative_of_the_rate() -> None:
    process = MatchProcess(Spherical(20), 30.0, recall=HashRecall(3, 4))
    for s in (0.1, 0.5):
        slope = (float(process.rate(s - 1e-4)) - float(process.rate(s + 1e-4))) / 2e-4
        assert float(process.intensity(s)) == pytest.approx(slope, rel=1e-4)


@given(st.floats(0.05, 20.0), st.floats(0.0, 30.0))
def test_mixing_raises_the_void(shape: float, rate: float) -> None:
    """Jensen: with the same mean, a popularity that varies leaves more blocks alone."""
    plain = float(NoMixing().void(rate))
    assert float(GammaMixing(shape).void(rate)) >= plain * (1 - 1e-12)
    assert float(EmpiricalMixing([0.0, shape]).void(rate)) >= plain * (1 - 1e-12)


@pytest.mark.parametrize("mixing", MIXINGS, ids=lambda m: type(m).__name__)
def test_counts_sum_to_one_with_the_void_first(mixing: Mixing) -> None:
    chances = mixing.pmf(np.arange(400), 7.0)
    assert chances.sum() == pytest.approx(1.0, abs=1e-9)
    assert chances[0] == pytest.approx(float(mixing.void(7.0)))
    mean = (np.arange(400) * chances).sum()
    assert mean == pytest.approx(7.0)
    assert (np.arange(400) ** 2 * chances).sum() - mean**2 == pytest.approx(7.0 + mixing.variance * 49.0)


def test_gamma_of_large_shape_is_poisson() -> None:
    assert float(GammaMixing(1e9).void(2.5)) == pytest.approx(np.exp(-2.5), rel=1e-8)


def test_recall_of_hashed_directions() -> None:
    """Averaged over draws of the hyperplanes, a pair at an angle is found with the closed form's chance."""
    rng = np.random.default_rng(4)
    recall = HashRecall(tables=5, bits=4)
    for score in (-0.2, 0.5, 0.9):
        x = np.array([1.0, 0.0])
        y = np.array([score, np.sqrt(1 - score**2)])
        planes = rng.standard_normal((RUNS, recall.tables, recall.bits, 2))
        agree = (planes @ x > 0) == (planes @ y > 0)
        assert_mean(agree.all(axis=2).any(axis=1).astype(float), float(recall(score)))
    assert float(recall(1.0)) == 1.0
    assert float(recall(-1.0)) == 0.0


def test_marked_process_is_the_homogeneous_one_where_all_positions_are_alike() -> None:
    law = Spherical(12)
    counts = np.array([2.0, 5.0, 1.0])
    marked = MarkedProcess(lambda s: np.full((3, 3), float(law.sf(s))), counts, mixing=GammaMixing(2.0))
    single = MatchProcess(law, counts.sum(), mixing=GammaMixing(2.0))
    np.testing.assert_allclose(marked.void(0.3), float(single.void(0.3)))
    np.testing.assert_allclose(marked.exceedance_pmf([0, 2], 0.3)[1], single.exceedance_pmf([0, 2], 0.3))


def test_marked_rows_are_the_new_block() -> None:
    marked = MarkedProcess(lambda s: np.array([[0.0, 0.5], [0.1, 0.2]]), [10.0, 1.0])
    np.testing.assert_allclose(marked.rate(0.5), [0.5, 1.2])


def test_nothing_to_match() -> None:
    assert np.isnan(MatchProcess(Spherical(8), 0.0).best_match_mean(lambda s: s, 0.5))
    assert float(MatchProcess(Spherical(8), 0.0).void(0.5)) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MatchProcess(Spherical(8), -1.0), r"representatives = -1.0: .*at least 0"),
        (lambda: MatchProcess(Spherical(8), float("nan")), r"representatives = nan: must be finite"),
        (lambda: GammaMixing(0.0), r"shape = 0.0: .*above 0"),
        (lambda: EmpiricalMixing([]), r"popularities = 'an empty sample': needs at least one"),
        (lambda: EmpiricalMixing([0.0, 0.0]), r"popularities = 0.0: must hold at least one number above 0"),
        (lambda: EmpiricalMixing([1.0, -1.0]), r"popularities = -1.0: .*at least 0"),
        (lambda: HashRecall(0, 4), r"tables = 0: must be a whole number of at least 1"),
        (lambda: HashRecall(2, 1.5), r"bits = 1.5: must be a whole number"),  # type: ignore[arg-type]
        (lambda: HashRecall(2, 2)(1.5), r"score = 1.5: .*\[-1, 1\]"),
        (lambda: MatchProcess(Spherical(8), 1.0).exceedance_pmf(0.5, 0.1), r"count = 0.5: must be a whole"),
        (lambda: MatchProcess(Spherical(8), 1.0).best_match_mean(lambda s: s, 2.0), r"threshold = 2.0"),
        (lambda: MarkedProcess(lambda s: np.eye(3), [1.0, 1.0]).rate(0.5), r"must be \(2, 2\)"),
        (lambda: MarkedProcess(lambda s: [[1.5]], [1.0]).rate(0.5), r"exceedance = 1.5"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
