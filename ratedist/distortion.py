"""Distortion of fused blocks: squared relative error per scale rule, its mean and its law.

The relative error of a block is e = ‖restored − original‖ / ‖original‖. A member with norm n and
similarity s to its representative, whose norm is n_rep = ρ·n, is read back by one of three scale rules:

==============  ==================  ===================
rule            restored            e²
==============  ==================  ===================
``raw``         n_rep · x_rep       1 + ρ² − 2ρs
``own-norm``    n · x_rep           2 − 2s
``projection``  n · s · x_rep       1 − s²
==============  ==================  ===================

No scale does better than the projection for the block's own error (``ratedist.symbolic`` derives all of
them; tests/ratedist/test_distortion.py::test_error2_is_the_error_of_vectors). A centroid is a
representative that lies nearer to its members than they lie to each other: see ``centroid_similarity``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers, whole_number
from ratedist.errors import InputError
from ratedist.similarity.base import SimilarityLaw

__all__ = [
    "SCALE_RULES",
    "ConditionalScore",
    "ErrorLaw",
    "NormRatio",
    "absorbed_error2",
    "best_match_expectation",
    "centroid_error2",
    "centroid_similarity",
    "error2",
    "value_error2",
]

FloatArray = NDArray[np.float64]

SCALE_RULES = ("raw", "own-norm", "projection")
"""Ways to scale a representative when it is read back for a member."""

# Panels shrink by halves towards the transition of the best-match law, which may be as narrow as 2^-40.
_HALVINGS = 40
_NODES_PER_PANEL = 8


@dataclass(frozen=True)
class NormRatio:
    """First two moments of ρ = n_rep/n, all that the mean error of the ``raw`` rule needs.

    Attributes:
        mean: E[ρ].
        mean_square: E[ρ²]; at least mean².
    """

    mean: float
    mean_square: float

    def __post_init__(self) -> None:
        as_numbers("mean", self.mean, low=0.0, low_open=True)
        as_numbers("mean_square", self.mean_square, low=0.0, low_open=True)
        if self.mean_square < self.mean**2 * (1 - 1e-12):
            raise InputError("mean_square", self.mean_square, f"must be at least mean² = {self.mean**2:g}")

    @classmethod
    def from_norms(cls, norms: ArrayLike) -> NormRatio:
        """Moments for a pair of blocks whose norms are independent draws from ``norms``.

        E[ρ] = E[n]·E[1/n] and E[ρ²] = E[n²]·E[1/n²]
        (tests/ratedist/test_distortion.py::test_norm_ratio_from_norms).
        """
        sample = np.ravel(as_numbers("norms", norms, low=0.0, low_open=True))
        if sample.size == 0:
            raise InputError("norms", "an empty sample", "needs at least one norm")
        return cls(
            float(sample.mean() * (1 / sample).mean()),
            float((sample**2).mean() * (1 / sample**2).mean()),
        )

    @classmethod
    def from_ratios(cls, ratios: ArrayLike) -> NormRatio:
        """Moments of measured ratios n_rep/n of absorbed blocks."""
        sample = np.ravel(as_numbers("ratios", ratios, low=0.0, low_open=True))
        if sample.size == 0:
            raise InputError("ratios", "an empty sample", "needs at least one ratio")
        return cls(float(sample.mean()), float((sample**2).mean()))


def _moments_of_ratio(norm_ratio: ArrayLike | NormRatio) -> tuple[FloatArray, FloatArray]:
    if isinstance(norm_ratio, NormRatio):
        return np.asarray(norm_ratio.mean), np.asarray(norm_ratio.mean_square)
    ratio = as_numbers("norm_ratio", norm_ratio, low=0.0, low_open=True)
    return ratio, ratio**2


def _check_rule(rule: str) -> None:
    if rule not in SCALE_RULES:
        raise InputError("rule", rule, f"must be one of {', '.join(SCALE_RULES)}")


def error2(
    similarity: ArrayLike, rule: str = "own-norm", *, norm_ratio: ArrayLike | NormRatio = 1.0
) -> FloatArray:
    """Squared relative error e² of a member at ``similarity`` to its representative.

    Args:
        similarity: cosine s of member and representative, any shape, within [-1, 1].
        rule: one of ``SCALE_RULES``.
        norm_ratio: ρ = n_rep/n, broadcast with ``similarity``; only ``raw`` depends on it. A ``NormRatio``
            gives the mean over norms that are independent of the similarity.

    Returns:
        e², of the broadcast shape.

    Raises:
        InputError: an unknown rule, a similarity outside [-1, 1], a norm ratio that is not positive.
    """
    s = as_numbers("similarity", similarity, low=-1.0, high=1.0)
    _check_rule(rule)
    if rule == "raw":
        ratio, ratio_squared = _moments_of_ratio(norm_ratio)
        return 1.0 + ratio_squared - 2.0 * ratio * s
    if rule == "own-norm":
        return 2.0 - 2.0 * s
    # (1 − s)(1 + s) keeps its digits near s = 1, where 1 − s² loses them.
    return (1.0 - s) * (1.0 + s)


def centroid_similarity(similarity: ArrayLike, members: int = 2) -> FloatArray:
    """Similarity of a member to the normalised mean of m unit vectors whose mean pairwise similarity is s.

    √((1 + (m − 1)s)/m): for two vectors √((1 + s)/2). Exactly the average over the members whatever their
    arrangement, and the value of each where all pairs are equally similar
    (tests/ratedist/test_distortion.py::test_centroid_similarity_is_the_average_over_members).

    Args:
        similarity: mean pairwise similarity, any shape, within [-1/(m − 1), 1]: m unit vectors cannot lie
            further apart on average.
        members: m, at least 2.

    Raises:
        InputError: fewer than two members, or a similarity that m vectors cannot have.
    """
    members = whole_number("members", members, low=2)
    s = as_numbers("similarity", similarity, low=-1.0 / (members - 1), high=1.0)
    return np.sqrt(np.maximum(1.0 + (members - 1) * s, 0.0) / members)


def centroid_error2(similarity: ArrayLike, members: int = 2, rule: str = "own-norm") -> FloatArray:
    """Mean e² over the members of a centroid, with its norm or its projection as scale.

    With the member's own norm 2 − 2√((1 + (m − 1)s)/m), for two members 2 − √(2(1 + s)). The projection of
    equally similar members gives 1 − (1 + (m − 1)s)/m. A centroid is a direction without a norm of its own,
    so ``raw`` does not exist for it.

    Raises:
        InputError: as ``centroid_similarity``, and for ``raw``.
    """
    if rule == "raw":
        raise InputError("rule", rule, "a centroid has no norm of its own; use own-norm or projection")
    return error2(centroid_similarity(similarity, members), rule)


# ----------------------------------------------------------------------------------------------------
# Means over the best-match law


def _exceedance(law: SimilarityLaw, representatives: FloatArray, s: FloatArray) -> FloatArray:
    """P(M > s) = 1 − exp(−N·F̄(s)) for the best match M among a Poisson number of representatives."""
    return -np.expm1(-representatives * law.sf(s))


def _transition(law: SimilarityLaw, representatives: FloatArray, thresholds: FloatArray) -> FloatArray:
    """Where N·F̄(s) falls through 1, or the threshold where it is below 1 there already."""
    quantile = law.isf(1.0 / np.maximum(representatives, 1.0))
    return np.clip(quantile, thresholds, 1.0)


@cache
def _panel_rule() -> tuple[FloatArray, FloatArray, FloatArray]:
    """Gauss-Legendre nodes and weights on [0, 1] and the matrix that differentiates at the nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES_PER_PANEL)
    nodes, weights = (nodes + 1) / 2, weights / 2
    gaps = nodes[:, None] - nodes[None, :]
    np.fill_diagonal(gaps, 1.0)
    barycentric = 1.0 / gaps.prod(axis=1)
    derivative = barycentric[None, :] / barycentric[:, None] / gaps
    np.fill_diagonal(derivative, 0.0)
    np.fill_diagonal(derivative, -derivative.sum(axis=1))
    return nodes, weights, derivative


