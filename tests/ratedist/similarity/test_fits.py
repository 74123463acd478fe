"""Fits find the law a sample came from, with honest standard errors, and refuse what they cannot."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.similarity import (
    Empirical,
    Gaussian,
    Mixture,
    ParetoTail,
    SimilarityLaw,
    Spherical,
    TruncatedGaussian,
)

PARETO = ParetoTail([-0.2, 0.3, 0.5], [0.0, 0.8, 1.0], 0.15, -0.15, 0.05)
PARAMETRIC = {
    "spherical-3": (Spherical(3), ("dim",)),
    "spherical-40": (Spherical(40), ("dim",)),
    "spherical-3072": (Spherical(3072), ("dim",)),
    "gaussian": (Gaussian(0.55, 0.08), ("mean", "std")),
    "truncated": (TruncatedGaussian(0.9, 0.1), ("mean", "std")),
    "pareto": (PARETO, ("shape", "scale", "tail_share")),
}


def fit(law: SimilarityLaw, sample: np.ndarray):
    return ParetoTail.fit(sample, threshold=0.5) if isinstance(law, ParetoTail) else type(law).fit(sample)


@pytest.mark.parametrize("name", list(PARAMETRIC))
def test_fits_recover_their_law(name: str) -> None:
    """Every parameter of ``fit(sample)`` within 4 standard errors of the truth."""
    law, parameters = PARAMETRIC[name]
    fitted = fit(law, law.rvs(8000, np.random.default_rng(5)))
    assert fitted.sample_size == 8000
    assert set(fitted.standard_errors) == set(parameters)
    found, truth = fitted.law.to_dict(), law.to_dict()
    for parameter in parameters:
        error = fitted.standard_errors[parameter]
        assert 0 < error < 0.2 * max(abs(truth[parameter]), 0.2)
        assert abs(found[parameter] - truth[parameter]) < 4 * error, parameter


@pytest.mark.parametrize("name", ["spherical-3", "spherical-40", "gaussian", "truncated", "pareto"])
def test_standard_errors_are_honest(name: str) -> None:
    """Over 60 samples z = (estimate − truth)/error has mean 0 and variance 1, within 4 errors of each."""
    law, parameters = PARAMETRIC[name]
    rng = np.random.default_rng(9)
    truth = law.to_dict()
    z = []
    for _ in range(60):
        fitted = fit(law, law.rvs(1500, rng))
        found = fitted.law.to_dict()
        z.append([(found[key] - truth[key]) / fitted.standard_errors[key] for key in parameters])
    scores = np.array(z)
    assert np.all(np.abs(scores.mean(axis=0)) < 4 / math.sqrt(60))
    assert np.all(np.abs(scores.var(axis=0) - 1) < 4 * math.sqrt(2 / 60))


@pytest.mark.parametrize(
    "law",
    [Spherical(3), Spherical(40), Spherical(1e6), TruncatedGaussian(0.9, 0.1), TruncatedGaussian(0.4, 0.1)],
)
def test_standard_errors_are_the_curvature(law: SimilarityLaw) -> None:
    """In an exponential family the information at the maximum is the log-likelihood's curvature there."""
    sample = law.rvs(500, np.random.default_rng(1))
    fitted = type(law).fit(sample)
    names = list(fitted.standard_errors)
    best = np.array([fitted.law.to_dict()[name] for name in names])
    steps = np.array([0.02 * fitted.standard_errors[name] for name in names])

    def likelihood(parameters: np.ndarray) -> float:
        return float(np.sum(np.log(type(law)(*parameters).pdf(sample))))

    size = len(names)
    curvature = np.empty((size, size))
    units = np.diag(steps)
    for i in range(size):
        for j in range(size):
            curvature[i, j] = (
                likelihood(best + units[i] + units[j])
                - likelihood(best + units[i] - units[j])
                - likelihood(best - units[i] + units[j])
                + likelihood(best - units[i] - units[j])
            ) / (4 * steps[i] * steps[j])
    errors = np.sqrt(np.diag(np.linalg.inv(-curvature)))
    np.testing.assert_allclose([fitted.standard_errors[name] for name in names], errors, rtol=5e-3)


