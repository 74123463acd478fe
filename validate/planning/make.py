"""Making a plan: try settings layer by layer on calibration requests, and choose at equal slope.

Harm is next-token divergence, taken to add up over layers and, within a layer, to be proportional to the
squared relative error of the attention output: KL ≈ Σ_l w_l·a_l². The error of every setting is found by
attention alone, and one pass of the model per layer gives w_l. What that leaves out (errors of one layer that
later layers damp or amplify) is then corrected on the calibration requests as a whole: the total that the
allocation may spend is moved until the *measured* divergence of the plan is what was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.allocation import Allocation, LayerSettings, allocate, best_uniform
from ratedist.errors import InputError
from ratedist.records import provenance
from ratedist.validate.planning.plan_file import CachePlan
from ratedist.validate.quality.continuation import Quality, QualitySession
from ratedist.validate.quality.methods import Method

__all__ = ["GOALS", "LEAST_HARM", "default_settings", "make_plan", "mean_with_band"]

FloatArray = NDArray[np.float64]
Progress = Callable[[str, float], None]
"""Called with what is under way and the share of it that is done."""

GOALS = ("max_kl", "min_saving", "slope")
"""At most this divergence (nats); at least this share of the cache saved; or whatever saves at least a
percent of the cache per so many nats."""

LEAST_HARM = 1e-9
"""Nats below which a setting counts as harmless."""

_PROBE_ERROR2 = 0.02
"""Squared attention error at which a layer's weight is found: large enough to stand out, small enough to be
in the range that plans use."""

_ROUNDS = 5
_TOLERANCE = 0.05


def default_settings(
    thresholds: Sequence[float] = tuple(np.arange(0.6, 0.96, 0.05).round(2).tolist()),
    criteria: Sequence[str] = ("keys", "both"),
    bits: Sequence[int] = (16, 4),
) -> list[Method]:
    """Settings that a layer may take: exact sharing alone, and fusion, each with 16 bits and with fewer.

    Args:
        thresholds: of fusion.
        criteria: of fusion.
        bits: per scalar of what is kept; below 16 as ``"kivi"`` codes them.

    Raises:
        InputError: no bits, or others than 16 and 1 to 8.
    """
    if not bits:
        raise InputError("bits", list(bits), "name at least one")
    settings = []
    for number in bits:
        if number != 16 and not 1 <= number <= 8:
            raise InputError("bits", number, "must be 16, or 1 to 8")
        coding, stored = ("", 0) if number == 16 else ("kivi", number)
        settings.append(Method("exact", coding, stored))
        settings += [
            Method("fusion", coding, stored, criterion=criterion, threshold=float(threshold))
            for criterion in criteria
            for threshold in thresholds
        ]
    return settings


@dataclass(frozen=True)
class _Trials:
    """All settings of all layers on the calibration requests, L layers and S settings."""

    layers: tuple[int, ...]
    bytes: FloatArray  # (L, S)
    error2: FloatArray  # (L, S)
    weight: FloatArray  # (L,)
    alone: float  # bytes of the layers that are not planned

    @property
    def offers(self) -> list[LayerSettings]:
        harm = self.weight[:, None] * self.error2
        return [LayerSettings(size, cost) for size, cost in zip(self.bytes, harm, strict=True)]


def make_plan(
    session: QualitySession,
    goal: str,
    value: float,
    *,
    settings: Sequence[Method] | None = None,
    command: list[str] | None = None,
    progress: Progress | None = None,
) -> CachePlan:
    """A setting per layer that meets a goal on the session's requests, and what to expect of others.

    Args:
        session: calibration requests, with the layers to plan.
        goal: one of ``GOALS``.
        value: of the goal.
        settings: what a layer may take; ``default_settings()`` where None. The first must be harmless.
        command: for the plan's provenance.
        progress: called as work goes on.

    Raises:
        InputError: an unknown goal, a value outside its range, or a goal that no plan reaches (the message
            says what the best is).
    """
    if goal not in GOALS:
        raise InputError("goal", goal, f"must be one of {', '.join(GOALS)}")
    if not (math.isfinite(value) and value > 0) or (goal == "min_saving" and value >= 1):
        raise InputError(goal, value, "must be positive, and a share below 1 for min_saving")
    chosen = default_settings() if settings is None else list(settings)
    trials = _try_settings(session, chosen, progress)
    unfused = float(session.measure({}).unfused_bytes.sum())

    def methods(allocation: Allocation) -> dict[int, Method]:
        return {
            layer: chosen[setting]
            for layer, setting in zip(trials.layers, allocation.settings.tolist(), strict=True)
        }

    def measured(allocation: Allocation) -> Quality:
        return session.measure(methods(allocation))

    offers = trials.offers
    if goal == "min_saving":
        most = 1 - (trials.alone + trials.bytes.min(axis=1).sum()) / unfused
        if value > most:
            raise InputError(goal, value, f"is out of reach: the most that these settings save is {most:.4f}")
        allocation = allocate(offers, max_bytes=(1 - value) * unfused - trials.alone)
        quality = measured(allocation)
    elif goal == "slope":
        allocation = allocate(offers, slope=0.01 * unfused / value)
        quality = measured(allocation)
    else:
        allocation, quality = _spend(offers, value, measured, progress)
    kl, low, high = mean_with_band(quality.kl.mean(axis=1))
    limit = max(kl, LEAST_HARM) if goal != "max_kl" else value
    uniform = _uniform(session, trials, chosen, limit)
    return CachePlan(
        model=session.loaded.name,
        weights_hash=session.loaded.weights_hash,
        layers=session.loaded.layers,
        block_size=session.block_size,
        settings=methods(allocation),
        goal={goal: float(value)},
        predicted={
            "requests": session.requests,
            "compression": quality.compression,
            "saving": 1 - 1 / quality.compression,
            "kl": kl,
            "kl_low": low,
            "kl_high": high,
            "kl_from_model": allocation.harm,
            "bytes_bound": (trials.alone + allocation.bound) / unfused if goal == "max_kl" else None,
            "uniform": uniform,
        },
        provenance=provenance(command, workload=session.prompts.name, seed=session.prompts.seed),
    )


def mean_with_band(values: FloatArray, level: float = 0.9) -> tuple[float, float, float]:
    """Mean over requests, and the band in which the mean over as many other requests lies.

    Two means of R requests differ by √2 standard errors; Student's t with R − 1 degrees of freedom.
    Test: tests/validate/test_planning.py::test_the_band_covers_other_requests.
    """
    import scipy

    mean = float(values.mean())
    if len(values) < 2:
        return mean, 0.0, math.inf
    spread = math.sqrt(2 / len(values)) * float(values.std(ddof=1))
    reach = float(scipy.stats.t.ppf(0.5 + level / 2, len(values) - 1)) * spread
    return mean, max(0.0, mean - reach), mean + reach


def _try_settings(session: QualitySession, settings: Sequence[Method], progress: Progress | None) -> _Trials:
    layers = session.layers
    size, error2 = (np.zeros((len(layers), len(settings))) for _ in range(2))
    for row, layer in enumerate(layers):
        for column, method in enumerate(settings):
            trial = session.try_layer(layer, method)
            size[row, column] = trial.bytes
            error2[row, column] = trial.attention_error2.mean()
        if progress is not None:
            progress("trying settings", (row + 1) / len(layers))
    weight = np.zeros(len(layers))
    for row, layer in enumerate(layers):
        probe = int(np.abs(np.log(np.maximum(error2[row], LEAST_HARM) / _PROBE_ERROR2)).argmin())
        if error2[row, probe] > 0:
            kl = float(session.measure({layer: settings[probe]}).kl.mean())
            weight[row] = kl / error2[row, probe]
        if progress is not None:
            progress("weighing layers", (row + 1) / len(layers))
    whole = session.measure({})
    planned = sum(float(session.try_layer(layer, Method()).bytes) for layer in layers)
    return _Trials(layers, size, error2, weight, float(whole.bytes.sum()) - planned)


def _spend(
    offers: Sequence[LayerSettings],
    limit: float,
    measured: Callable[[Allocation], Quality],
    progress: Progress | None,
) -> tuple[Allocation, Quality]:
    """The allocation whose measured divergence comes nearest to ``limit`` from below."""
    least = sum(float(offer.harm.min()) for offer in offers)
    most = sum(float(offer.harm.max()) for offer in offers)
    best: tuple[Allocation, Quality] | None = None
    low, high = max(least, LEAST_HARM), max(most, 2 * LEAST_HARM)
    budget = min(max(limit, low), high)
    for number in range(_ROUNDS):
        allocation = allocate(offers, max_harm=budget)
        quality = measured(allocation)
        kl = float(quality.kl.mean())
        if kl <= limit and (best is None or quality.compression > best[1].compression):
            best = allocation, quality
        if progress is not None:
            progress("spending the divergence", (number + 1) / _ROUNDS)
        if kl <= limit:
            low = budget
            if kl >= (1 - _TOLERANCE) * limit or budget >= most:
                break
        else:
            high = budget
        # Proportional to what was missed, kept inside of what is known to be too little and too much.
        guess = budget * limit / max(kl, LEAST_HARM)
        budget = guess if low < guess < high else math.sqrt(low * high)
    if best is not None:
        return best
    allocation = allocate(offers, max_harm=least)
    quality = measured(allocation)
    kl = float(quality.kl.mean())
    if kl > limit:
        raise InputError("max_kl", limit, f"is out of reach: the least that these settings do is {kl:.3g}")
    return allocation, quality


def _uniform(
    session: QualitySession, trials: _Trials, settings: Sequence[Method], limit: float
) -> dict[str, Any] | None:
    """The best single setting for all layers within the same measured divergence; None where none is.

    Settings are measured from the one that saves most on, of those that the model of harm puts within twice
    the limit, until one keeps it.
    """
    harm = (trials.weight[:, None] * trials.error2).sum(axis=0)
    size = trials.bytes.sum(axis=0)
    try:
        best_uniform(trials.offers, max_harm=2 * limit)
    except InputError:
        return None
    for column in np.argsort(size):
        if harm[column] > 2 * limit:
            continue
        quality = session.measure(dict.fromkeys(trials.layers, settings[int(column)]))
        kl = float(quality.kl.mean())
        if kl <= limit:
            return {
                "setting": asdict(settings[int(column)]),
                "compression": quality.compression,
                "kl": kl,
            }
    return None
