"""What becomes of a plan when part of the requests comes from elsewhere, measured by fusing such mixtures.

Requests that the plan was not made on are replaced, one share after another, by requests of another workload;
every mixture is prefilled and fused by the plan. Between the shares that are measured, what was promised is
taken to change in a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.validate.planning.plan_file import CachePlan
from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.methods import Method
from ratedist.validate.workloads.prompts import PromptSet

__all__ = ["SHARES", "MixtureOutcome", "Promise", "breaking_share", "drift_of", "mixture", "promise_of"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SHARES = (0.0, 0.25, 0.5, 1.0)
"""Shares of requests from elsewhere."""

_DRAWS = 2000
_LEVEL = 0.9

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Promise:
    """What a plan's goal promises of other requests.

    Attributes:
        of: ``"kl"`` (mean, nats), ``"error"`` (of attention outputs, root mean square) or ``"saving"`` (share
            of the cache's bytes).
        limit: the most that is allowed of the first two, the least of ``"saving"``.
    """

    of: str
    limit: float

    def excess(self, value: FloatArray) -> FloatArray:
        """How far values are beyond the limit; the promise is broken where this is above 0."""
        return self.limit - value if self.of == "saving" else value - self.limit


@dataclass(frozen=True)
class MixtureOutcome:
    """A plan on one mixture of R requests.

    Attributes:
        share: of requests from elsewhere.
        elsewhere: (R,) bool, which they are.
        source: (R,) number of each request within where it comes from.
        kl: (R,) mean divergence over a request's continuation, in nats.
        error2: (R,) as in ``ratedist.validate.planning.measurements.Measured``.
        bytes, unfused: (R,) of the whole cache, with the plan and without.
    """

    share: float
    elsewhere: NDArray[np.bool_]
    source: IntArray
    kl: FloatArray
    error2: FloatArray
    bytes: FloatArray
    unfused: FloatArray

    def value(self, of: str, weights: tuple[FloatArray, FloatArray] | None = None) -> FloatArray:
        """(draws,) ``"kl"``, ``"error"`` or ``"saving"``, requests weighted, the two kinds at their share.

        Args:
            of: the quantity.
            weights: (draws, requests) each, of requests at home and from elsewhere; equal where None.
        """

        def mean(values: FloatArray) -> FloatArray:
            total = np.zeros(1)
            for kind in (False, True):
                here = self.elsewhere == kind
                if not here.any():
                    continue
                chosen = (
                    np.ones((1, int(here.sum())))
                    if weights is None
                    else weights[int(kind)][:, self.source[here]]
                )
                part = (chosen * values[here]).sum(axis=1) / chosen.sum(axis=1)
                total = total + here.mean() * part
            return total

        if of == "kl":
            return mean(self.kl)
        if of == "error":
            return np.asarray(np.sqrt(mean(self.error2)))
        return np.asarray(1 - mean(self.bytes) / mean(self.unfused))


def drift_of(
    plan: CachePlan,
    home: QualitySession,
    other: PromptSet,
    open_session: Callable[[PromptSet], QualitySession],
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fuse mixtures of requests at home and from elsewhere by a plan.

    Args:
        plan: of the session's model.
        home: requests of the plan's own traffic that it was not made on.
        other: as many requests from elsewhere.
        open_session: makes a session of a mixture, like ``home``.
        shares: of requests from elsewhere, ascending; rounded to whole requests.
        seed: of the order of mixtures and of the bootstrap.
        progress: called after every mixture.

    Returns:
        ``to``, ``requests``; ``points``, a list of ``share, kl, error, saving, compression``; ``promise``,
        ``of`` and ``limit`` of ``promise_of``, None where the goal promises nothing; ``breaks_at``, the share
        at which the promise is first broken, None where it is kept up to 1; ``breaks_low, breaks_high``, its
        90 % interval, None for an end beyond 1; ``breaks_in``, the part of the bootstrap in which it breaks
        at all; ``words``, a sentence that says so. The bootstrap (Rubin's: exponential weights of requests,
        the same in every mixture) says how far it moves the result which requests came, not how others would
        have fused with each other.

    Raises:
        InputError: a plan for another model, fewer requests from elsewhere than at home, or shares that are
            not ascending within [0, 1].

    Test: tests/validate/planning/test_plan_drift.py::test_mixtures_are_fused_and_measured.
    """
    plan.check(home.loaded)
    count = home.requests
    if len(other.prompts) < count:
        raise InputError("drift_to", other.name, f"gives {len(other.prompts)} requests, needs {count}")
    if not shares or list(shares) != sorted(set(shares)) or not 0 <= shares[0] <= shares[-1] <= 1:
        raise InputError("shares", list(shares), "must be different, ascending and within [0, 1]")
    found: list[MixtureOutcome] = []
    for foreign in dict.fromkeys(round(share * count) for share in shares):
        if foreign:
            prompts, elsewhere, source = mixture(home.prompts, other, foreign, seed)
            session = open_session(prompts)
        else:
            session = home
            elsewhere, source = np.zeros(count, dtype=np.bool_), np.arange(count)
        found.append(_measure(session, plan.settings, elsewhere, source))
        if progress is not None:
            progress(f"fusing with {found[-1].share:.0%} from {other.name}", foreign / count)
    promise = promise_of(plan)
    result: dict[str, Any] = {
        "to": other.name,
        "requests": count,
        "points": [_point(outcome) for outcome in found],
        "promise": None if promise is None else {"of": promise.of, "limit": promise.limit},
    }
    result |= _breaking(found, promise, seed)
    return result | {"words": _words(result)}


def promise_of(plan: CachePlan) -> Promise | None:
    """What the goal of a plan promises of other requests; None for a slope.

    A divergence and an error may come to the tolerance times the goal.
    """
    ((goal, value),) = plan.goal.items()
    if goal in ("max_kl", "max_error"):
        return Promise(goal.removeprefix("max_"), value * (plan.predicted.get("tolerance") or 1.0))
    if goal == "min_saving":
        return Promise("saving", value)
    return None


def mixture(
    home: PromptSet, other: PromptSet, foreign: int, seed: int
) -> tuple[PromptSet, NDArray[np.bool_], IntArray]:
    """As many requests as at home, the last ``foreign`` of them exchanged for others, in random order.

    Returns:
        The requests; which are from elsewhere; the number of each within where it comes from.
    """
    count = len(home.prompts)
    elsewhere = np.arange(count) >= count - foreign
    source = np.where(elsewhere, np.arange(count) - (count - foreign), np.arange(count))
    order = np.random.default_rng(seed).permutation(count)
    prompts = tuple(
        (other if elsewhere[number] else home).prompts[source[number]] for number in order.tolist()
    )
    name = f"{home.name} with {foreign} of {count} from {other.name}"
    return PromptSet(name, prompts, seed), elsewhere[order], source[order]


def breaking_share(shares: FloatArray, excess: FloatArray) -> FloatArray:
    """Where a promise first breaks, in a straight line between shares.

    Args:
        shares: (P,) ascending.
        excess: (P, draws) beyond the limit; broken where above 0.

    Returns:
        (draws,) the first share; infinite where it is kept at all of them.

    Test: tests/validate/planning/test_plan_drift.py::test_the_first_crossing_is_found.
    """
    first = np.full(excess.shape[1], math.inf)
    for at in range(len(shares)):
        here = (excess[at] > 0) & np.isinf(first)
        if at == 0:
            first[here] = shares[0]
            continue
        before, after = excess[at - 1, here], excess[at, here]
        first[here] = shares[at - 1] + (shares[at] - shares[at - 1]) * -before / (after - before)
    return first


def _measure(
    session: QualitySession,
    methods: Mapping[int, Method],
    elsewhere: NDArray[np.bool_],
    source: IntArray,
) -> MixtureOutcome:
    quality = session.measure(methods)
    return MixtureOutcome(
        float(elsewhere.mean()),
        elsewhere,
        source,
        quality.kl.mean(axis=1),
        quality.attention_error2.mean(axis=0),
        quality.bytes,
        quality.unfused_bytes,
    )


def _point(outcome: MixtureOutcome) -> dict[str, float]:
    (kl,), (error,), (saving,) = (outcome.value(of) for of in ("kl", "error", "saving"))
    return {
        "share": outcome.share,
        "kl": float(kl),
        "error": float(error),
        "saving": float(saving),
        "compression": float(1 / (1 - saving)),
    }


def _breaking(found: Sequence[MixtureOutcome], promise: Promise | None, seed: int) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(("breaks_at", "breaks_low", "breaks_high", "breaks_in"))
    if promise is None:
        return nothing
    shares = np.array([outcome.share for outcome in found])
    rng = np.random.default_rng(seed)
    weights = tuple(rng.exponential(size=(_DRAWS, len(found[0].kl))) for _ in range(2))

    def at(drawn: tuple[FloatArray, FloatArray] | None) -> FloatArray:
        values = [promise.excess(outcome.value(promise.of, drawn)) for outcome in found]
        return breaking_share(shares, np.array(values))

    draws = at((weights[0], weights[1]))
    # "higher": an end between a share and never is never, not a number between.
    low, high = (
        float(np.quantile(draws, quantile, method=method))  # type: ignore[call-overload]
        for quantile, method in (((1 - _LEVEL) / 2, "lower"), ((1 + _LEVEL) / 2, "higher"))
    )
    return {
        "breaks_at": _finite(float(at(None)[0])),
        "breaks_low": _finite(low),
        "breaks_high": _finite(high),
        "breaks_in": float(np.isfinite(draws).mean()),
    }


def _words(drift: Mapping[str, Any]) -> str:
    """From which share of other requests on a plan's promise is broken."""
    promise = drift["promise"]
    if promise is None:
        return f"With requests from {drift['to']}: the goal promises nothing that drift could break."
    kept = {
        "kl": "a divergence of at most {:.3g}",
        "error": "a relative error of at most {:.3g}",
        "saving": "a saving of at least {:.1%}",
    }[promise["of"]].format(promise["limit"])
    where = f"With requests from {drift['to']}, {kept}"
    if drift["breaks_at"] is None:
        still = f"; in {drift['breaks_in']:.0%} of bootstrap draws it breaks" if drift["breaks_in"] else ""
        return f"{where} is kept at every share{still}."
    low, high = (
        "beyond 100%" if end is None else f"{end:.0%}" for end in (drift["breaks_low"], drift["breaks_high"])
    )
    return (
        f"{where} is broken from a share of {drift['breaks_at']:.0%} on (in 90 % of bootstrap draws of the "
        f"requests {low} to {high})."
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