def test_gaussian_errors_stay_honest_on_other_laws() -> None:
    """The error of ``std`` comes from the fourth moment: a uniform sample has less than a normal one."""
    rng = np.random.default_rng(2)
    fits = [Gaussian.fit(rng.uniform(-0.5, 0.5, 400)) for _ in range(300)]
    spread = np.std([fitted.law.scale for fitted in fits])
    claimed = np.mean([fitted.standard_errors["std"] for fitted in fits])
    assert claimed == pytest.approx(spread, rel=4 / math.sqrt(2 * 300))
    assert claimed < 0.8 * fits[0].law.scale / math.sqrt(2 * 400)


@pytest.mark.parametrize("size", [10, 40, 500, 20_000])
def test_empirical_follows_its_sample(size: int) -> None:
    """``Empirical.fit`` stays near its sample: within 1.5/n, its knots' spacing, and the tail's smoothing."""
    sample = np.random.default_rng(size).normal(0.5, 0.08, size)
    law = Empirical.fit(sample).law
    ordered = np.sort(sample)
    below = np.arange(1, size + 1) / size
    tail_count = max(2, min(50, size // 10))
    smoothing = 1.6 * tail_count**0.5 / size
    assert np.abs(law.cdf(ordered) - below).max() < 1.5 / size + 1 / 250 + smoothing
    # Out in the tail relative to what is left: the last hundred scores have their own shares.
    if size == 20_000:
        last = ordered[-400:-60]
        shares = 1 - below[-400:-60]
        np.testing.assert_allclose(law.sf(last), shares, rtol=0.1)


def test_empirical_tail_index_of_the_spherical_law() -> None:
    """Index (r − 1)/2 near the end 1, with the standard error index/√k."""
    law = Spherical(9)
    sample = law.isf(np.random.default_rng(4).random(4000) * float(law.sf(0.97)))
    fitted = Empirical.fit(sample, tail_count=2000)
    assert abs(fitted.law.tail_index - 4) < 4 * fitted.standard_errors["tail_index"]
    assert fitted.standard_errors["tail_index"] == pytest.approx(fitted.law.tail_index / math.sqrt(2000))


def test_empirical_with_ties() -> None:
    """Scores rounded to a coarse grid: the law still follows them, jumps and all."""
    rng = np.random.default_rng(6)
    sample = np.round(rng.normal(0.5, 0.1, 2000), 2)
    law = Empirical.fit(sample).law
    for s in (0.405, 0.555, 0.655):
        assert law.sf(s) == pytest.approx(np.mean(sample > s), abs=0.03)


def test_pareto_threshold_from_a_share() -> None:
    sample = Gaussian(0.5, 0.08).rvs(2000, np.random.default_rng(1))
    fitted = ParetoTail.fit(sample, tail_share=0.05)
    assert fitted.law.tail_share == 0.05
    assert np.mean(sample > fitted.law.threshold) == 0.05
    assert fitted.standard_errors["tail_share"] == 0
    assert fitted.law.sf(fitted.law.threshold) == pytest.approx(0.05, abs=1e-12)


def test_mixture_fit_recovers_classes() -> None:
    """``Mixture.fit`` with labels: weights within 4 errors, each class its own law, duplicates apart."""
    law = Mixture([0.5, 0.2], [Gaussian(0.3, 0.05), Gaussian(0.7, 0.05)], 0.3)
    rng = np.random.default_rng(8)
    sample = law.rvs(6000, rng)
    labels = np.where(sample < 0.5, "far", "near")
    # Duplicates as float32 leaves them.
    sample = np.where(sample == 1, 1 + rng.normal(0, 1e-7, sample.size), sample)
    fitted = Mixture.fit(sample, labels=labels, law=Gaussian)
    assert abs(fitted.law.duplicates - 0.3) < 4 * fitted.standard_errors["duplicates"]
    for index, (weight, mean) in enumerate(((0.5, 0.3), (0.2, 0.7))):
        assert abs(fitted.law.weights[index] - weight) < 4 * fitted.standard_errors[f"weights.{index}"]
        found = fitted.law.laws[index]
        assert isinstance(found, Gaussian)
        assert abs(found.location - mean) < 4 * fitted.standard_errors[f"laws.{index}.mean"]


def test_mixture_of_nothing_but_duplicates() -> None:
    law = Mixture.fit(np.ones(40)).law
    assert law.atom == 1
    assert law.sf(0.9999) == 1
    assert law.mean() == 1
    assert law.var() == 0


FITS = [Spherical, Gaussian, TruncatedGaussian, Empirical, ParetoTail, Mixture]


@pytest.mark.parametrize("law", FITS)
def test_samples_that_cannot_be_fitted(law: type[SimilarityLaw]) -> None:
    good = np.random.default_rng(0).uniform(0.2, 0.6, 200)
    with pytest.raises(InputError, match=r"sample = \[\]: is empty; at least \d+ scores are needed to fit"):
        law.fit([])
    with pytest.raises(InputError, match=r"sample = 0\.25: is constant; scores must vary"):
        law.fit(np.full(200, 0.25))
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(
            InputError, match=r"must be finite: 1 of 201 scores are not, the first at position 200"
        ):
            law.fit(np.append(good, bad))
    with pytest.raises(
        InputError, match=r"sample = 1\.3: must hold scores in \[-1, 1\]: 1 of 201 lie outside"
    ):
        law.fit(np.append(good, 1.3))
    with pytest.raises(InputError, match=r"sample = '1 scores': too few: at least \d+ scores are needed"):
        law.fit([0.3])
    with pytest.raises(InputError, match=r"must be a number or an array of numbers"):
        law.fit(["high"])  # type: ignore[list-item]


@pytest.mark.parametrize("law", [Spherical, TruncatedGaussian, Empirical, ParetoTail])
def test_continuous_laws_refuse_duplicates(law: type[SimilarityLaw]) -> None:
    good = np.random.default_rng(0).uniform(0.2, 0.6, 200)
    with pytest.raises(InputError, match=r"sample = '3 scores of 1': holds exact duplicates; fit 'mixture'"):
        law.fit(np.concatenate([good, [1.0, 1 + 1e-7, 1 - 1e-7]]))
    with pytest.raises(InputError, match=r"sample = '20 scores of 1': holds exact duplicates"):
        law.fit(np.concatenate([good, np.full(20, 1 - 1e-7)]))


def test_scores_near_one_are_not_duplicates_where_the_law_has_them() -> None:
    """Spherical(2) is densest at its ends: its samples come within 1e-5 of 1 and still fit."""
    sample = Spherical(2).rvs(20_000, np.random.default_rng(0))
    assert np.sum(sample > 1 - 1e-5) > 10
    fitted = Spherical.fit(sample)
    assert abs(fitted.law.dim - 2) < 4 * fitted.standard_errors["dim"]


def test_spherical_refuses_opposite_directions() -> None:
    with pytest.raises(InputError, match=r"sample = -1\.0: holds scores of -1"):
        Spherical.fit([0.1, -0.2, -1.0])


def test_truncated_gaussian_refuses_two_heaps() -> None:
    rng = np.random.default_rng(0)
    sample = np.concatenate([rng.normal(-0.95, 0.01, 300), rng.normal(0.95, 0.01, 300)])
    with pytest.raises(InputError, match=r"varies too much for a normal law truncated"):
        TruncatedGaussian.fit(sample)


def test_pareto_refuses_a_threshold_that_leaves_too_little() -> None:
    sample = np.linspace(0.1, 0.6, 300)
    with pytest.raises(
        InputError, match=r"threshold = 0\.58: 12 of 300 scores exceed 0\.58; at least 25 are needed: lower"
    ):
        ParetoTail.fit(sample, threshold=0.58)
    with pytest.raises(InputError, match=r"tail_share = 0\.02: 6 of 300 scores exceed .*: raise the share"):
        ParetoTail.fit(sample, tail_share=0.02)
    with pytest.raises(InputError, match=r"threshold = 0\.0: leaves 0 of 300 scores below it"):
        ParetoTail.fit(sample, threshold=0.0)
    with pytest.raises(InputError, match=r"tail_share = 1\.0: must be a share in \(0, 1\)"):
        ParetoTail.fit(sample, tail_share=1.0)


def test_empirical_refuses_too_few() -> None:
    with pytest.raises(InputError, match=r"sample = '9 scores': too few: at least 10 scores are needed"):
        Empirical.fit(np.linspace(0.1, 0.5, 9))
    with pytest.raises(InputError, match=r"tail_count = 40: must lie between 2 and 37 for 40 scores"):
        Empirical.fit(np.linspace(0.1, 0.5, 40), tail_count=40)
    with pytest.raises(InputError, match=r"sample = '2 distinct scores among 40': too few distinct"):
        Empirical.fit(np.repeat([0.1, 0.5], 20))


def test_mixture_names_the_class_that_fails() -> None:
    sample = np.concatenate([np.linspace(0.1, 0.5, 50), [0.7, 0.8]])
    labels = np.array(["a"] * 50 + ["b"] * 2)
    with pytest.raises(InputError, match=r"sample\[labels == 'b'\] = '2 scores': too few"):
        Mixture.fit(sample, labels=labels)
    with pytest.raises(InputError, match=r"labels = '3 labels': must be one for each of 52 scores"):
        Mixture.fit(sample, labels=[1, 2, 3])


def test_parameters_of_composed_laws() -> None:
    inner = Gaussian(0.5, 0.1)
    with pytest.raises(
        InputError, match=r"weights = \[0\.5\]: must sum to 1 with duplicates; they sum to 0\.5"
    ):
        Mixture([0.5], [inner])
    with pytest.raises(InputError, match=r"weights = \[0\.5, 0\.5\]: must be one for each of the 1 laws"):
        Mixture([0.5, 0.5], [inner])
    with pytest.raises(InputError, match=r"weights = -0\.5: must be a share in \[0, 1\]"):
        Mixture([-0.5, 1.5], [inner, inner])
    with pytest.raises(InputError, match=r"laws = 'gaussian': must be laws of similarity of one pair"):
        Mixture([1.0], ["gaussian"])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"values = .*: must increase strictly within \[-1, 1\)"):
        Empirical([0.5, 0.2], [0, 1], 0.1, 2.0)
    with pytest.raises(InputError, match=r"levels = .*: must increase strictly from 0 to 1"):
        Empirical([0.2, 0.5], [0.1, 1], 0.1, 2.0)
    with pytest.raises(InputError, match=r"values = 'shapes \(2,\) and \(3,\)': must be two or more knots"):
        Empirical([0.2, 0.5], [0, 0.5, 1], 0.1, 2.0)
    with pytest.raises(InputError, match=r"tail_share = 0: must be a share in \(0, 1\)"):
        Empirical([0.2, 0.5], [0, 1], 0, 2.0)
    with pytest.raises(InputError, match=r"tail_index = -2\.0: must be a finite number above 0"):
        Empirical([0.2, 0.5], [0, 1], 0.1, -2.0)
    with pytest.raises(InputError, match=r"shape = -1\.5: must be at least -1"):
        ParetoTail([0.2, 0.5], [0, 1], 0.1, -1.5, 0.1)
    with pytest.raises(InputError, match=r"scale = 0: must be a finite number above 0"):
        ParetoTail([0.2, 0.5], [0, 1], 0.1, 0.1, 0)