def best_match_expectation(
    law: SimilarityLaw,
    representatives: ArrayLike,
    thresholds: ArrayLike,
    function: Callable[[FloatArray], FloatArray],
) -> FloatArray:
    """E[f(M) | M > τ] for the best match M of a block among N representatives.

    M has the distribution G(s) = exp(−N·F̄(s)). Integration by parts gives
    f(τ) + ∫_τ^1 f′(s) (1 − G(s))/(1 − G(τ)) ds, which keeps its digits where N·F̄(τ) is tiny, where
    G(1) − G(τ) would cancel to nothing (tests/ratedist/test_distortion.py::
    test_absorbed_error_keeps_its_digits_at_small_rates).

    Args:
        law: law of the score of a random pair.
        representatives: N, any shape broadcast with ``thresholds``; at least 0.
        thresholds: τ, within [-1, 1].
        function: f, evaluated on arrays; smooth below 1, free to jump at 1, where exact duplicates are.

    Returns:
        The mean, of the broadcast shape; NaN where nothing can be absorbed (N = 0 or F̄(τ) = 0).
    """
    count = as_numbers("representatives", representatives, low=0.0)
    tau = as_numbers("thresholds", thresholds, low=-1.0, high=1.0)
    shape = np.broadcast_shapes(count.shape, tau.shape)
    count, tau = np.broadcast_to(count, shape).ravel(), np.broadcast_to(tau, shape).ravel()

    centre = _transition(law, count, tau)
    halves = 0.5 ** np.arange(_HALVINGS, -1, -1)
    left = centre[:, None] - (centre - tau)[:, None] * halves[::-1]
    right = centre[:, None] + (1.0 - centre)[:, None] * halves
    edges = np.concatenate([left, centre[:, None], right], axis=1)

    nodes, weights, derivative = _panel_rule()
    width = np.diff(edges, axis=1)[..., None]
    s = np.clip(edges[:, :-1, None] + width * nodes, -1.0, 1.0)
    exceeding = _exceedance(law, count[:, None, None], s)
    # width·f′(s) comes out of the matrix at once, so empty panels need no division by their width.
    slope_times_width = function(s) @ derivative.T
    integral = (slope_times_width * exceeding * weights).sum(axis=(1, 2))
    if law.atom > 0:
        # f may jump at 1, where exact duplicates sit: the step from where the integral of f′ ends to f(1).
        end = function(tau) + (slope_times_width * weights).sum(axis=(1, 2))
        integral += (function(np.ones_like(tau)) - end) * -np.expm1(-count * law.atom)
    absorbed = _exceedance(law, count, tau)
    mean = np.full(tau.shape, np.nan)
    np.divide(integral, absorbed, out=mean, where=absorbed > 0)
    return (function(tau) + mean).reshape(shape)


