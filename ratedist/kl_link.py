"""From distortion to divergence: next-token KL as a power law of the relative errors of a compressed cache.

    ln KL = a + Σ_j b_j · ln e_j,   b_j ≥ 0

fitted on cells whose KL was measured, and applied where only errors are known or predicted. The divergence
of predictions is quadratic in a small change of the logits, and these are nearly linear in a small change of
what attention reads, so exponents that sum to 2 are expected of small errors, and less of large ones, where
the loss saturates. The law is empirical: its constants belong to a model and a workload, and its own error on
held-out cells goes with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers
from ratedist.errors import InputError

__all__ = ["KL_RANGE", "KLLink", "LinkAccuracy", "fit_kl_link", "link_accuracy"]

FloatArray = NDArray[np.float64]

KL_RANGE = (0.005, 0.5)
"""Measured KL, in nats, between which a link is judged: below, rounding counts; above, nobody would go."""


@dataclass(frozen=True)
class KLLink:
    """A fitted power law.

    Attributes:
        errors: names of the relative errors, in the order of ``exponents``.
        intercept: a.
        exponents: b_j, none negative, so that more error never predicts less divergence.
        cells: cells that it was fitted on.
        spread: standard deviation of ln KL around the law on those cells.
    """

    errors: tuple[str, ...]
    intercept: float
    exponents: tuple[float, ...]
    cells: int
    spread: float

    def predict(self, errors: Mapping[str, ArrayLike]) -> FloatArray:
        """KL in nats, of the shape of the errors; 0 where an error with a positive exponent is 0.

        Args:
            errors: relative errors (not squared) by name, each at least 0, of one shape.

        Raises InputError where one of the law's errors is missing or negative.
        """
        log_kl: FloatArray | float = self.intercept
        for name, exponent in zip(self.errors, self.exponents, strict=True):
            if name not in errors:
                raise InputError("errors", sorted(errors), f"must hold {name!r}, which the law was fitted on")
            values = as_numbers(name, errors[name], low=0.0)
            if exponent == 0:
                log_kl = log_kl + np.zeros_like(values)
                continue
            with np.errstate(divide="ignore"):
                log_kl = log_kl + exponent * np.log(values)
        return np.exp(log_kl)


@dataclass(frozen=True)
class LinkAccuracy:
    """How near predicted KL came to measured, over cells with measured KL within ``KL_RANGE``.

    Attributes:
        cells: such cells.
        within: share of them whose predicted KL lies within ``factor`` of the measured; None without cells.
        factor: 1.5 unless told otherwise.
        median_abs_log_ratio, p90_abs_log_ratio: quantiles of |ln(predicted / measured)|; None without cells.
        bias: median of ln(predicted / measured); None without cells.
    """

    cells: int
    within: float | None
    factor: float
    median_abs_log_ratio: float | None
    p90_abs_log_ratio: float | None
    bias: float | None


def fit_kl_link(
    errors: Mapping[str, ArrayLike],
    kl: ArrayLike,
    *,
    low: float = KL_RANGE[0] / 2,
    high: float = KL_RANGE[1] * 2,
) -> KLLink:
    """Fit the law by least squares of ln KL with exponents of at least 0.

    Cells with a KL outside [low, high] or an error of 0 are left out: there the logarithm is dominated by
    rounding, or by saturation. The range is wider than the one a link is judged in, because choosing cells by
    their noisy KL at the very ends would flatten the law.

    Args:
        errors: relative errors (not squared) by name, each of shape (cells,), at least 0.
        kl: (cells,) measured mean KL in nats.
        low, high: range of KL to fit.

    Raises:
        InputError: no errors, shapes that differ, or too few usable cells for the exponents asked for.

    Test: tests/ratedist/test_kl_link.py::test_a_power_law_is_found_again.
    """
    measured = as_numbers("kl", kl, low=0.0)
    if not errors:
        raise InputError("errors", [], "must hold at least one relative error")
    columns = []
    for name, values in errors.items():
        column = as_numbers(name, values, low=0.0)
        if column.shape != measured.shape or column.ndim != 1:
            raise InputError(name, column.shape, f"must have shape (cells,) like kl, {measured.shape}")
        columns.append(column)
    matrix = np.stack(columns, axis=1)
    usable = (measured >= low) & (measured <= high) & (matrix > 0).all(axis=1)
    cells = int(usable.sum())
    if cells < len(columns) + 2:
        raise InputError(
            "kl",
            f"{cells} usable cells",
            f"must hold at least {len(columns) + 2} cells with KL between {low:g} and {high:g} and errors "
            "above 0; measure more thresholds",
        )
    x, y = np.log(matrix[usable]), np.log(measured[usable])
    centre = x.mean(axis=0)
    solved = scipy.optimize.nnls(x - centre, y - y.mean())[0]
    intercept = float(y.mean() - centre @ solved)
    residual = y - intercept - x @ solved
    return KLLink(
        errors=tuple(errors),
        intercept=intercept,
        exponents=tuple(float(exponent) for exponent in solved),
        cells=cells,
        spread=float(residual.std(ddof=len(columns) + 1)),
    )


def link_accuracy(
    predicted: ArrayLike,
    measured: ArrayLike,
    *,
    factor: float = 1.5,
    within: Sequence[float] = KL_RANGE,
) -> LinkAccuracy:
    """Compare predicted with measured KL where the measured lies within a range.

    Args:
        predicted, measured: (cells,) nats, at least 0.
        factor: above 1.
        within: range of measured KL, both ends included.

    Raises InputError where shapes differ or the factor is not above 1.

    Test: tests/ratedist/test_kl_link.py::test_accuracy_by_hand.
    """
    p, m = as_numbers("predicted", predicted, low=0.0), as_numbers("measured", measured, low=0.0)
    if p.shape != m.shape or p.ndim != 1:
        raise InputError("predicted", p.shape, f"must have shape (cells,) like measured, {m.shape}")
    limit = float(as_numbers("factor", factor, low=1.0, low_open=True))
    inside = (m >= within[0]) & (m <= within[1])
    if not inside.any():
        return LinkAccuracy(0, None, limit, None, None, None)
    with np.errstate(divide="ignore"):
        ratio = np.log(p[inside]) - np.log(m[inside])
    # A prediction of 0 is infinitely far: quantiles are taken as order statistics, which need no arithmetic.
    far = np.abs(ratio)
    quantiles = [float(np.quantile(far, q, method="lower")) for q in (0.5, 0.9)]
    return LinkAccuracy(
        cells=int(inside.sum()),
        within=float((far <= np.log(limit) + 1e-12).mean()),
        factor=limit,
        median_abs_log_ratio=quantiles[0] if np.isfinite(quantiles[0]) else None,
        p90_abs_log_ratio=quantiles[1] if np.isfinite(quantiles[1]) else None,
        bias=_finite(float(np.quantile(ratio, 0.5, method="lower"))),
    )


def _finite(number: float) -> float | None:
    return number if np.isfinite(number) else None
