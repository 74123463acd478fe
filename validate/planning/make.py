"""Making a plan: settings are tried layer by layer on calibration requests, and chosen at equal slope.

The model of divergence (``ratedist.validate.planning.trials``) leaves out that later layers damp or amplify
the errors of earlier ones. That is corrected on the calibration requests as a whole: the total that the
allocation may spend is moved until the *measured* divergence of the plan is what was asked for. The relative
error of attention outputs is measured with the original queries, layer by layer, and adds up by definition.

A plan that is chosen by what was measured on some requests does worse on others: whether a harmful match lies
just above a threshold or just below is chance, and the choice takes what was lucky here. So what counts is
the harm averaged over slightly moved thresholds (``foreseen``), and the band of it for as many other
requests, which has to end below a tolerated multiple of the goal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ratedist.allocation import Allocation, allocate
from ratedist.errors import InputError
from ratedist.records import provenance
from ratedist.validate.planning.measurements import Measured, Measurements
from ratedist.validate.planning.plan_file import CachePlan
from ratedist.validate.planning.sensitivity import SHIFT, plan_sensitivity, shifted
from ratedist.validate.planning.trials import (
    LEAST_HARM,
    Progress,
    default_settings,
    try_settings,
    weigh_layers,
)
from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.methods import Method

__all__ = ["GOALS", "TOLERANCE", "Planner", "foreseen", "foreseen_kl", "make_plan", "mean_with_band"]

FloatArray = NDArray[np.float64]

GOALS = ("max_kl", "max_error", "min_saving", "slope")
"""At most this divergence (nats); at most this relative error of the attention output, root mean square over
requests and planned layers; at least this share of the cache saved; or whatever saves at least a percent of
the cache per so many nats."""

TOLERANCE = 1.5
"""How many times ``max_kl`` or ``max_error`` the upper end of a plan's band may reach."""

_LIMITED = ("max_kl", "max_error")
_ROUNDS = 5
_NEAR_ENOUGH = 0.9


@dataclass(frozen=True)
class _Limit:
    """A goal that limits harm.

    Attributes:
        goal: its name.
        of: the harm, an attribute of ``Measured``, per request.
        most: of the mean harm, in nats or as a squared error.
        tolerance: how many times that its band may reach; None where the measured mean alone counts.
        power: of the goal's own unit that harm is: 2 for a squared error.
    """

    goal: str
    of: str
    most: float
    tolerance: float | None
    power: int

    @classmethod
    def of_goal(cls, goal: str, value: float, tolerance: float | None) -> _Limit:
        of, power = ("kl", 1) if goal == "max_kl" else ("error2", 2)
        return cls(goal, of, value**power, None if tolerance is None else tolerance**power, power)

    def load(self, counted: FloatArray) -> float:
        """How much of what is allowed a harm takes: kept where at most 1."""
        mean, _, high = mean_with_band(counted)
        return (mean if self.tolerance is None else max(mean, high / self.tolerance)) / self.most

    def out_of_reach(self, counted: FloatArray) -> InputError:
        """What to raise where even the least harm, ``counted``, is too much."""
        mean, _, high = (number ** (1 / self.power) for number in mean_with_band(counted))
        band = "" if self.tolerance is None else f", for other requests up to {high:.3g}"
        return InputError(
            self.goal,
            self.most ** (1 / self.power),
            f"is out of reach: the least that these settings do is {mean:.3g}{band}",
        )


