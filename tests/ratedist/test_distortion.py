"""ratedist.distortion: scale rules beside vectors, means and laws beside simulated matches."""

from __future__ import annotations

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ratedist.distortion import (
    SCALE_RULES,
    ErrorLaw,
    NormRatio,
    absorbed_error2,
    best_match_expectation,
    centroid_error2,
    centroid_similarity,
    error2,
    value_error2,
)
from ratedist.errors import InputError
from ratedist.similarity import Gaussian, Joint, SimilarityLaw, Spherical

FloatArray = NDArray[np.float64]
LAW = Spherical(24)


def simulated_matches(
    law: SimilarityLaw, representatives: float, threshold: float, size: int, seed: int
) -> FloatArray:
    """Best matches above the threshold by brute force: a Poisson number of draws per block, their largest."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(representatives, size)
    draws = law.rvs(int(counts.sum()), rng)
    best = np.full(size, -np.inf)
    np.maximum.at(best, np.repeat(np.arange(size), counts), draws)
    return best[best > threshold]


def z_score(sample: FloatArray, expected: float) -> float:
    return float((sample.mean() - expected) / (sample.std() / np.sqrt(sample.size)))


@given(
    s=st.floats(-1, 1),
    rho=st.floats(0.1, 10),
    n=st.floats(0.1, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_error2_is_the_error_of_vectors(s: float, rho: float, n: float, seed: int) -> None:
    """error2 of every rule against ‖restored − original‖²/‖original‖² in R^5."""
    rng = np.random.default_rng(seed)
    x, y = np.linalg.qr(rng.standard_normal((5, 2)))[0].T
    representative = s * x + np.sqrt(1 - s * s) * y
    restored = {
        "raw": rho * n * representative,
        "own-norm": n * representative,
        "projection": n * s * representative,
    }
    for rule in SCALE_RULES:
        expected = np.sum((restored[rule] - n * x) ** 2) / n**2
        assert error2(s, rule, norm_ratio=rho) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(s=st.floats(-1, 1), scale=st.floats(-3, 3), rho=st.floats(0.1, 10))
def test_no_scale_beats_the_projection(s: float, scale: float, rho: float) -> None:
    assert error2(s, "projection") <= 1 + scale**2 - 2 * scale * s + 1e-12
    assert error2(s, "projection") <= error2(s, "own-norm") + 1e-12
    assert error2(s, "projection") <= error2(s, "raw", norm_ratio=rho) + 1e-12


@pytest.mark.parametrize("members", [2, 3, 7])
def test_centroid_similarity_is_the_average_over_members(members: int) -> None:
    """centroid_similarity and centroid_error2 for vectors in any arrangement."""
    rng = np.random.default_rng(members)
    x = rng.standard_normal((members, 6)) + 0.7
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    gram = x @ x.T
    pairwise = (gram.sum() - members) / (members * (members - 1))
    centroid = x.sum(axis=0) / np.linalg.norm(x.sum(axis=0))
    assert centroid_similarity(pairwise, members) == pytest.approx((x @ centroid).mean(), rel=1e-12)
    errors = np.sum((x - centroid) ** 2, axis=1)
    assert centroid_error2(pairwise, members) == pytest.approx(errors.mean(), rel=1e-12)


def test_centroid_of_two() -> None:
    s = np.linspace(-1, 1, 21)
    np.testing.assert_allclose(centroid_error2(s), 2 - np.sqrt(2 * (1 + s)), atol=1e-14)
    np.testing.assert_allclose(centroid_error2(s, rule="projection"), (1 - s) / 2, atol=1e-14)
    assert (centroid_error2(s) <= error2(s) + 1e-14).all()


def test_centroid_of_many_tends_to_the_common_direction() -> None:
    assert centroid_similarity(0.36, 10**9) == pytest.approx(0.6, rel=1e-8)


def test_norm_ratio_from_norms() -> None:
    """NormRatio.from_norms against all ordered pairs of a sample."""
    norms = np.random.default_rng(0).lognormal(0, 0.4, 50)
    ratios = norms[:, None] / norms[None, :]
    ratio = NormRatio.from_norms(norms)
    assert ratio.mean == pytest.approx(ratios.mean())
    assert ratio.mean_square == pytest.approx((ratios**2).mean())
    measured = NormRatio.from_ratios(ratios)
    assert (measured.mean, measured.mean_square) == pytest.approx((ratios.mean(), (ratios**2).mean()))
    # The mean error of the raw rule needs no more than these two moments.
    assert error2(0.3, "raw", norm_ratio=ratio) == pytest.approx(error2(0.3, "raw", norm_ratio=ratios).mean())


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize(
    ("law", "representatives", "threshold"),
    [
        (LAW, 40, 0.3),
        (LAW, 3, 0.5),
        (LAW, 20, -0.4),
        (Gaussian(0.6, 0.1), 25, 0.75),
        (Gaussian(0.9, 0.08), 2, 0.7),  # an atom of 0.11 at 1
    ],
    ids=str,
)
def test_absorbed_error_against_simulated_matches(
    law: SimilarityLaw, representatives: float, threshold: float, rule: str
) -> None:
    """absorbed_error2 and the moments of ErrorLaw within 4 standard errors of brute force."""
    matches = simulated_matches(law, representatives, threshold, 40_000, 5)
    sample = error2(matches, rule, norm_ratio=1.3)
    expected = absorbed_error2(law, representatives, threshold, rule, norm_ratio=1.3)
    assert abs(z_score(sample, float(expected))) < 4
    error_law = ErrorLaw(law, representatives, threshold, rule, norm_ratio=1.3)
    assert error_law.mean() == pytest.approx(float(expected), rel=1e-9)
    assert abs(z_score((sample - sample.mean()) ** 2, error_law.var())) < 4


@pytest.mark.parametrize(("representatives", "threshold"), [(1000, 0.4), (10, 0.2), (1e6, 0.1), (1e5, -0.9)])
def test_absorbed_error_against_adaptive_quadrature(representatives: float, threshold: float) -> None:
    law = Spherical(64)

    def exceeding(s: float) -> float:
        return float(-np.expm1(-representatives * law.sf(s)))

    integral, _ = scipy.integrate.quad(exceeding, threshold, 1, limit=500, epsabs=1e-13, epsrel=1e-11)
    expected = 2 * (1 - threshold) - 2 * integral / exceeding(threshold)
    assert absorbed_error2(law, representatives, threshold) == pytest.approx(expected, rel=1e-9)


def test_absorbed_error_keeps_its_digits_at_small_rates() -> None:
    """best_match_expectation where N·F̄(τ) is 1e-30: the error is that of a random exceedance."""
    law = Spherical(256)
    threshold = float(law.isf(1e-30))
    expected = law.expect(lambda s: 2 - 2 * s, above=threshold) / float(law.sf(threshold))
    assert absorbed_error2(law, 1.0, threshold) == pytest.approx(expected, rel=1e-8)


def test_absorbed_error_of_narrow_laws() -> None:
    """A transition 1e-6 wide: the best of many is at the quantile where one is expected beyond."""
    law = Gaussian(0.5, 1e-6)
    value = absorbed_error2(law, 1000.0, 0.1)
    assert value == pytest.approx(2 - 2 * float(law.isf(1e-3)), abs=3e-6)
    assert value != pytest.approx(1.0, abs=1e-6)


@given(
    dim=st.floats(2, 500),
    representatives=st.floats(0.01, 1e5),
    threshold=st.floats(-0.9, 0.95),
)
def test_absorbed_error_lies_below_its_threshold(
    dim: float, representatives: float, threshold: float
) -> None:
    law = Spherical(dim)
    if float(law.sf(threshold)) * representatives < 1e-280:
        return
    own = float(absorbed_error2(law, representatives, threshold))
    assert 0 <= own <= 2 - 2 * threshold + 1e-12
    # More representatives bring the best match nearer.
    assert absorbed_error2(law, 2 * representatives, threshold) <= own + 1e-9


def test_broadcasting_and_nothing_absorbed() -> None:
    result = absorbed_error2(LAW, np.array([[0.0], [5.0], [50.0]]), np.array([0.2, 0.4]))
    assert result.shape == (3, 2)
    assert np.isnan(result[0]).all()
    assert result[2, 1] == pytest.approx(float(absorbed_error2(LAW, 50.0, 0.4)))
    assert np.isnan(absorbed_error2(LAW, 5.0, 1.0))


JOINT = Joint(Spherical(24), Gaussian(0.2, 0.1), correlation=0.6)
DUPLICATED = Joint(Spherical(24), Gaussian(0.2, 0.1), correlation=0.6, duplicates=0.01)


def simulated_values(joint: Joint, representatives: float, threshold: float, size: int) -> FloatArray:
    """S_V of the pair that is best on the keys, by brute force over pairs."""
    rng = np.random.default_rng(21)
    counts = rng.poisson(representatives, size)
    keys, values = joint.rvs(int(counts.sum()), rng)
    block = np.repeat(np.arange(size), counts)
    order = np.lexsort((keys, block))
    last = order[np.append(np.diff(block[order]) > 0, True)]
    return values[last][keys[last] > threshold]


@pytest.mark.parametrize("joint", [JOINT, DUPLICATED], ids=["no duplicates", "duplicates"])
@pytest.mark.parametrize("rule", SCALE_RULES)
def test_value_error_against_simulated_pairs(rule: str, joint: Joint) -> None:
    """value_error2: simulate pairs, choose by the keys, and measure the values."""
    sample = error2(simulated_values(joint, 30, 0.3, 12_000), rule, norm_ratio=0.8)
    law = joint.marginal_keys()
    expected = float(value_error2(law, 30, 0.3, joint, rule, norm_ratio=0.8))
    assert abs(z_score(sample, expected)) < 4
    if rule != "projection":

        def mean_value(s: FloatArray) -> FloatArray:
            return joint.expect_values(lambda v: v, s)

        by_function = value_error2(law, 30, 0.3, mean_value, rule, norm_ratio=0.8)
        assert by_function == pytest.approx(expected, rel=1e-9)
    error_law = ErrorLaw(law, 30, 0.3, rule, norm_ratio=0.8, values=joint)
    assert error_law.mean() == pytest.approx(expected, rel=1e-9)
    assert abs(z_score((sample - sample.mean()) ** 2, error_law.var())) < 4


@pytest.mark.parametrize("rule", SCALE_RULES)
def test_value_error_law_against_simulated_pairs(rule: str) -> None:
    """ErrorLaw with values: its cdf at the sample's quantiles, and its atom at exact duplicates."""
    scores = simulated_values(DUPLICATED, 30, 0.3, 12_000)
    sample = error2(scores, rule)
    law = ErrorLaw(DUPLICATED.marginal_keys(), 30, 0.3, rule, values=DUPLICATED)
    for level in (0.3, 0.5, 0.9):
        x = np.quantile(sample, level)
        share = np.mean(sample <= x)
        assert abs(law.cdf(x) - share) < 4 * np.sqrt(share * (1 - share) / sample.size)
    share = np.mean(scores == 1.0)
    assert share > 0.1
    assert abs(law.cdf(0.0) - share) < 4 * np.sqrt(share * (1 - share) / sample.size)
    assert law.ppf(0.05) == 0.0
    assert law.cdf(law.ppf(0.6)) == pytest.approx(0.6, rel=1e-6)
    assert (law.cdf(-0.1), law.cdf(4.0)) == (0.0, pytest.approx(1.0))


