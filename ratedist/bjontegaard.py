"""BD-rate and BD-distortion: one number for "this curve lies below that one".

Bjøntegaard's measure, carried over from video coding: the mean gap between two curves, of log rate over the
range of distortion that both cover, or of distortion over the range of rates that both cover. The curves are
interpolated by monotone cubics (PCHIP), which unlike Bjøntegaard's first polynomial cannot overshoot.

The package ``bjontegaard`` (1.3.0) computes the same from the same scipy interpolator, but it imports
matplotlib's pyplot whenever it is loaded, which ``import ratedist`` promises not to do, takes quality that
rises with rate (decibels) rather than an error that falls, and answers NaN with a warning where curves do
not overlap. So the two integrals stand here, and the tests compare them with that package where it is
installed and with curves whose gap is known in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from ratedist.curve import RateDistortionCurve
from ratedist.errors import InputError

__all__ = ["BjontegaardDelta", "bd_distortion", "bd_rate"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class BjontegaardDelta:
    """Mean gap between two curves over the range that both cover.

    Attributes:
        value: for ``bd_rate`` the mean relative change of rate in percent (−20: a fifth less rate for the
            same error); for ``bd_distortion`` the mean change of e², or of decibels of e².
        low, high: the common range, in e² for ``bd_rate`` and in bits per scalar for ``bd_distortion``.
        overlap: common range over the range that either covers, on the axis that was integrated; a value
            from a small overlap speaks of little of the curves.
    """

    value: float
    low: float
    high: float
    overlap: float


def bd_rate(anchor: RateDistortionCurve, test: RateDistortionCurve, *, axis: str = "log") -> BjontegaardDelta:
    """Mean change of rate of ``test`` against ``anchor`` at equal distortion, in percent.

    100·(exp(mean of ln R_test − ln R_anchor) − 1) over the common range of distortion.

    Args:
        anchor: the curve compared with; its hull is taken, so that distortion falls as rate rises.
        test: the curve that is judged.
        axis: "log" averages over ln e², as decibels do in video coding (points with e² = 0 are left out);
            "linear" over e².

    Raises:
        InputError: fewer than two points on a hull, no common range, or an unknown axis.

    Test: tests/ratedist/test_bjontegaard.py::test_bd_rate_of_curves_with_a_known_gap.
    """
    _check_axis(axis)
    sides = []
    for name, curve in (("anchor", anchor), ("test", test)):
        rate, distortion = _hull_points(name, curve, positive_distortion=axis == "log")
        x = np.log(distortion) if axis == "log" else distortion
        sides.append((x[::-1], np.log(rate)[::-1]))
    gap, low, high, overlap = _mean_gap(*sides[0], *sides[1], "distortion")
    ends = np.exp([low, high]) if axis == "log" else np.array([low, high])
    return BjontegaardDelta(100.0 * float(np.expm1(gap)), float(ends[0]), float(ends[1]), overlap)


def bd_distortion(
    anchor: RateDistortionCurve, test: RateDistortionCurve, *, decibels: bool = False
) -> BjontegaardDelta:
    """Mean change of e² of ``test`` against ``anchor`` at equal rate, averaged over the log of the rate.

    Args:
        anchor: the curve compared with (its hull).
        test: the curve that is judged (its hull).
        decibels: give the mean change of 10·log10 e² instead; points with e² = 0 are left out.

    Raises:
        InputError: fewer than two points on a hull, or no common range.

    Test: tests/ratedist/test_bjontegaard.py::test_bd_distortion_of_curves_with_a_known_gap.
    """
    sides = []
    for name, curve in (("anchor", anchor), ("test", test)):
        rate, distortion = _hull_points(name, curve, positive_distortion=decibels)
        sides.append((np.log(rate), 10 * np.log10(distortion) if decibels else distortion))
    gap, low, high, overlap = _mean_gap(*sides[0], *sides[1], "rate")
    return BjontegaardDelta(gap, float(np.exp(low)), float(np.exp(high)), overlap)


def _check_axis(axis: str) -> None:
    if axis not in ("log", "linear"):
        raise InputError("axis", axis, "must be 'log' or 'linear'")


def _hull_points(
    name: str, curve: RateDistortionCurve, *, positive_distortion: bool
) -> tuple[FloatArray, FloatArray]:
    hull = curve.hull()
    usable = hull.rate > 0
    if positive_distortion:
        usable &= hull.distortion > 0
    if usable.sum() < 2:
        raise InputError(
            name, curve.name, f"has {int(usable.sum())} usable points on its hull; at least 2 are needed"
        )
    return hull.rate[usable], hull.distortion[usable]


def _mean_gap(
    x_anchor: FloatArray, y_anchor: FloatArray, x_test: FloatArray, y_test: FloatArray, axis: str
) -> tuple[float, float, float, float]:
    """Mean of y_test − y_anchor over the common range of x; its ends, and its share of the whole range."""
    low, high = max(x_anchor[0], x_test[0]), min(x_anchor[-1], x_test[-1])
    if not low < high:
        raise InputError(
            "test",
            f"{axis} from {x_test[0]:g} to {x_test[-1]:g}",
            f"does not overlap the anchor's {x_anchor[0]:g} to {x_anchor[-1]:g}; compare curves on one range",
        )
    integrals = [
        float(scipy.interpolate.PchipInterpolator(x, y).integrate(low, high))
        for x, y in ((x_anchor, y_anchor), (x_test, y_test))
    ]
    whole = max(x_anchor[-1], x_test[-1]) - min(x_anchor[0], x_test[0])
    return (integrals[1] - integrals[0]) / (high - low), float(low), float(high), float((high - low) / whole)