def absorbed_error2(
    law: SimilarityLaw,
    representatives: ArrayLike,
    thresholds: ArrayLike,
    rule: str = "own-norm",
    *,
    norm_ratio: float | NormRatio = 1.0,
) -> FloatArray:
    """Mean e² of an absorbed block against its best match among N representatives.

    For the own norm this is [2(1 − τ)(1 − G(τ)) − 2∫_τ^1 (1 − G(s)) ds] / (1 − G(τ)); other rules go into the
    same integral (tests/ratedist/test_distortion.py::test_absorbed_error_against_simulated_matches).

    Args:
        law: law of the score of a random pair.
        representatives: N, broadcast with ``thresholds``.
        thresholds: τ.
        rule: one of ``SCALE_RULES``.
        norm_ratio: ρ or its moments, for ``raw``.

    Returns:
        E[e² | absorbed], of the broadcast shape; NaN where nothing can be absorbed.
    """
    _check_rule(rule)
    return best_match_expectation(
        law, representatives, thresholds, lambda s: error2(s, rule, norm_ratio=norm_ratio)
    )


class ConditionalScore(Protocol):
    """Law of the values' score S_V given the keys' score S_K; ``ratedist.similarity.Joint`` is one."""

    def expect_values(self, g: Callable[[FloatArray], ArrayLike], given: ArrayLike) -> FloatArray:
        """E[g(S_V) | S_K = given], elementwise."""

    def values_sf(self, threshold: ArrayLike, given: ArrayLike) -> FloatArray:
        """P(S_V > threshold | S_K = given), elementwise after broadcasting."""