def test_values_that_follow_the_keys_have_the_keys_error() -> None:
    for rule in ("raw", "own-norm"):
        assert value_error2(LAW, 30, 0.2, lambda s: s, rule) == pytest.approx(
            float(absorbed_error2(LAW, 30, 0.2, rule)), rel=1e-12
        )


@pytest.mark.parametrize(
    ("rule", "threshold", "ratio"),
    [
        ("own-norm", 0.3, 1.0),
        ("projection", 0.3, 1.0),
        ("projection", -0.5, 1.0),
        ("raw", 0.3, 0.8),
        ("raw", 0.3, np.array([0.7, 1.0, 1.6])),
    ],
)
def test_error_law_against_simulated_matches(rule: str, threshold: float, ratio: float | FloatArray) -> None:
    """ErrorLaw.cdf by Kolmogorov-Smirnov at level 1e-4, and its quantiles; with an atom and without."""
    few = 1.5 if threshold < 0 else 40.0
    matches = simulated_matches(LAW, few, threshold, 20_000, 11)
    drawn = np.random.default_rng(12).choice(np.atleast_1d(ratio), matches.size)
    sample = error2(matches, rule, norm_ratio=drawn)
    law = ErrorLaw(LAW, few, threshold, rule, norm_ratio=ratio)
    assert scipy.stats.kstest(sample, law.cdf).pvalue > 1e-4
    levels = np.array([0.05, 0.5, 0.95])
    np.testing.assert_allclose(law.cdf(law.ppf(levels)), levels, rtol=1e-6)
    low, high = law.support
    assert low <= sample.min()
    assert sample.max() <= high
    assert law.cdf(high) == pytest.approx(1.0, rel=1e-12)
    assert law.cdf(low - 1e-9) == 0.0