class Planner:
    """Plans for any number of goals from one calibration: what was tried and measured serves them all.

    Attributes:
        session: the calibration requests, with the layers to plan.
        measurements: of the session.
        trials: all settings of all layers.
    """

    def __init__(
        self,
        session: QualitySession,
        *,
        settings: Sequence[Method] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Try the settings, which takes most of the time.

        Args:
            session: calibration requests.
            settings: what a layer may take; ``default_settings()`` where None.
            progress: called as work goes on, here and when plans are made.
        """
        self.session = session
        self.measurements = Measurements(session)
        self._progress = progress
        self.trials = try_settings(
            self.measurements, default_settings() if settings is None else settings, progress
        )
        # By harm and whether thresholds were moved: what could be spent, and the harm that came of it.
        self._spent: dict[tuple[str, bool], dict[float, FloatArray]] = {}

    @cached_property
    def weight(self) -> FloatArray:
        """(L,) nats of divergence per squared error of each layer; one pass of the model per layer."""
        return weigh_layers(self.measurements, self.trials, self._progress)

    def choose(self, goal: str, value: float, *, tolerance: float | None = TOLERANCE) -> Allocation:
        """The setting per layer that meets a goal on the session's requests.

        Args:
            goal: one of ``GOALS``.
            value: of the goal.
            tolerance: for ``max_kl`` and ``max_error``: the foreseen harm must keep the goal, and its band
                for as many other requests (``mean_with_band``, 90 %) must end below so many times the goal,
                so that harm that varies much is given less. None to go by the mean that is measured on
                these requests, at these thresholds, alone.

        Raises:
            InputError: an unknown goal, a value outside its range, a tolerance below 1 or from a single
                request, or a goal that no plan reaches (the message says what the best is).
        """
        _check_goal(goal, value)
        trials = self.trials
        if goal == "min_saving":
            most = 1 - (trials.alone + trials.bytes.min(axis=1).sum()) / trials.unfused
            if value > most:
                raise InputError(
                    goal, value, f"is out of reach: the most that these settings save is {most:.4f}"
                )
            return allocate(trials.offers(self.weight), max_bytes=(1 - value) * trials.unfused - trials.alone)
        if goal == "slope":
            return allocate(trials.offers(self.weight), slope=0.01 * trials.unfused / value)
        if tolerance is not None:
            if not (math.isfinite(tolerance) and tolerance >= 1):
                raise InputError(
                    "tolerance", tolerance, "must be at least 1, or None to go by the measured mean alone"
                )
            if self.session.requests < 2:
                raise InputError("requests", 1, "give no band; plan on at least two requests")
        return self._spend(_Limit.of_goal(goal, value, tolerance))

    def plan(
        self,
        goal: str,
        value: float,
        *,
        tolerance: float | None = TOLERANCE,
        command: list[str] | None = None,
    ) -> CachePlan:
        """What ``choose`` chooses, what to expect of it on other requests, and what the best single setting
        for all layers would give.

        Args:
            goal, value, tolerance: as ``choose``.
            command: for the plan's provenance.

        Raises:
            InputError: as ``choose``.
        """
        allocation = self.choose(goal, value, tolerance=tolerance)
        trials, session = self.trials, self.session
        methods = trials.methods(allocation)
        measured = self.measurements(methods)
        kl, low, high = mean_with_band(foreseen(self.measurements, methods, "kl"))
        error = [math.sqrt(end) for end in mean_with_band(foreseen(self.measurements, methods, "error2"))]
        limited = goal in _LIMITED
        if not limited:
            tolerance = None
            rival = _Limit.of_goal("max_kl", max(measured.mean_kl, LEAST_HARM), None)
        else:
            rival = _Limit.of_goal(goal, value, None)
        return CachePlan(
            model=session.loaded.name,
            weights_hash=session.loaded.weights_hash,
            layers=session.loaded.layers,
            block_size=session.block_size,
            settings=methods,
            goal={goal: float(value)},
            predicted={
                "requests": session.requests,
                "compression": measured.compression,
                "saving": measured.saving,
                "kl": kl,
                "kl_here": measured.mean_kl,
                "kl_low": low,
                "kl_high": high,
                "kl_from_model": None if goal == "max_error" else allocation.harm,
                "error": error[0],
                "error_here": measured.error,
                "error_low": error[1],
                "error_high": error[2],
                "tolerance": tolerance,
                "bytes_bound": (trials.alone + allocation.bound) / trials.unfused if limited else None,
                "uniform": self._uniform(rival),
                "sensitivity": plan_sensitivity(self.measurements, methods, trials.exact_saving()),
            },
            provenance=provenance(command, workload=session.prompts.name, seed=session.prompts.seed),
        )

    def _spend(self, limit: _Limit) -> Allocation:
        """The allocation whose measured harm comes nearest to the limit from below."""
        offers = self.trials.offers(self._weight_of(limit))
        least = sum(float(offer.harm.min()) for offer in offers)
        most = sum(float(offer.harm.max()) for offer in offers)
        best: tuple[Allocation, Measured] | None = None
        # What other goals have found out about budgets and the harm that came of them.
        spent = self._spent.setdefault((limit.of, limit.tolerance is not None), {})
        loads = {budget: limit.load(harm) for budget, harm in spent.items()}
        low, high = _bracket(loads, max(least, LEAST_HARM), max(most, 2 * LEAST_HARM))
        budget = _guess(loads, low, high, min(max(limit.most, low), high))
        for number in range(_ROUNDS):
            allocation = allocate(offers, max_harm=budget)
            measured = self.measurements(self.trials.methods(allocation))
            spent[budget] = self._counted(allocation, limit)
            loads[budget] = load = limit.load(spent[budget])
            if load <= 1 and (best is None or measured.compression > best[1].compression):
                best = allocation, measured
            if self._progress is not None:
                self._progress("spending the harm allowed", (number + 1) / _ROUNDS)
            if _NEAR_ENOUGH <= load <= 1 or (load <= 1 and budget >= most):
                break
            low, high = (budget, high) if load <= 1 else (low, budget)
            budget = _guess(loads, low, high, math.sqrt(low * high))
        if best is not None:
            return best[0]
        allocation = allocate(offers, max_harm=least)
        counted = self._counted(allocation, limit)
        if limit.load(counted) > 1:
            raise limit.out_of_reach(counted)
        return allocation

    def _weight_of(self, limit: _Limit) -> FloatArray:
        return self.weight if limit.of == "kl" else self.trials.equal_weight

    def _counted(self, allocation: Allocation, limit: _Limit) -> FloatArray:
        """(R,) harm that has to keep the goal."""
        methods = self.trials.methods(allocation)
        if limit.tolerance is not None:
            return foreseen(self.measurements, methods, limit.of)
        found: FloatArray = getattr(self.measurements(methods), limit.of)
        return found

    def _uniform(self, limit: _Limit) -> dict[str, Any] | None:
        """The best single setting for all layers within the limit on these requests; None where none is.

        Settings are measured from the one that saves most on, of those that the trials put within twice
        the limit, until one keeps it.
        """
        harm = self.trials.harm(self._weight_of(limit)).sum(axis=0)
        for column in np.argsort(self.trials.bytes.sum(axis=0), kind="stable"):
            if harm[column] > 2 * limit.most:
                continue
            method = self.trials.settings[int(column)]
            measured = self.measurements.uniform(method)
            if float(getattr(measured, limit.of).mean()) <= limit.most:
                return {
                    "setting": method.to_json(),
                    "compression": measured.compression,
                    "kl": measured.mean_kl,
                    "error": measured.error,
                }
        return None


def make_plan(
    session: QualitySession,
    goal: str,
    value: float,
    *,
    settings: Sequence[Method] | None = None,
    tolerance: float | None = TOLERANCE,
    command: list[str] | None = None,
    progress: Progress | None = None,
) -> CachePlan:
    """A plan for one goal: ``Planner`` with these settings, and its ``plan``.

    Raises:
        InputError: as ``Planner.plan``; the goal is looked at before anything is tried.
    """
    _check_goal(goal, value)
    planner = Planner(session, settings=settings, progress=progress)
    return planner.plan(goal, value, tolerance=tolerance, command=command)


def foreseen(measurements: Measurements, methods: Mapping[int, Method], of: str) -> FloatArray:
    """(R,) harm per request, averaged over a plan and the plan with all thresholds moved by ``SHIFT`` up and
    down: what to expect of other requests, where the plan was chosen by what these measured.

    Args:
        measurements: of the requests.
        methods: the plan.
        of: ``"kl"`` or ``"error2"``, as ``Measured`` has them.

    Test: tests/validate/planning/test_planning.py::test_foreseen_divergence_is_that_of_moved_thresholds.
    """
    neighbours = [getattr(measurements(shifted(methods, by)), of) for by in (-SHIFT, 0.0, SHIFT)]
    mean: FloatArray = np.mean(neighbours, axis=0)
    return mean


def foreseen_kl(measurements: Measurements, methods: Mapping[int, Method]) -> FloatArray:
    """(R,) ``foreseen`` divergence."""
    return foreseen(measurements, methods, "kl")


def mean_with_band(values: FloatArray, level: float = 0.9) -> tuple[float, float, float]:
    """Mean over requests, and the band in which the mean over as many other requests lies.

    Two means of R requests differ by √2 standard errors; Student's t with R − 1 degrees of freedom.
    Test: tests/validate/planning/test_planning.py::test_the_band_covers_other_requests.
    """
    mean = float(values.mean())
    if len(values) < 2:
        return mean, 0.0, math.inf
    spread = math.sqrt(2 / len(values)) * float(values.std(ddof=1))
    # stdtrit is the quantile of Student's t; scipy.stats would take a second to load.
    reach = float(scipy.special.stdtrit(len(values) - 1, 0.5 + level / 2)) * spread
    return mean, max(0.0, mean - reach), mean + reach


def _check_goal(goal: str, value: float) -> None:
    if goal not in GOALS:
        raise InputError("goal", goal, f"must be one of {', '.join(GOALS)}")
    if not (math.isfinite(value) and value > 0) or (goal == "min_saving" and value >= 1):
        raise InputError(goal, value, "must be positive, and a share below 1 for min_saving")


def _bracket(loads: dict[float, float], low: float, high: float) -> tuple[float, float]:
    """The largest budget below the smallest that was too much, and that."""
    high = min((budget for budget, load in loads.items() if load > 1), default=high)
    low = max(
        (budget for budget, load in loads.items() if load <= 1 and budget < high), default=min(low, high)
    )
    return low, high


def _guess(loads: dict[float, float], low: float, high: float, otherwise: float) -> float:
    """A budget within low and high that should come to just below 1.

    The load grows nearly in proportion to a power of the budget: interpolated between what is known
    around 1, and in proportion where one side is unknown.
    """
    aim = math.log((1 + _NEAR_ENOUGH) / 2)
    known = sorted((math.log(load), math.log(budget)) for budget, load in loads.items() if load > 0)
    below, above = [point for point in known if point[0] <= aim], [point for point in known if point[0] > aim]
    if below and above:
        (x0, y0), (x1, y1) = below[-1], above[0]
        guess = math.exp(y0 + (y1 - y0) * (aim - x0) / (x1 - x0))
    elif known:
        x, y = below[-1] if below else above[0]
        guess = math.exp(y + aim - x)
    else:
        guess = otherwise
    return guess if low < guess < high else otherwise
