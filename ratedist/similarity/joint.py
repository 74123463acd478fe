"""The joint law of the scores of keys and values of one pair of blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.similarity._checks import DUPLICATE, finite, floats, points, probabilities, share
from ratedist.similarity.base import PANELS, Fit, SimilarityLaw, invert
from ratedist.similarity.empirical import NEEDED, Empirical
from ratedist.similarity.registry import law_from_dict, register

__all__ = ["Joint", "Minimum", "bivariate_normal_sf"]

FloatArray = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_HERMITE, _HERMITE_WEIGHTS = np.polynomial.hermite_e.hermegauss(48)


@register
class Joint:
    """(S_K, S_V) of a pair: exact duplicates, and otherwise two laws joined by a Gaussian copula.

    With probability ``duplicates`` both scores are 1. Otherwise S_K = F_K⁻¹(Φ(X)) and S_V = F_V⁻¹(Φ(Y)) with
    (X, Y) bivariate normal of correlation ``correlation``: the marginal laws are kept as they are, and the
    dependence is one number, the correlation of the normal scores. ``keys`` and ``values`` are laws of pairs
    that are not duplicates.

    Raises InputError where a marginal is no law, ``correlation`` is not in (−1, 1) or ``duplicates`` not in
    [0, 1).
    """

    name: ClassVar[str] = "joint"

    def __init__(
        self, keys: SimilarityLaw, values: SimilarityLaw, correlation: float, duplicates: float = 0.0
    ) -> None:
        for argument, law in (("keys", keys), ("values", values)):
            if not isinstance(law, SimilarityLaw):
                raise InputError(argument, law, "must be a law of similarity of one pair")
        self.keys = keys
        self.values = values
        self.correlation = finite("correlation", correlation)
        if not -1 < self.correlation < 1:
            raise InputError("correlation", correlation, "must lie strictly between -1 and 1")
        self.duplicates = share("duplicates", duplicates, one=False)

    def sf(self, keys: ArrayLike, values: ArrayLike) -> FloatArray:
        """P(S_K > keys, S_V > values), elementwise after broadcasting.

        Test: tests/ratedist/similarity/test_joint.py::test_survival_against_scipy.
        """
        keys, values = np.broadcast_arrays(points(keys, "keys"), points(values, "values"))
        x = _normal_score(self.keys, keys)
        y = _normal_score(self.values, values)
        both = bivariate_normal_sf(x, y, self.correlation)
        same = np.where((keys < 1) & (values < 1), self.duplicates, 0.0)
        return ((1 - self.duplicates) * both + same)[()]

    def rvs(self, size: int | tuple[int, ...], rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw pairs: the scores of keys and of values, each of the given shape."""
        x = rng.standard_normal(size)
        y = self.correlation * x + math.sqrt(1 - self.correlation**2) * rng.standard_normal(size)
        same = rng.random(size) < self.duplicates
        keys = np.where(same, 1.0, _from_normal_score(self.keys, x))
        values = np.where(same, 1.0, _from_normal_score(self.values, y))
        return keys, values

    def marginal_keys(self) -> SimilarityLaw:
        """Law of S_K, duplicates included."""
        return self._marginal(self.keys)

    def marginal_values(self) -> SimilarityLaw:
        """Law of S_V, duplicates included."""
        return self._marginal(self.values)

    def _marginal(self, law: SimilarityLaw) -> SimilarityLaw:
        from ratedist.similarity.mixture import Mixture

        return Mixture([1 - self.duplicates], [law], self.duplicates) if self.duplicates else law

    def minimum(self) -> Minimum:
        """Law of min(S_K, S_V), the score of the criterion "both"."""
        return Minimum(self)

    def expect_values(self, g: Callable[[FloatArray], ArrayLike], given: ArrayLike) -> FloatArray:
        """E[g(S_V) | S_K = given], elementwise: what a match on the keys does to the values.

        Given S_K = s < 1, Y is normal with mean ρx and variance 1 − ρ², x the normal score of s; 48 nodes of
        Gauss-Hermite quadrature. At s = 1 the pair is an exact duplicate where the law has any: g(1).
        Test: tests/ratedist/similarity/test_joint.py::test_conditional_expectation_against_simulation.
        """
        given = points(given, "given")
        x = _normal_score(self.keys, np.minimum(given, np.nextafter(1.0, 0.0)))
        # Beyond 38 the normal score of a probability underflows; nothing there can be told apart.
        x = np.clip(x, -38.0, 38.0)[..., None]
        y = self.correlation * x + math.sqrt(1 - self.correlation**2) * _HERMITE
        inner = np.asarray(g(_from_normal_score(self.values, y)))
        value = inner @ (_HERMITE_WEIGHTS / math.sqrt(2 * math.pi))
        if self.duplicates > 0:
            value = np.where(given >= 1, np.asarray(g(np.ones(1)))[0], value)
        return value[()]

    def values_sf(self, threshold: ArrayLike, given: ArrayLike) -> FloatArray:
        """P(S_V > threshold | S_K = given), elementwise after broadcasting."""
        threshold, given = np.broadcast_arrays(points(threshold, "threshold"), points(given, "given"))
        x = np.clip(_normal_score(self.keys, np.minimum(given, np.nextafter(1.0, 0.0))), -38.0, 38.0)
        y = _normal_score(self.values, threshold)
        above = scipy.special.ndtr((self.correlation * x - y) / math.sqrt(1 - self.correlation**2))
        if self.duplicates > 0:
            above = np.where(given >= 1, np.where(threshold < 1, 1.0, 0.0), above)
        return above[()]

    @classmethod
    def fit(
        cls,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        law: type[SimilarityLaw] = Empirical,
        duplicate_at: float = 1 - DUPLICATE,
    ) -> Fit[Self]:
        """Fit marginals and correlation to the scores of pairs.

        Pairs with both scores at least ``duplicate_at`` are duplicates; ``law`` is fitted to each score of
        the others, and the correlation is that of their normal scores (van der Waerden): efficient for a
        Gaussian copula with unknown marginals, standard error (1 − ρ²)/√n (Klaassen and Wellner,
        Bernoulli 3, 1997). Standard errors: ``duplicates``, ``correlation``, and the marginals' as
        ``keys.parameter`` and ``values.parameter``.
        Test: tests/ratedist/similarity/test_joint.py::test_fit_recovers_the_correlation.

        Raises InputError where the samples differ in number, and as the marginals' fits (the argument named).
        """
        first = floats(keys, "keys").ravel()
        second = floats(values, "values").ravel()
        if first.size != second.size:
            raise InputError("values", f"{second.size} scores", f"must be one for each of {first.size} keys")
        for argument, scores in (("keys", first), ("values", second)):
            if not np.isfinite(scores).all():
                raise InputError(argument, float(scores[~np.isfinite(scores)][0]), "must be finite")
        same = (first >= duplicate_at) & (second >= duplicate_at)
        size = int(first.size)
        if size - int(same.sum()) < NEEDED:
            raise InputError(
                "keys",
                f"{size} pairs, {int(same.sum())} of them exact duplicates",
                f"too few: at least {NEEDED} pairs that are not duplicates are needed",
            )
        duplicates = float(same.mean())
        errors = {"duplicates": math.sqrt(duplicates * (1 - duplicates) / size)}
        laws = []
        for argument, scores in (("keys", first[~same]), ("values", second[~same])):
            try:
                fitted = law.fit(scores)
            except InputError as error:
                raise InputError(argument, error.value, error.remedy) from error
            laws.append(fitted.law)
            errors |= {f"{argument}.{key}": value for key, value in fitted.standard_errors.items()}
        ranks = [scipy.stats.rankdata(scores) / (scores.size + 1) for scores in (first[~same], second[~same])]
        correlation = float(np.corrcoef(*(scipy.special.ndtri(rank) for rank in ranks))[0, 1])
        correlation = min(max(correlation, -1 + 1e-12), 1 - 1e-12)
        errors["correlation"] = (1 - correlation**2) / math.sqrt(int((~same).sum()))
        return Fit(cls(laws[0], laws[1], correlation, duplicates), errors, size)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, read back by ``law_from_dict``."""
        return {
            "name": self.name,
            "keys": self.keys.to_dict(),
            "values": self.values.to_dict(),
            "correlation": self.correlation,
            "duplicates": self.duplicates,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of ``to_dict``."""
        keys, values = law_from_dict(data["keys"]), law_from_dict(data["values"])
        return cls(keys, values, data["correlation"], data["duplicates"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Joint) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((type(self), self.correlation, self.duplicates))

    def __repr__(self) -> str:
        return (
            f"Joint(keys={self.keys!r}, values={self.values!r}, correlation={self.correlation!r}, "
            f"duplicates={self.duplicates!r})"
        )


@register
class Minimum(SimilarityLaw):
    """min(S_K, S_V) of a joint law: its survival function is the joint one on the diagonal."""

    name: ClassVar[str] = "minimum"

    def __init__(self, joint: Joint) -> None:
        self.joint = joint

    @property
    def atom(self) -> float:
        """P(S_K = S_V = 1)."""
        return float(self.joint.sf(np.nextafter(1.0, 0.0), np.nextafter(1.0, 0.0)))

    @property
    def support(self) -> tuple[float, float]:
        keys, values = self.joint.keys.support, self.joint.values.support
        high = 1.0 if self.joint.duplicates else min(keys[1], values[1])
        return (min(keys[0], values[0]), high)

    def sf(self, s: ArrayLike) -> FloatArray:
        return self.joint.sf(s, s)

    def cdf(self, s: ArrayLike) -> FloatArray:
        """F_K(s) + F_V(s) − F_KV(s, s): accurate where it is small."""
        s = points(s)
        joint = self.joint
        below_keys, below_values = joint.keys.cdf(s), joint.values.cdf(s)
        x, y = _normal_score(joint.keys, s), _normal_score(joint.values, s)
        both = bivariate_normal_sf(-x, -y, joint.correlation)
        return np.where(s >= 1, 1.0, (1 - joint.duplicates) * (below_keys + below_values - both))[()]

    def pdf(self, s: ArrayLike) -> FloatArray:
        """f_K(s)·P(S_V > s | S_K = s) + f_V(s)·P(S_K > s | S_V = s), less the duplicates' share."""
        s = points(s)
        joint = self.joint
        x, y = _normal_score(joint.keys, s), _normal_score(joint.values, s)
        spread = math.sqrt(1 - joint.correlation**2)
        with np.errstate(invalid="ignore"):
            values_above = scipy.special.ndtr((joint.correlation * x - y) / spread)
            keys_above = scipy.special.ndtr((joint.correlation * y - x) / spread)
        keys_density, values_density = joint.keys.pdf(s), joint.values.pdf(s)
        # Beyond both supports the normal scores are infinite and the densities 0.
        density = np.where(keys_density > 0, keys_density * np.nan_to_num(values_above), 0.0)
        density = density + np.where(values_density > 0, values_density * np.nan_to_num(keys_above), 0.0)
        return ((1 - joint.duplicates) * density)[()]

    def isf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        low, high = self.support
        found = self._search(self.sf, q)
        # The ends exactly: within rounding of 0 and 1 the distribution is flat.
        return np.where(q == 0, high, np.where(q == 1, low, found))[()]

    def ppf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        low, high = self.support
        found = self._search(lambda s: -self.cdf(s), -q)
        return np.where(q == 0, low, np.where(q == 1, high, found))[()]

    def _search(self, falling: Callable[[FloatArray], FloatArray], level: FloatArray) -> FloatArray:
        low, high = self.support
        return invert(falling, level, np.full(level.shape, max(low, -3.0)), np.full(level.shape, high))

    def rvs(self, size: int | tuple[int, ...], rng: np.random.Generator) -> FloatArray:
        return np.minimum(*self.joint.rvs(size, rng))

    def _kinks(self) -> FloatArray:
        return np.union1d(self.joint.keys._kinks(), self.joint.values._kinks())

    def expect(self, g: Callable[[FloatArray], ArrayLike], above: float = -math.inf) -> float:
        """E[g(S); S > above] over the density, on panels that end at quantiles of both marginals."""
        if math.isnan(above):
            raise InputError("above", above, "must be a number")
        low, high = self.support
        above = max(above, low)
        total = self.atom * float(np.asarray(g(np.ones(1)))[0]) if above < 1 else 0.0
        ends = [self._kinks(), np.array([above, high])]
        for law in (self.joint.keys, self.joint.values):
            ends += [law.isf(float(law.sf(above)) * np.exp(PANELS)), law.ppf(np.exp(PANELS[1:]))]
        edges = np.unique(np.concatenate(ends))
        edges = edges[np.isfinite(edges) & (edges >= above) & (edges <= high)]
        half = 0.5 * np.diff(edges)[:, None]
        nodes = edges[:-1, None] + half * (1 + _NODES)
        return total + float(np.sum(half * _WEIGHTS * self.pdf(nodes) * np.asarray(g(nodes))))

    def mean(self) -> float:
        """E[min(S_K, S_V)], by quadrature."""
        return self.expect(lambda s: s)

    def var(self) -> float:
        """Var[min(S_K, S_V)], by quadrature."""
        centre = self.mean()
        return self.expect(lambda s: (s - centre) ** 2)

    @classmethod
    def fit(cls, sample: ArrayLike) -> Fit[Self]:
        """Fit the joint law of ``sample`` (2, n): the scores of keys, and those of values."""
        scores = floats(sample, "sample")
        if scores.ndim != 2 or scores.shape[0] != 2:
            raise InputError(
                "sample", f"shape {scores.shape}", "must be (2, n): scores of keys, and of values"
            )
        fitted = Joint.fit(scores[0], scores[1])
        return Fit(cls(fitted.law), fitted.standard_errors, fitted.sample_size)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "joint": self.joint.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(law_from_dict(data["joint"]))


def bivariate_normal_sf(x: ArrayLike, y: ArrayLike, correlation: float) -> FloatArray:
    """P(X > x, Y > y) of standard normals with the given correlation, elementwise.

    Φ̄(x)Φ̄(y) + (1/2π)∫₀^{asin ρ} exp(−(x² + y² − 2xy·sin θ)/(2cos²θ)) dθ (Drezner and Wesolowsky, J. Stat.
    Comput. Simul. 35, 1990). For ρ >= 0 every term is positive, so that the tail keeps its relative accuracy.
    For ρ < 0 the reflection in x gives Φ̄(y) − P(X > −x, Y > y); where that cancels, x lies beyond the mode of
    the remaining integral of φ(t)Φ((ρt − y)/√(1 − ρ²)) over t > x, which is log-concave and is integrated.
    Test: tests/ratedist/similarity/test_joint.py::test_bivariate_normal_against_quadrature.
    """
    x, y = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
    if correlation < 0:
        whole = scipy.special.ndtr(-y)
        both = np.asarray(whole - bivariate_normal_sf(-x, y, -correlation))
        cancelled = (both < 1e-4 * whole) & np.isfinite(x) & np.isfinite(y)
        if cancelled.any():
            both[cancelled] = _beyond_mode(x[cancelled], y[cancelled], correlation)
        return np.maximum(both, 0.0)
    independent = scipy.special.ndtr(-x) * scipy.special.ndtr(-y)
    usable = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(usable, x, 0.0), np.where(usable, y, 0.0)
    # Panels shrink towards the angle of correlation 1, where the integrand varies fastest.
    edges = 0.5 * math.pi * (1 - 2.0 ** -np.arange(0, 40))
    top = math.asin(correlation)
    edges = np.append(edges[edges < top], top)
    total = np.zeros(x.shape)
    for low, high in itertools.pairwise(edges):
        half = 0.5 * (high - low)
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            angle = low + half * (1 + node)
            sine, cosine = math.sin(angle), math.cos(angle)
            # x² + y² − 2xy·sin as a sum of squares: no cancellation where x is near y.
            power = ((x - y) ** 2 + 2 * x * y * (1 - sine)) / (2 * cosine**2)
            total += half * weight * np.exp(-power)
    return np.where(usable, independent + total / (2 * math.pi), independent)


def _beyond_mode(x: FloatArray, y: FloatArray, correlation: float) -> FloatArray:
    """∫_x^∞ φ(t)Φ((ρt − y)/√(1 − ρ²)) dt where the integrand falls from t = x on."""
    spread = math.sqrt(1 - correlation**2)
    z = (correlation * x - y) / spread
    # Its logarithmic slope at x; the integrand falls at least that fast everywhere beyond.
    hazard = np.exp(-0.5 * z**2 - scipy.special.log_ndtr(z)) / math.sqrt(2 * math.pi)
    slope = x - correlation / spread * hazard
    total = np.zeros(x.shape)
    for low, high in itertools.pairwise([0.0, 1.0, 3.0, 7.0, 15.0, 40.0]):
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            t = x + (low + 0.5 * (high - low) * (1 + node)) / slope
            power = scipy.special.log_ndtr((correlation * t - y) / spread) - 0.5 * t * t
            total += 0.5 * (high - low) * weight * np.exp(power)
    return total / (slope * math.sqrt(2 * math.pi))


def _normal_score(law: SimilarityLaw, s: FloatArray) -> FloatArray:
    """Φ⁻¹(F(s)), from the smaller of both tails; infinite beyond the support."""
    below, above = np.asarray(law.cdf(s)), np.asarray(law.sf(s))
    return np.where(below < above, scipy.special.ndtri(below), -scipy.special.ndtri(above))


def _from_normal_score(law: SimilarityLaw, x: FloatArray) -> FloatArray:
    """F⁻¹(Φ(x)), from the smaller of both tails."""
    return np.where(x < 0, law.ppf(scipy.special.ndtr(x)), law.isf(scipy.special.ndtr(-x)))