def test_error_law_has_the_atom_of_its_law() -> None:
    law = Gaussian(0.9, 0.08)
    absorbed = -np.expm1(-2 * law.sf(0.7))
    error = ErrorLaw(law, 2.0, 0.7)
    assert error.cdf(0.0) == pytest.approx(-np.expm1(-2 * law.atom) / absorbed)
    assert error.ppf(0.05) == 0.0
    assert error.cdf(-1e-12) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: error2(1.5), r"similarity = 1\.5: must be finite and lie in \[-1, 1\]"),
        (lambda: error2(float("nan")), r"similarity = nan: must be finite"),
        (lambda: error2("near"), r"similarity = 'near': must be a number"),
        (lambda: error2(0.5, "mean"), r"rule = 'mean': must be one of raw, own-norm, projection"),
        (lambda: error2(0.5, "raw", norm_ratio=0.0), r"norm_ratio = 0\.0: must be finite and above 0"),
        (lambda: centroid_similarity(0.5, 1), r"members = 1: must be a whole number of at least 2"),
        (lambda: centroid_similarity(-0.6, 3), r"similarity = -0\.6: .* lie in \[-0\.5, 1\]"),
        (lambda: centroid_error2(0.5, rule="raw"), r"rule = 'raw': a centroid has no norm of its own"),
        (lambda: NormRatio(1.0, 0.5), r"mean_square = 0\.5: must be at least mean² = 1"),
        (lambda: NormRatio(-1.0, 2.0), r"mean = -1\.0: must be finite and above 0"),
        (lambda: NormRatio.from_norms([]), r"norms = 'an empty sample': needs at least one norm"),
        (lambda: NormRatio.from_norms([1.0, 0.0]), r"norms = 0\.0: must be finite and above 0"),
        (lambda: NormRatio.from_ratios([]), r"ratios = 'an empty sample': needs at least one ratio"),
        (lambda: absorbed_error2(LAW, -1.0, 0.5), r"representatives = -1\.0: must be finite and at least 0"),
        (lambda: absorbed_error2(LAW, 1.0, 2.0), r"thresholds = 2\.0: .* lie in \[-1, 1\]"),
        (lambda: absorbed_error2(LAW, 1.0, 0.5, "none"), r"rule = 'none': must be one of"),
        (lambda: value_error2(LAW, 1.0, 0.5, lambda s: s, "none"), r"rule = 'none': must be one of"),
        (
            lambda: value_error2(LAW, 1.0, 0.5, lambda s: s, "projection"),
            r"rule = 'projection': needs E\[S_V²\]",
        ),
        (lambda: ErrorLaw(LAW, 0.0, 0.5), r"representatives = 0\.0: must be finite and above 0"),
        (lambda: ErrorLaw(LAW, 5.0, 1.0), r"threshold = 1\.0: no pair exceeds it under Spherical"),
        (lambda: ErrorLaw(LAW, 5.0, 0.5, norm_ratio=[]), r"norm_ratio = 'an empty sample'"),
        (lambda: ErrorLaw(LAW, 5.0, 0.5).ppf(1.5), r"q = 1\.5: .* lie in \[0, 1\]"),
        (lambda: ErrorLaw(LAW, 5.0, 0.5, "none"), r"rule = 'none': must be one of"),
        (lambda: ErrorLaw(LAW, 5.0, 0.5).cdf(np.inf), r"error_squared = inf: must be finite"),
        (lambda: best_match_expectation(LAW, np.nan, 0.5, np.cos), r"representatives = nan: must be finite"),
    ],
)
def test_refusals(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()
