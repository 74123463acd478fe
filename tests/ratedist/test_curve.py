"""ratedist.curve: hulls, slopes and interpolation of rate-distortion curves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.bounds import spherical_code_bound, spherical_code_limit
from ratedist.curve import RateDistortionCurve, bound_curve, quantisation_curve
from ratedist.errors import InputError

POINTS = st.lists(st.tuples(st.floats(0.01, 16), st.floats(0, 2)), min_size=1, max_size=25)


def curve_of(points: list[tuple[float, float]]) -> RateDistortionCurve:
    rate, distortion = np.array(points).T
    return RateDistortionCurve("points", rate, distortion, np.arange(len(points), dtype=np.float64))


def analytic(count: int = 60) -> RateDistortionCurve:
    """D = e^(−R), which is convex: every point is on the hull and the slope is −D."""
    rate = np.linspace(0.2, 4, count)
    return RateDistortionCurve("analytic", rate, np.exp(-rate), np.linspace(0, 1, count))


@given(POINTS)
def test_hull_is_convex_and_below_every_point(points: list[tuple[float, float]]) -> None:
    """hull(): vertices are points, rate rises, distortion falls ever slower, and no point lies below."""
    curve = curve_of(points)
    hull = curve.hull()
    assert hull.thresholds is not None
    indices = hull.thresholds.astype(int)
    np.testing.assert_array_equal(curve.rate[indices], hull.rate)
    np.testing.assert_array_equal(curve.distortion[indices], hull.distortion)
    assert hull.rate[0] == curve.rate.min()
    assert hull.distortion[-1] == curve.distortion.min()
    assert (np.diff(hull.rate) > 0).all()
    assert (np.diff(hull.distortion) < 0).all()
    if len(hull) > 2:
        slopes = np.diff(hull.distortion) / np.diff(hull.rate)
        assert (np.diff(slopes) >= -1e-9 * np.abs(slopes[:-1])).all()
    assert (curve.distortion >= np.interp(curve.rate, hull.rate, hull.distortion) - 1e-9).all()
    assert len(hull.hull()) == len(hull)


@given(POINTS, st.floats(0, 1), st.integers(0, 24), st.integers(0, 24))
def test_time_sharing_reaches_what_it_mixes(
    points: list[tuple[float, float]], share: float, i: int, j: int
) -> None:
    """distortion_at: a mix of two operating points is never better than the hull at its rate."""
    curve = curve_of(points)
    i, j = i % len(points), j % len(points)
    rate = share * curve.rate[i] + (1 - share) * curve.rate[j]
    distortion = share * curve.distortion[i] + (1 - share) * curve.distortion[j]
    rate = max(rate, curve.rate.min())
    assert curve.distortion_at(rate) <= distortion + 1e-9


def test_inverse_of_interpolation() -> None:
    curve = analytic()
    rate = np.linspace(0.2, 4, 17)
    np.testing.assert_allclose(curve.rate_at(curve.distortion_at(rate)), rate, rtol=1e-9)
    assert curve.distortion_at(9.0) == curve.distortion[-1]
    assert curve.rate_at(1.5) == curve.rate[0]


def test_slopes_of_an_analytic_curve() -> None:
    """slopes(): second order in the spacing, and in the order of the curve's own points."""
    coarse, fine = analytic(30), analytic(60)
    errors = [np.abs(curve.slopes() + curve.distortion).max() for curve in (coarse, fine)]
    assert errors[1] < 0.3 * errors[0] < 3e-3
    shuffled = np.random.default_rng(0).permutation(60)
    mixed = RateDistortionCurve("mixed", fine.rate[shuffled], fine.distortion[shuffled])
    np.testing.assert_allclose(mixed.slopes(), fine.slopes()[shuffled])
    assert (np.diff(fine.slopes()) > 0).all()


def test_slopes_where_points_share_a_rate() -> None:
    curve = RateDistortionCurve("flat", [1.0, 2.0, 2.0, 3.0], [1.0, 0.5, 0.4, 0.3])
    np.testing.assert_array_equal(np.isnan(curve.slopes()), [False, True, True, False])
    assert np.isnan(RateDistortionCurve("one", [1.0], [1.0]).slopes()).all()


def test_at_slope_minimises_the_lagrangian() -> None:
    curve = analytic()
    hull = curve.hull()
    for slope in (-0.6, -0.2, -0.05):
        vertex = curve.at_slope(slope)
        assert hull.distortion[vertex] == pytest.approx(-slope, rel=0.05)
    assert curve.at_slope(0.0) == len(hull) - 1


