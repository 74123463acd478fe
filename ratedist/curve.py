"""Rate-distortion curves as objects: their hull by time sharing, their slopes, points between points.

A point is (rate, distortion) in bits per scalar and mean e² over all blocks, absorbed or kept. Both are
averages over blocks, so running a share of the traffic (or of the layers) at one threshold and the rest at
another reaches every point on the line between the two: time sharing, the lower convex hull.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers
from ratedist.bounds import similarity_of_error2, spherical_code_bound, spherical_code_limit
from ratedist.errors import InputError
from ratedist.quantisation import quantisation_points
from ratedist.records import earlier_name

__all__ = ["CURVE_SCHEMA", "RateDistortionCurve", "bound_curve", "quantisation_curve"]

FloatArray = NDArray[np.float64]

CURVE_SCHEMA = "ratedist/rate-distortion-curve/1"

_OPTIONAL = ("thresholds", "rate_low", "rate_high", "distortion_low", "distortion_high")


@dataclass(frozen=True, eq=False)
class RateDistortionCurve:
    """Operating points of one scheme, in the order of the knob that moves along them.

    Attributes:
        name: what the curve shows; a legend's label.
        rate: (n,) bits per scalar, at least 0.
        distortion: (n,) mean e² over all blocks, at least 0.
        thresholds: (n,) the knob's value at each point, or None where it has none.
        rate_low, rate_high: (n,) band around ``rate``, or None.
        distortion_low, distortion_high: (n,) band around ``distortion``, or None.

    Raises InputError where lengths differ, a number is negative or not finite, or a band misses its point.
    """

    name: str
    rate: FloatArray
    distortion: FloatArray
    thresholds: FloatArray | None = None
    rate_low: FloatArray | None = None
    rate_high: FloatArray | None = None
    distortion_low: FloatArray | None = None
    distortion_high: FloatArray | None = None

    def __post_init__(self) -> None:
        for field in ("rate", "distortion", *_OPTIONAL):
            value = getattr(self, field)
            if value is None:
                continue
            array = as_numbers(field, value, low=-np.inf if field == "thresholds" else 0.0)
            if array.ndim != 1 or array.size == 0:
                raise InputError(field, f"shape {array.shape}", "must be a list of at least one number")
            if array.size != np.size(self.rate):
                raise InputError(
                    field, f"{array.size} numbers", f"must have one per rate, {np.size(self.rate)}"
                )
            object.__setattr__(self, field, array)
        for field in ("rate", "distortion"):
            low, high = getattr(self, f"{field}_low"), getattr(self, f"{field}_high")
            if (low is None) != (high is None):
                raise InputError(f"{field}_low", low, f"must come together with {field}_high")
            value = getattr(self, field)
            if low is not None and ((low > value) | (high < value)).any():
                raise InputError(
                    f"{field}_low", low.tolist(), f"must not exceed {field}, nor {field} its high end"
                )

    def __len__(self) -> int:
        return self.rate.size

    def hull(self) -> RateDistortionCurve:
        """What time sharing between the points reaches: the lower left convex hull.

        Its vertices are points of this curve, in order of rising rate and falling distortion, from the
        smallest rate to the smallest distortion; the bands are dropped, the thresholds of the vertices stay
        (tests/ratedist/test_curve.py::test_hull_is_convex_and_below_every_point).
        """
        order = np.lexsort((self.distortion, self.rate))
        vertices: list[int] = []
        for i in order:
            if vertices and self.distortion[i] >= self.distortion[vertices[-1]]:
                continue  # as dear as the last vertex or dearer, and no better
            while len(vertices) >= 2 and self._above(vertices[-2], vertices[-1], i):
                vertices.pop()
            vertices.append(int(i))
        kept = np.array(vertices)
        thresholds = None if self.thresholds is None else self.thresholds[kept]
        return RateDistortionCurve(self.name, self.rate[kept], self.distortion[kept], thresholds)

    def _above(self, first: int, middle: int, last: int) -> bool:
        """Whether the middle point lies on or above the line between its neighbours."""
        run, rise = self.rate[last] - self.rate[first], self.distortion[last] - self.distortion[first]
        step = self.rate[middle] - self.rate[first]
        return bool((self.distortion[middle] - self.distortion[first]) * run >= rise * step)

    def slopes(self) -> FloatArray:
        """Operational slope dD/dR at each point, (n,): what one more bit per scalar changes in e².

        The derivative of the parabola through a point and its neighbours in rate, at the ends of the nearest
        three; NaN where points share their rate and no slope exists, or fewer than two remain
        (tests/ratedist/test_curve.py::test_slopes_of_an_analytic_curve).
        """
        order = np.argsort(self.rate, kind="stable")
        rate, distortion = self.rate[order], self.distortion[order]
        distinct = np.concatenate([[True], np.diff(rate) > 1e-12 * max(float(rate[-1]), 1e-300)])
        distinct[:-1] &= distinct[1:]
        slopes = np.full(rate.size, np.nan)
        count = int(distinct.sum())
        if count >= 2:
            slopes[distinct] = np.gradient(
                distortion[distinct], rate[distinct], edge_order=2 if count >= 3 else 1
            )
        result = np.empty_like(slopes)
        result[order] = slopes
        return result

    def at_slope(self, slope: float) -> int:
        """Vertex of ``hull()`` that minimises D − slope·R: where a budget shared with others would run this.

        Caches (or layers) that share a budget spend it best where all stand at one slope.

        Args:
            slope: dD/dR, at most 0; the smaller, the more a bit must buy.

        Returns:
            Index of the vertex on the hull; of equals the one of smaller rate.
        """
        value = float(as_numbers("slope", slope, high=0.0))
        hull = self.hull()
        return int(np.argmin(hull.distortion - value * hull.rate))

    def distortion_at(self, rate: ArrayLike) -> FloatArray:
        """Least e² that time sharing reaches at the given bits per scalar; beyond the last vertex its e².

        Raises InputError below the smallest rate, which no threshold on this curve reaches.
        """
        hull = self.hull()
        rate = as_numbers("rate", rate, low=float(hull.rate[0]))
        return np.interp(rate, hull.rate, hull.distortion)

    def rate_at(self, distortion: ArrayLike) -> FloatArray:
        """Fewest bits per scalar at which time sharing keeps e² within ``distortion``.

        Raises InputError below the smallest distortion on the curve.
        """
        hull = self.hull()
        distortion = as_numbers("distortion", distortion, low=float(hull.distortion[-1]))
        return np.interp(distortion, hull.distortion[::-1], hull.rate[::-1])

    def at_threshold(self, thresholds: ArrayLike) -> RateDistortionCurve:
        """The curve at other thresholds, interpolated by monotone cubics (PCHIP) in the threshold.

        Raises InputError where the curve has no thresholds or fewer than two, they do not rise, or one lies
        outside their range: nothing is extrapolated.
        """
        if self.thresholds is None:
            raise InputError("thresholds", None, "this curve has no thresholds to interpolate in")
        if len(self) < 2 or (np.diff(self.thresholds) <= 0).any():
            raise InputError(
                "thresholds", self.thresholds.tolist(), "must be at least two, rising, to interpolate"
            )
        wanted = np.atleast_1d(
            as_numbers(
                "thresholds", thresholds, low=float(self.thresholds[0]), high=float(self.thresholds[-1])
            )
        )

        def between(values: FloatArray | None) -> FloatArray | None:
            if values is None:
                return None
            return scipy.interpolate.PchipInterpolator(self.thresholds, values)(wanted)

        return RateDistortionCurve(
            self.name,
            scipy.interpolate.PchipInterpolator(self.thresholds, self.rate)(wanted),
            scipy.interpolate.PchipInterpolator(self.thresholds, self.distortion)(wanted),
            wanted,
            between(self.rate_low),
            between(self.rate_high),
            between(self.distortion_low),
            between(self.distortion_high),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, read back by ``from_dict``; optional fields are left out where None."""
        data: dict[str, Any] = {"schema": CURVE_SCHEMA, "name": self.name}
        for field in ("rate", "distortion", *_OPTIONAL):
            value = getattr(self, field)
            if value is not None:
                data[field] = value.tolist()
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of ``to_dict``; raises InputError where ``data`` is not such a description."""
        if not isinstance(data, dict) or data.get("schema") != CURVE_SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise InputError("schema", found, f"must be {CURVE_SCHEMA!r}{earlier_name(found)}")
        missing = [field for field in ("name", "rate", "distortion") if field not in data]
        if missing:
            raise InputError("data", sorted(data), f"lacks {', '.join(missing)}")
        fields = ("name", "rate", "distortion", *_OPTIONAL)
        unknown = set(data) - {"schema", *fields}
        if unknown:
            raise InputError("data", sorted(unknown), f"are unknown fields; a curve has {', '.join(fields)}")
        return cls(**{field: data[field] for field in fields if field in data})


def bound_curve(
    error2_values: ArrayLike, dim: float | None = None, rule: str = "own-norm"
) -> RateDistortionCurve:
    """The spherical-code bound on the axes of a curve: no code of directions lies below it.

    Args:
        error2_values: e², (n,); see ``ratedist.bounds.similarity_of_error2``.
        dim: dimension of the directions; None gives the limit of high dimension.
        rule: scale rule whose error is on the axis.
    """
    error = np.atleast_1d(as_numbers("error2_values", error2_values, low=0.0, low_open=True))
    s = similarity_of_error2(error, rule)
    rate = spherical_code_limit(s) if dim is None else spherical_code_bound(s, dim)
    name = "code bound, high dimension" if dim is None else f"code bound, dimension {dim:g}"
    return RateDistortionCurve(name, rate, error)


def quantisation_curve(bits: Sequence[int] = (1, 2, 3, 4, 5, 6, 8), group: int = 32) -> RateDistortionCurve:
    """Uniform quantisation as a curve; its knob (``thresholds``) is the number of bits.

    The source model is that of ``ratedist.quantisation``.
    """
    rate, distortion = quantisation_points(bits, group)
    return RateDistortionCurve(
        f"quantised, groups of {group}", rate, distortion, np.asarray(bits, dtype=np.float64)
    )