def value_error2(
    law: SimilarityLaw,
    representatives: ArrayLike,
    thresholds: ArrayLike,
    values: ConditionalScore | Callable[[FloatArray], FloatArray],
    rule: str = "own-norm",
    *,
    norm_ratio: float | NormRatio = 1.0,
) -> FloatArray:
    """Mean e² of the values of a block that was absorbed by its best match on the keys.

    The match is chosen by S_K alone, so given S_K = s the values' score follows its conditional law: the mean
    over the best-match law of E[e²(S_V) | S_K = s]
    (tests/ratedist/test_distortion.py::test_value_error_against_simulated_pairs).

    Args:
        law: law of S_K, which decides the match (``Joint.marginal_keys()``).
        representatives: N, broadcast with ``thresholds``.
        thresholds: τ on S_K.
        values: conditional law of S_V given S_K, or a function s -> E[S_V | S_K = s]: own norm and raw are
            linear in S_V and need no more.
        rule: one of ``SCALE_RULES``, applied to the values' own norms.
        norm_ratio: ratio of the values' norms, for ``raw``.

    Raises:
        InputError: arguments outside their domain; ``projection`` with a function, which lacks E[S_V²].
    """
    _check_rule(rule)

    def error_of(scores: FloatArray) -> FloatArray:
        return error2(scores, rule, norm_ratio=norm_ratio)

    if not callable(values):
        return best_match_expectation(
            law, representatives, thresholds, lambda s: values.expect_values(error_of, s)
        )
    if rule == "projection":
        raise InputError("rule", rule, "needs E[S_V²] too; give the conditional law in place of a function")
    conditional_mean = values
    return best_match_expectation(law, representatives, thresholds, lambda s: error_of(conditional_mean(s)))


# ----------------------------------------------------------------------------------------------------
# The law of the error