def test_at_threshold() -> None:
    curve = analytic()
    between = curve.at_threshold([0.25, 0.5])
    np.testing.assert_allclose(between.distortion, np.exp(-between.rate), rtol=1e-5)
    np.testing.assert_allclose(between.rate, [0.2 + 0.25 * 3.8, 0.2 + 0.5 * 3.8])
    assert between.rate_low is None
    banded = RateDistortionCurve(
        "banded", [1.0, 2.0], [0.5, 0.2], [0.1, 0.9], [0.9, 1.8], [1.1, 2.2], [0.4, 0.1], [0.6, 0.3]
    )
    middle = banded.at_threshold(0.5)
    assert middle.rate_low is not None
    assert middle.distortion_high is not None
    assert middle.rate_low[0] < middle.rate[0]
    assert middle.distortion_high[0] > middle.distortion[0]


@given(POINTS)
def test_round_trip(points: list[tuple[float, float]]) -> None:
    curve = curve_of(points)
    again = RateDistortionCurve.from_dict(json.loads(json.dumps(curve.to_dict())))
    assert again.to_dict() == curve.to_dict()
    assert again.rate_low is None


def test_bound_and_quantisation_on_the_same_axes() -> None:
    """No quantiser of a Gaussian source lies below Shannon's limit, which the finite bound exceeds."""
    error = np.linspace(0.01, 1.9, 50)
    limit = bound_curve(error)
    np.testing.assert_allclose(limit.rate, spherical_code_limit(1 - error / 2))
    finite = bound_curve(error, 64)
    np.testing.assert_allclose(finite.rate, spherical_code_bound(1 - error / 2, 64))
    assert (finite.rate >= limit.rate).all()
    quantised = quantisation_curve()
    below_one = quantised.distortion < 1
    shannon = bound_curve(quantised.distortion[below_one], rule="projection")
    assert (quantised.rate[below_one] > shannon.rate).all()
    # Each extra bit costs one bit and buys a factor near 4: convex.
    assert len(quantised.hull()) == len(quantised)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RateDistortionCurve("c", [], []), r"rate = 'shape \(0,\)': must be a list of at least one"),  # type: ignore[arg-type]
        (lambda: RateDistortionCurve("c", [1.0], [1.0, 2.0]), r"distortion = '2 numbers': must have one per"),  # type: ignore[arg-type]
        (lambda: RateDistortionCurve("c", [-1.0], [1.0]), r"rate = -1\.0: must be finite and at least 0"),  # type: ignore[arg-type]
        (lambda: RateDistortionCurve("c", [1.0], [np.nan]), r"distortion = nan: must be finite"),  # type: ignore[arg-type]
        (
            lambda: RateDistortionCurve("c", [1.0], [1.0], rate_low=[0.5]),  # type: ignore[arg-type]
            r"rate_low = .*: must come together with rate_high",
        ),
        (
            lambda: RateDistortionCurve("c", [1.0], [1.0], rate_low=[1.5], rate_high=[2.0]),  # type: ignore[arg-type]
            r"rate_low = \[1\.5\]: must not exceed rate",
        ),
        (lambda: analytic().at_slope(0.5), r"slope = 0\.5: must be finite and at most 0"),
        (lambda: analytic().distortion_at(0.1), r"rate = 0\.1: must be finite and at least 0\.2"),
        (lambda: analytic().rate_at(0.001), r"distortion = 0\.001: must be finite and at least"),
        (lambda: analytic().at_threshold(1.5), r"thresholds = 1\.5: must be finite and lie in \[0, 1\]"),
        (
            lambda: RateDistortionCurve("c", [1.0], [1.0]).at_threshold(0.5),  # type: ignore[arg-type]
            r"thresholds = None: this curve has no thresholds",
        ),
        (
            lambda: RateDistortionCurve("c", [1.0, 2.0], [1.0, 0.5], [0.5, 0.5]).at_threshold(0.5),  # type: ignore[arg-type]
            r"thresholds = \[0\.5, 0\.5\]: must be at least two, rising",
        ),
        (
            lambda: RateDistortionCurve.from_dict({}),
            r"schema = None: must be 'ratedist/rate-distortion-curve",
        ),
        (
            lambda: RateDistortionCurve.from_dict(
                {"schema": "ratedist/rate-distortion-curve/1", "name": "c"}
            ),
            r"data = \['name', 'schema'\]: lacks rate, distortion",
        ),
        (
            lambda: RateDistortionCurve.from_dict({**analytic().to_dict(), "colour": "red"}),
            r"data = \['colour'\]: are unknown fields",
        ),
        (lambda: bound_curve([0.0]), r"error2_values = 0\.0: must be finite and above 0"),
        (lambda: bound_curve([0.5], rule="raw"), r"rule = 'raw': depends on the norms"),
    ],
)
def test_refusals(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()
