"""Peaks over threshold: an empirical body under a generalised Pareto tail."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.similarity._checks import finite, points, positive, probabilities, sample_of, share
from ratedist.similarity._piecewise import PiecewiseLinear
from ratedist.similarity.base import Fit, SimilarityLaw
from ratedist.similarity.generalised_pareto import (
    NEEDED,
    excess_isf,
    excess_pdf,
    excess_sf,
    fit_generalised_pareto,
)
from ratedist.similarity.registry import register

__all__ = ["ParetoTail"]

FloatArray = NDArray[np.float64]


@register
class ParetoTail(SimilarityLaw):
    """Generalised Pareto excesses above u = values[−1], quantiles of the sample joined by lines below.

    F̄(s) = tail_share·(1 + shape·(s − u)/scale)^(−1/shape) for s > u. A tail that has mass beyond 1 (shape
    above −scale/(1 − u)) is kept within S <= 1 by an atom at 1, as scores count as min(score, 1): ``atom``
    says how much of the fit lies where no score can be. The spherical law's tail tends to shape
    −2/(r − 1) with its end at 1.

    Raises InputError where knots or levels do not increase, ``tail_share`` is not in (0, 1), ``scale`` is
    not above 0, or ``shape`` is not a finite number above −1 (the density would be unbounded at the end).
    """

    name: ClassVar[str] = "pareto-tail"

    def __init__(
        self, values: ArrayLike, levels: ArrayLike, tail_share: float, shape: float, scale: float
    ) -> None:
        self.body = PiecewiseLinear(np.asarray(values), np.asarray(levels))
        self.tail_share = share("tail_share", tail_share, zero=False, one=False)
        self.shape = finite("shape", shape)
        if self.shape < -1:
            raise InputError("shape", shape, "must be at least -1")
        self.scale = positive("scale", scale)
        self.threshold = float(self.body.values[-1])

    @property
    def atom(self) -> float:
        """Mass that the fitted tail has beyond 1."""
        return self.tail_share * float(excess_sf(np.array(1 - self.threshold), self.shape, self.scale))

    @property
    def support(self) -> tuple[float, float]:
        end = self.threshold - self.scale / self.shape if self.shape < 0 else math.inf
        return (float(self.body.values[0]), min(end, 1.0))

    def pdf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        body = (1 - self.tail_share) * self.body.pdf(s)
        tail = self.tail_share * excess_pdf(s - self.threshold, self.shape, self.scale)
        return np.where(s < self.threshold, body, np.where(s <= 1, tail, 0.0))[()]

    def sf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        body = self.tail_share + (1 - self.tail_share) * self.body.sf(s)
        tail = self.tail_share * excess_sf(s - self.threshold, self.shape, self.scale)
        return np.where(s < self.threshold, body, np.where(s < 1, tail, 0.0))[()]

    def cdf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        body = (1 - self.tail_share) * self.body.cdf(s)
        return np.where(s < self.threshold, body, 1 - self.sf(s))[()]

    def isf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        tail = self.threshold + excess_isf(np.minimum(q / self.tail_share, 1.0), self.shape, self.scale)
        within = np.clip((1 - q) / (1 - self.tail_share), 0.0, 1.0)
        return np.where(q <= self.tail_share, np.minimum(tail, 1.0), self.body.ppf(within))[()]

    def ppf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        body = self.body.ppf(np.minimum(q / (1 - self.tail_share), 1.0))
        return np.where(q <= 1 - self.tail_share, body, self.isf(1 - q))[()]

    def _kinks(self) -> FloatArray:
        return self.body.values

    def mean(self) -> float:
        """E[S]: the body's trapezoids, and the tail by quadrature."""
        below = (1 - self.tail_share) * self.body.moment(0.0, 1)
        return below + self.expect(lambda s: s, above=self.threshold)

    def var(self) -> float:
        """Var[S]: the body exactly, the tail by quadrature."""
        centre = self.mean()
        below = (1 - self.tail_share) * self.body.moment(centre, 2)
        return below + self.expect(lambda s: (s - centre) ** 2, above=self.threshold)

    @classmethod
    def fit(
        cls,
        sample: ArrayLike,
        *,
        threshold: float | None = None,
        tail_share: float = 0.1,
        knots: int = 256,
    ) -> Fit[Self]:
        """Maximum likelihood for the scores above ``threshold``, quantiles for those below.

        Without ``threshold`` it is the score above which the share ``tail_share`` of the sample lies.
        Standard errors of shape and scale come from the observed information (NaN at shape <= −1/2), that
        of the share is binomial where the threshold was given and 0 where the share was. Choose the
        threshold with ``ratedist.threshold_diagnostics``.
        Test: tests/ratedist/similarity/test_fits.py::test_fits_recover_their_law.

        Raises InputError as every fit, where the sample holds exact duplicates, where fewer than 25 scores
        exceed the threshold (the message says how many do), and where fewer than 2 distinct ones do not.
        """
        scores = np.sort(sample_of(sample, needed=NEEDED + 2, duplicates=False))
        given = threshold is not None
        if threshold is None:
            tail_share = share("tail_share", tail_share, zero=False, one=False)
            exceeding = max(round(tail_share * scores.size), 1)
            threshold = float(scores[max(scores.size - exceeding - 1, 0)])
        threshold = finite("threshold", threshold)
        above = scores[scores > threshold]
        below = scores[scores <= threshold]
        if above.size < NEEDED:
            raise InputError(
                "threshold" if given else "tail_share",
                threshold if given else tail_share,
                f"{above.size} of {scores.size} scores exceed {threshold:.6g}; at least {NEEDED} are needed: "
                f"{'lower the threshold' if given else 'raise the share'} or give more scores",
            )
        if below.size < 2 or below[0] == below[-1]:
            raise InputError(
                "threshold",
                threshold,
                f"leaves {below.size} of {scores.size} scores below it; two distinct ones are needed",
            )
        fitted = fit_generalised_pareto(above - threshold)
        levels = np.linspace(0, 1, min(knots, below.size))
        body = PiecewiseLinear.through(np.append(below, threshold), levels)
        observed = above.size / scores.size
        law = cls(body.values, body.levels, observed, max(fitted.shape, -1.0), fitted.scale)
        errors = {
            "shape": fitted.shape_error,
            "scale": fitted.scale_error,
            "tail_share": math.sqrt(observed * (1 - observed) / scores.size) if given else 0.0,
        }
        return Fit(law, errors, scores.size)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "values": self.body.values.tolist(),
            "levels": self.body.levels.tolist(),
            "tail_share": self.tail_share,
            "shape": self.shape,
            "scale": self.scale,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(data["values"], data["levels"], data["tail_share"], data["shape"], data["scale"])