class ErrorLaw:
    """Distribution of e² of an absorbed block, given the law of its best match.

    Of its keys, or with ``values`` of its values, whose score given the keys' follows a conditional law.

    Args:
        law: law of the score of a random pair.
        representatives: N, a number above 0.
        threshold: τ; something must be able to exceed it.
        rule: one of ``SCALE_RULES``.
        norm_ratio: ρ for ``raw``: a number, or a sample of ratios of shape (n,), independent of the match.
        values: conditional law of S_V given S_K, for the error of the values.

    Raises:
        InputError: arguments outside their domain, or a threshold that nothing exceeds.
    """

    def __init__(
        self,
        law: SimilarityLaw,
        representatives: float,
        threshold: float,
        rule: str = "own-norm",
        *,
        norm_ratio: ArrayLike = 1.0,
        values: ConditionalScore | None = None,
    ) -> None:
        _check_rule(rule)
        self.law = law
        self.values = values
        self.representatives = float(as_numbers("representatives", representatives, low=0.0, low_open=True))
        self.threshold = float(as_numbers("threshold", threshold, low=-1.0, high=1.0))
        self.rule = rule
        self._ratios = np.ravel(as_numbers("norm_ratio", norm_ratio, low=0.0, low_open=True))
        if self._ratios.size == 0:
            raise InputError("norm_ratio", "an empty sample", "needs at least one ratio")
        self._absorbed = float(_exceedance(law, np.asarray(self.representatives), np.asarray(self.threshold)))
        if self._absorbed <= 0:
            raise InputError("threshold", threshold, f"no pair exceeds it under {law!r}; choose a lower one")

    @property
    def support(self) -> tuple[float, float]:
        """Smallest and largest e² an absorbed block can have."""
        lowest = self.threshold if self.values is None else -1.0
        ends = np.array([lowest, 1.0] + ([0.0] if lowest < 0 else []))
        if self.rule == "raw":
            errors = np.concatenate([error2(ends, "raw", norm_ratio=ratio) for ratio in self._ratios])
        else:
            errors = error2(ends, self.rule)
        return float(errors.min()), float(errors.max())

    def _at_least(self, s: FloatArray) -> FloatArray:
        """P(score >= s | absorbed), where the score is that of the best match or of its values."""
        if self.values is not None:
            return self._values_at_least(s)
        inside = _exceedance(self.law, np.asarray(self.representatives), np.clip(s, self.threshold, 1.0))
        at_one = -np.expm1(-self.representatives * self.law.atom)
        return np.where(s > 1.0, 0.0, np.where(s == 1.0, at_one, inside)) / self._absorbed

    def _values_at_least(self, s: FloatArray) -> FloatArray:
        conditional = self.values
        assert conditional is not None
        # Scores are strict elsewhere: just below s is at least s.
        below = np.nextafter(np.clip(s, -1.0, 1.0), -np.inf)

        def share_above(level: float) -> float:
            return float(
                best_match_expectation(
                    self.law,
                    self.representatives,
                    self.threshold,
                    lambda given: conditional.values_sf(level, given),
                )
            )

        shares = [share_above(float(level)) for level in below.flat]
        return np.where(s > 1.0, 0.0, np.where(s <= -1.0, 1.0, np.reshape(shares, s.shape)))

    def cdf(self, error_squared: ArrayLike) -> FloatArray:
        """P(e² <= x | absorbed), of the shape of ``error_squared``.

        Tests: tests/ratedist/test_distortion.py::test_error_law_against_simulated_matches and
        ::test_value_error_law_against_simulated_pairs.
        """
        x = as_numbers("error_squared", error_squared)
        if self.rule == "raw":
            ratios = self._ratios
            total = self._at_least((1.0 + ratios**2 - x[..., None]) / (2.0 * ratios)).mean(axis=-1)
        elif self.rule == "own-norm":
            total = self._at_least(1.0 - x / 2.0)
        else:
            root = np.sqrt(np.maximum(1.0 - x, 0.0))
            total = self._at_least(root)
            if self.threshold < 0 or self.values is not None:  # a strongly negative score projects well too
                negative = 1.0 - self._at_least(np.nextafter(-root, np.inf))
                total = np.where(root > 0, total + negative, 1.0)
            total = np.where(x < 0, 0.0, total)
        return np.clip(total, 0.0, 1.0)

    def ppf(self, q: ArrayLike) -> FloatArray:
        """Quantile: the smallest e² with cdf at least q, to 1e-12 of the width of the support."""
        q = as_numbers("q", q, low=0.0, high=1.0)
        smallest, largest = self.support
        low, high = np.full(q.shape, smallest), np.full(q.shape, largest)
        at_smallest = self.cdf(low) >= q
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            reached = self.cdf(middle) >= q
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        return np.where(at_smallest, smallest, high)

    def mean(self) -> float:
        """E[e² | absorbed]."""
        return self._moment(1)

    def var(self) -> float:
        """Var[e² | absorbed]."""
        return self._moment(2) - self._moment(1) ** 2

    def _moment(self, power: int) -> float:
        def of_score(s: FloatArray) -> FloatArray:
            if self.rule != "raw":
                return error2(s, self.rule) ** power
            # A polynomial in s whose coefficients are moments of ρ: no sum over the sample per node.
            a, b = 1.0 + self._ratios**2, -2.0 * self._ratios
            if power == 1:
                return a.mean() + b.mean() * s
            return (a**2).mean() + 2 * (a * b).mean() * s + (b**2).mean() * s**2

        conditional = self.values
        if conditional is None:
            function: Callable[[FloatArray], FloatArray] = of_score
        else:

            def function(s: FloatArray) -> FloatArray:
                return conditional.expect_values(of_score, s)

        return float(best_match_expectation(self.law, self.representatives, self.threshold, function))
