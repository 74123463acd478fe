"""From distortion to divergence over several workloads at once: one exponent, one constant per workload.

    KL_wc = e^(a_w) · mean_r e_wcr^b,      a_w of all workloads around μ with variance τ²

Cells c are settings, r the requests they were measured on. Three things set it apart from the plain law of
``ratedist.kl_link``. Errors are raised to the power before requests are averaged: divergence comes from the
few requests that suffer most. The exponent belongs to the model and takes cells of all workloads. And the
constant of a workload is pulled towards that of the others by as much as its own few requests leave it
uncertain:

    a_w → μ + (a_w - μ) · τ²/(τ² + s_w²),

s_w² by the jackknife over requests, averaged over workloads (few requests with little KL look surer than they
are, and would pull all others down), τ² as Paule and Mandel (1982) find it. Where nothing was measured of a
workload, μ stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers
from ratedist.errors import InputError
from ratedist.kl_link import KL_RANGE

__all__ = ["EXPONENTS", "PooledKLLink", "between_variance", "fit_pooled_kl_link"]

FloatArray = NDArray[np.float64]

EXPONENTS = (0.25, 4.0)
"""Between which the exponent is looked for; small errors have 2, saturation less, its onset more."""


@dataclass(frozen=True)
class PooledKLLink:
    """A fitted law.

    Attributes:
        exponent: b.
        intercept: μ.
        between: τ, the standard deviation of the workloads' constants.
        intercepts: by workload, its constant, pulled towards μ.
        cells: cells that it was fitted on, of all workloads.
    """

    exponent: float
    intercept: float
    between: float
    intercepts: dict[str, float]
    cells: int

    def predict(self, errors: ArrayLike, workload: str | None = None) -> FloatArray:
        """KL in nats, (cells,).

        Args:
            errors: (cells, requests) relative errors, not squared, each at least 0.
            workload: whose constant is taken; μ where it is None or nothing was measured of it.

        Raises InputError where errors are negative or not of this shape.
        """
        values = _matrix("errors", errors)
        constant = self.intercepts.get(workload, self.intercept) if workload is not None else self.intercept
        return np.asarray(np.exp(constant) * (values**self.exponent).mean(axis=1))


def fit_pooled_kl_link(
    errors: Mapping[str, ArrayLike],
    kl: Mapping[str, ArrayLike],
    *,
    low: float = KL_RANGE[0] / 2,
    high: float = KL_RANGE[1] * 2,
) -> PooledKLLink:
    """Fit the law by least squares of ln KL over all cells whose mean KL lies within [low, high].

    Args:
        errors: by workload, (cells, requests) relative errors, at least 0.
        kl: by workload, (cells, requests) measured KL in nats; at least two requests.
        low, high: range of mean KL to fit.

    Raises:
        InputError: no workload, shapes that differ, fewer than two requests, or fewer usable cells than the
            workloads that have any and one.

    Test: tests/ratedist/test_pooled_kl_link.py::test_the_law_is_found_again.
    """
    if not errors or list(errors) != list(kl):
        raise InputError("errors", list(errors), f"must name the workloads of kl, at least one: {list(kl)}")
    usable: dict[str, tuple[FloatArray, FloatArray]] = {}
    for name in errors:
        e, d = _matrix("errors", errors[name]), _matrix("kl", kl[name])
        if e.shape != d.shape or e.shape[1] < 2:
            raise InputError("kl", d.shape, f"must have the shape of errors, {e.shape}, two requests or more")
        mean = d.mean(axis=1)
        keep = (mean >= low) & (mean <= high) & (e > 0).any(axis=1)
        if keep.any():
            usable[name] = (e[keep], d[keep])
    cells = sum(len(e) for e, _ in usable.values())
    if cells < len(usable) + 1 or not usable:
        raise InputError(
            "kl",
            f"{cells} usable cells",
            f"must hold at least {max(2, len(usable) + 1)} cells with mean KL between {low:g} and {high:g}; "
            "measure more thresholds",
        )

    def misfit(exponent: float) -> float:
        return float(sum(((y := _constants(e, d, exponent)) - y.mean()) @ (y - y.mean()) for e, d in pairs))

    pairs = list(usable.values())
    exponent = float(scipy.optimize.minimize_scalar(misfit, bounds=EXPONENTS, method="bounded").x)
    own = np.array([_constants(e, d, exponent).mean() for e, d in pairs])
    within = np.array([_jackknife(e, d, exponent) for e, d in pairs])
    sure = np.isfinite(within)
    within[sure] = within[sure].mean() if sure.any() else 0.0
    tau2, mean = between_variance(own[sure], within[sure]) if sure.any() else (0.0, float(own.mean()))
    trust = np.divide(tau2, tau2 + within, out=np.ones_like(within), where=tau2 + within > 0)
    pulled = mean + (own - mean) * trust
    return PooledKLLink(
        exponent, mean, float(np.sqrt(tau2)), dict(zip(usable, pulled.tolist(), strict=True)), cells
    )


def between_variance(values: ArrayLike, within: ArrayLike) -> tuple[float, float]:
    """Variance between groups and their weighted mean, from one estimate per group.

    The τ² ≥ 0 at which Σ (x_i - μ)²/(τ² + s_i²) is its expectation, the number of groups less one, with μ the
    mean under these weights (Paule and Mandel, 1982); 0 where the sum is below it already.

    Args:
        values: (groups,) estimates.
        within: (groups,) variances of their errors, at least 0.

    Returns:
        (τ², μ); (0, the value) of a single group.

    Raises InputError where there is none, or shapes differ.

    Test: tests/ratedist/test_pooled_kl_link.py::test_variance_between_groups_is_found_again.
    """
    x, s2 = as_numbers("values", values), as_numbers("within", within, low=0.0)
    if x.ndim != 1 or x.shape != s2.shape or len(x) == 0:
        raise InputError("values", x.shape, f"must be a list of one estimate or more, like within {s2.shape}")
    tiny = 1e-12 * max(1.0, float(np.ptp(x)) ** 2)  # groups without an error of their own weigh alike

    def mean(tau2: float) -> float:
        return float(np.average(x, weights=1 / (tau2 + s2 + tiny)))

    def excess(tau2: float) -> float:
        return float(((x - mean(tau2)) ** 2 / (tau2 + s2 + tiny)).sum()) - (len(x) - 1)

    if len(x) == 1 or excess(0.0) <= 0:
        return 0.0, mean(0.0)
    top = float(np.ptp(x)) ** 2 * len(x)
    tau2 = float(scipy.optimize.brentq(excess, 0.0, top))
    return tau2, mean(tau2)


def _constants(errors: FloatArray, kl: FloatArray, exponent: float) -> FloatArray:
    """(cells,) ln of mean KL over mean e^b."""
    return np.asarray(np.log(kl.mean(axis=1)) - np.log((errors**exponent).mean(axis=1)))


def _jackknife(errors: FloatArray, kl: FloatArray, exponent: float) -> float:
    """Variance of the mean constant over which requests were measured; infinite where one made all of it."""
    requests = errors.shape[1]
    whole = _constants(errors, kl, exponent)
    moved = []
    for left_out in range(requests):
        rest = np.delete(np.arange(requests), left_out)
        known = (errors[:, rest] > 0).any(axis=1) & (kl[:, rest] > 0).any(axis=1)
        if not known.any():
            return np.inf
        moved.append((_constants(errors[known][:, rest], kl[known][:, rest], exponent) - whole[known]).mean())
    values = np.array(moved)
    return float((requests - 1) / requests * ((values - values.mean()) ** 2).sum())


def _matrix(name: str, values: ArrayLike) -> FloatArray:
    matrix = as_numbers(name, values, low=0.0)
    if matrix.ndim != 2:
        raise InputError(name, matrix.shape, "must have shape (cells, requests)")
    return matrix
