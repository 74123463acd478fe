"""ratedist/fusion/_panels.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.integrate

from ratedist.fusion._panels import panels
from ratedist.similarity import Gaussian, SimilarityLaw, Spherical

LAWS = [Spherical(8), Spherical(64), Spherical(3072), Gaussian(0.5, 0.07)]


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("rate", [1e-6, 0.5, 5.0, 300.0])
def test_integrals_against_quad(law: SimilarityLaw, rate: float) -> None:
    """∫_τ^1 (1 − exp(−N·F̄)) ds, with panels laid for more exceedances than there are."""
    thresholds = np.minimum(law.mean() + law.std() * np.array([-2.0, 0.0, 1.5, 2.5]), 0.99)
    count = rate / law.sf(thresholds)
    rule = panels(law, thresholds, np.full(thresholds.size, 5 * max(rate, 1.0)))
    found = rule.integrate(-np.expm1(-count * law.sf(rule.scores)))
    for tau, n, value in zip(thresholds, count, found, strict=True):
        edges = np.unique(np.append(np.clip(tau + law.std() * np.array([0, 0.5, 1, 2, 4, 8]), -1, 1), 1.0))
        exact = sum(
            scipy.integrate.quad(lambda s, n=n: -np.expm1(-n * law.sf(s)), a, b, epsabs=0, epsrel=1e-9)[0]
            for a, b in itertools.pairwise(edges)
        )
        assert value == pytest.approx(exact, rel=2e-4)


def test_integration_by_parts_is_exact_for_polynomials() -> None:
    law = Spherical(20)
    thresholds = np.array([0.1, 0.5])
    rule = panels(law, thresholds, np.array([10.0, 1.0]))
    values = -np.expm1(-20 * law.sf(rule.scores))
    weights = rule.by_parts(values)
    expected = rule.integrate(3 * rule.scores**2 * values)
    np.testing.assert_allclose((weights * rule.scores**3).sum(axis=0), expected, rtol=1e-10)
    np.testing.assert_allclose(weights.sum(axis=0), 0.0, atol=1e-10)


def test_nodes_lie_between_threshold_and_one() -> None:
    thresholds = np.array([-1.0, 0.0, 0.999, 1.0])
    rule = panels(Spherical(8), thresholds, np.full(4, 3.0))
    assert (rule.scores >= thresholds).all()
    assert (rule.scores <= 1).all()
    np.testing.assert_allclose(rule.lengths.sum(axis=0), 1 - thresholds, atol=1e-12)
