"""ratedist.bjontegaard beside curves whose gap has a closed form, and beside another implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.bjontegaard import bd_distortion, bd_rate
from ratedist.curve import RateDistortionCurve
from ratedist.errors import InputError


def power_law(scale: float, exponent: float, low: float, high: float, count: int = 9) -> RateDistortionCurve:
    """R = scale·D^(−exponent) for D from low to high: a straight line in ln R over ln D."""
    distortion = np.geomspace(low, high, count)
    return RateDistortionCurve("power law", scale * distortion**-exponent, distortion)


@given(scale=st.floats(0.2, 5), a=st.floats(0.2, 3), b=st.floats(0.2, 3), shift=st.floats(-0.5, 0.5))
def test_bd_rate_of_curves_with_a_known_gap(scale: float, a: float, b: float, shift: float) -> None:
    """bd_rate: two lines in log-log, whose mean gap is the gap in the middle of the common range."""
    low, high = np.exp(shift) * 0.05, np.exp(shift) * 1.0
    result = bd_rate(power_law(1, a, 0.05, 1.0), power_law(scale, b, low, high))
    common = max(0.05, low), min(1.0, high)
    middle = 0.5 * (np.log(common[0]) + np.log(common[1]))
    gap = np.log(scale) - (b - a) * middle
    assert result.value == pytest.approx(100 * np.expm1(gap), rel=1e-9, abs=1e-9)
    assert (result.low, result.high) == pytest.approx(common)
    assert result.overlap == pytest.approx((np.log(20) - abs(shift)) / (np.log(20) + abs(shift)))


def test_bd_rate_of_a_curve_with_itself_and_scaled() -> None:
    curve = power_law(2, 0.7, 0.01, 1.0)
    assert bd_rate(curve, curve).value == pytest.approx(0, abs=1e-12)
    cheaper = RateDistortionCurve("cheaper", 0.8 * curve.rate, curve.distortion)
    for axis in ("log", "linear"):
        assert bd_rate(curve, cheaper, axis=axis).value == pytest.approx(-20)
        forth, back = bd_rate(curve, cheaper, axis=axis).value, bd_rate(cheaper, curve, axis=axis).value
        assert (1 + forth / 100) * (1 + back / 100) == pytest.approx(1)


def test_bd_rate_of_smooth_curves_converges() -> None:
    """On a linear axis: ln R = −D² against ln R = −D, mean gap ∫(D − D²) over [0.1, 1]."""
    distortion = np.linspace(0.1, 1, 400)
    steep = RateDistortionCurve("steep", np.exp(-distortion), distortion)
    # Convex only up to 1/√2, so compare there.
    distortion = distortion[distortion < 0.7]
    bent = RateDistortionCurve("bent", 3 * np.exp(distortion**2 - 2 * distortion), distortion)
    low, high = distortion[0], distortion[-1]
    exact = np.log(3) + ((high**3 - low**3) / 3 - (high**2 - low**2) / 2) / (high - low)
    assert bd_rate(steep, bent, axis="linear").value == pytest.approx(100 * np.expm1(exact), rel=1e-6)


@given(offset=st.floats(-0.5, 0.5), a=st.floats(0.1, 0.4), b=st.floats(0.1, 0.4))
def test_bd_distortion_of_curves_with_a_known_gap(offset: float, a: float, b: float) -> None:
    """bd_distortion: D = c − k ln R is a line over the log of the rate."""
    rate = np.geomspace(0.5, 8, 9)
    anchor = RateDistortionCurve("anchor", rate, 2 - a * np.log(rate))
    test = RateDistortionCurve("test", 2 * rate, 2 + offset - b * np.log(2 * rate))
    middle = 0.5 * (np.log(1.0) + np.log(8.0))
    result = bd_distortion(anchor, test)
    assert result.value == pytest.approx(offset - (b - a) * middle, rel=1e-9, abs=1e-9)
    assert (result.low, result.high) == pytest.approx((1.0, 8.0))


def test_bd_distortion_in_decibels() -> None:
    curve = power_law(1, 0.5, 0.01, 1.0)
    better = RateDistortionCurve("better", curve.rate, curve.distortion / 2)
    assert bd_distortion(curve, better, decibels=True).value == pytest.approx(-10 * np.log10(2))


def test_exact_points_have_no_decibels() -> None:
    """A point of no distortion is left out of a logarithmic axis, and counts on a linear one."""
    curve = RateDistortionCurve("exact at the end", [1.0, 2.0, 4.0], [0.5, 0.2, 0.0])
    assert bd_rate(curve, curve).low == pytest.approx(0.2)
    assert bd_rate(curve, curve, axis="linear").low == 0.0


def test_against_the_bjontegaard_package() -> None:
    """The same integrals by another implementation, which wants quality in decibels that rises with rate."""
    package = pytest.importorskip("bjontegaard")
    rng = np.random.default_rng(1)
    curves = []
    for scale in (1.0, 0.85):
        distortion = np.sort(rng.uniform(0.02, 1, 8))
        curves.append(RateDistortionCurve("c", scale * distortion**-0.8, distortion).hull())
    sides = [(curve.rate, -10 * np.log10(curve.distortion)) for curve in curves]
    expected = package.bd_rate(
        *sides[0], *sides[1], method="pchip", require_matching_points=False, min_overlap=0
    )
    assert bd_rate(*curves).value == pytest.approx(expected, rel=1e-9)
    expected = package.bd_psnr(
        *sides[0], *sides[1], method="pchip", require_matching_points=False, min_overlap=0
    )
    assert bd_distortion(*curves, decibels=True).value == pytest.approx(-expected, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bd_rate(power_law(1, 1, 0.01, 0.1), power_law(1, 1, 0.2, 1.0)),
            r"test = 'distortion from .*': does not overlap the anchor's",
        ),
        (
            lambda: bd_distortion(power_law(1, 1, 0.01, 0.1), power_law(1, 1, 0.2, 1.0)),
            r"test = 'rate from .*': does not overlap the anchor's",
        ),
        (
            lambda: bd_rate(power_law(1, 1, 0.1, 1), RateDistortionCurve("dot", [1.0], [0.5])),  # type: ignore[arg-type]
            r"test = 'dot': has 1 usable points on its hull; at least 2 are needed",
        ),
        (
            lambda: bd_rate(RateDistortionCurve("zero", [1.0, 2.0], [0.5, 0.0]), power_law(1, 1, 0.1, 1)),  # type: ignore[arg-type]
            r"anchor = 'zero': has 1 usable points",
        ),
        (
            lambda: bd_rate(power_law(1, 1, 0.1, 1), power_law(1, 1, 0.1, 1), axis="dB"),
            r"axis = 'dB': must be 'log' or 'linear'",
        ),
    ],
)
def test_refusals(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()
