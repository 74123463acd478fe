"""One cell of the experiment on plans: made on some requests, measured on others, beside rivals in hindsight.

A cell is one workload and one seed. Of 2·R requests drawn with the seed the first half calibrates; what is
measured on the second half chooses nothing but the rival: the best single setting for all layers, chosen
there, in hindsight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.bjontegaard import bd_rate
from ratedist.curve import RateDistortionCurve
from ratedist.errors import InputError
from ratedist.validate.models import LoadedModel
from ratedist.validate.planning.make import TOLERANCE, Planner, foreseen_kl, mean_with_band
from ratedist.validate.planning.measurements import Measured, Measurements
from ratedist.validate.planning.trials import Progress, default_settings
from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.methods import Method
from ratedist.validate.workloads import build_prompts
from ratedist.validate.workloads.prompts import PromptSet

__all__ = ["KEPT_SAVING", "HeldOut", "PromiseSettings", "promise_cell", "uniform_curve"]

FloatArray = NDArray[np.float64]

KEPT_SAVING = 0.9
"""Share of the saving of the best single setting in hindsight that a plan is to reach."""

_REFINEMENTS = 2
"""Times that the step between thresholds is halved around the rival's."""

HeldOut = Callable[[str, int], Measurements]
"""Measurements of the requests of a workload and a seed that no plan is made on."""


@dataclass(frozen=True)
class PromiseSettings:
    """What a cell's numbers depend on beside its workload, its seed and the model.

    Attributes:
        max_kl: the goal whose promise is tested.
        tolerance: how many times ``max_kl`` other requests may come to; what plans are made with, too.
        goals: further ``max_kl`` whose plans give the curve of rate against divergence.
        requests: to plan on, and as many held out.
        tokens: of each whose cache is planned.
        continuation: further tokens, on which the divergence is measured.
        settings: what a layer may take.
        drift: workloads that the plan is also measured on, as they are.
        layers: to plan; default all but the first and last two.
    """

    max_kl: float = 0.02
    tolerance: float = TOLERANCE
    goals: tuple[float, ...] = (0.005, 0.05)
    requests: int = 8
    tokens: int = 256
    continuation: int = 32
    settings: tuple[Method, ...] = tuple(default_settings(bits=(16,)))
    drift: tuple[str, ...] = ("unrelated", "near-duplicates")
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.requests < 2:
            raise InputError("requests", self.requests, "needs at least two to plan on")
        if Method("exact") not in self.settings:
            raise InputError("settings", len(self.settings), "must have exact sharing alone among them")

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self) | {
            "goals": list(self.goals),
            "settings": [method.to_json() for method in self.settings],
            "drift": list(self.drift),
            "layers": None if self.layers is None else list(self.layers),
        }

    def session(self, loaded: LoadedModel, prompts: PromptSet) -> QualitySession:
        """A session on these requests."""
        return QualitySession(
            loaded,
            prompts,
            continuation=self.continuation,
            layers=self.layers,
            batch_size=self.requests,
        )

    def draw(self, loaded: LoadedModel, workload: str, seed: int) -> tuple[PromptSet, PromptSet]:
        """Requests to plan on, and others; raises InputError where the workload has too few."""
        made = build_prompts(
            workload,
            loaded.tokenizer,
            requests=2 * self.requests,
            tokens=self.tokens + self.continuation + 1,
            seed=seed,
        )
        halves = (made.prompts[: self.requests], made.prompts[self.requests :])
        first, second = (PromptSet(made.name, half, made.seed, made.origin) for half in halves)
        return first, second


def promise_cell(
    loaded: LoadedModel,
    workload: str,
    seed: int,
    settings: PromiseSettings,
    held_out: HeldOut,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Plan on the calibration requests of a workload and seed, and measure on the held-out ones.

    Args:
        loaded: the model.
        workload: name of a built-in workload.
        seed: of both draws.
        settings: of the experiment.
        held_out: gives the held-out requests of a workload and seed.
        progress: called as work goes on.

    Returns:
        A row, JSON data: what was predicted and measured for ``max_kl``, of the plan and of one that goes by
        the measured mean alone (``by_mean``, without tolerance), the rival, the curves of plans and of single
        settings with BD-rate, the predicted sensitivity and what the plan gave on other workloads.

    Raises InputError for a workload that does not suffice or that the model cannot be measured on.
    """
    start = time.monotonic()
    calibration, _ = settings.draw(loaded, workload, seed)
    planner = Planner(
        settings.session(loaded, calibration), settings=list(settings.settings), progress=progress
    )
    plan = planner.plan("max_kl", settings.max_kl, tolerance=settings.tolerance)
    planned = time.monotonic()
    chosen = {("mean", settings.max_kl): planner.choose("max_kl", settings.max_kl, tolerance=None)}
    for goal in settings.goals:
        if goal != settings.max_kl:
            chosen["band", goal] = planner.choose("max_kl", goal, tolerance=settings.tolerance)
    others = {key: planner.trials.methods(allocation) for key, allocation in chosen.items()}
    by_mean = others["mean", settings.max_kl]
    compared = [
        (foreseen_kl(planner.measurements, plan.settings), planner.measurements(plan.settings)),
        (planner.measurements(by_mean).kl, planner.measurements(by_mean)),
    ]
    del planner
    if progress is not None:
        progress("measuring held-out requests", 0.0)
    measure = held_out(workload, seed)
    measured = measure(plan.settings)
    largest = max((settings.max_kl, *settings.goals))
    uniform = uniform_curve(measure, settings.settings, refine_at=measured.mean_kl, beyond=largest)
    curve = [
        {"goal": goal, "by": by, **_point(measure(methods))}
        for (by, goal), methods in {("band", settings.max_kl): plan.settings, **others}.items()
    ]
    row: dict[str, Any] = {
        "workload": workload,
        "seed": seed,
        "max_kl": settings.max_kl,
        "tolerance": settings.tolerance,
        "plan": _compared(*compared[0], measured),
        "by_mean": _compared(*compared[1], measure(by_mean)),
        "kl_kept": measured.mean_kl <= settings.tolerance * settings.max_kl,
        "hindsight": _rival(uniform, measured.mean_kl, measured.saving),
        "hindsight_within_goal": _rival(uniform, settings.max_kl, measured.saving),
        "plans": curve,
        "uniform": [
            {"criterion": method.criterion, "threshold": method.threshold, "method": method.name}
            | _point(found)
            for method, found in uniform
        ],
        "bd_rate": _bd_rate([found for _, found in uniform], curve),
        "sensitivity": plan.predicted["sensitivity"],
        "seconds_to_plan": planned - start,
    }
    row["drift"] = []
    for other in settings.drift:
        if other != workload:
            row["drift"].append({"to": other} | _point(held_out(other, seed)(plan.settings)))
    row["seconds"] = time.monotonic() - start
    return row


def uniform_curve(
    measure: Measurements, settings: Sequence[Method], *, refine_at: float, beyond: float
) -> list[tuple[Method, Measured]]:
    """Single settings for all layers on a session, and thresholds between them where a limit falls.

    Every family of settings that differ in their threshold alone is walked from the strictest on, until the
    divergence exceeds ``beyond``; then the step in which it exceeds ``refine_at`` is halved twice, so that a
    rival chosen by it is not held back by the grid.

    Args:
        measure: of the requests.
        settings: what all layers may take.
        refine_at: divergence in nats.
        beyond: in nats.
    """
    families: dict[Method, list[Method]] = {}
    for method in settings:
        families.setdefault(replace(method, threshold=1.0), []).append(method)
    found: list[tuple[Method, Measured]] = []
    for family in families.values():
        walked: list[tuple[Method, Measured]] = []
        for method in sorted(family, key=lambda method: -method.threshold):
            walked.append((method, measure.uniform(method)))
            if walked[-1][1].mean_kl > beyond:
                break
        for _ in range(_REFINEMENTS):
            index = next((n for n, (_, m) in enumerate(walked) if m.mean_kl > refine_at), 0)
            if index == 0:
                break
            strict, loose = walked[index - 1][0], walked[index][0]
            between = replace(strict, threshold=(strict.threshold + loose.threshold) / 2)
            walked.insert(index, (between, measure.uniform(between)))
        found += walked
    return found


def _point(measured: Measured) -> dict[str, float]:
    return {"kl": measured.mean_kl, "saving": measured.saving, "compression": measured.compression}


def _compared(foreseen: FloatArray, expected: Measured, measured: Measured) -> dict[str, Any]:
    """What calibration leads to expect of a plan beside what other requests gave."""
    kl, low, high = mean_with_band(foreseen)
    return {
        "kl_predicted": kl,
        "kl_low": low,
        "kl_high": high,
        "kl_measured": measured.mean_kl,
        "compression_predicted": expected.compression,
        "compression_measured": measured.compression,
        "saving_predicted": expected.saving,
        "saving_measured": measured.saving,
    }


def _rival(uniform: Sequence[tuple[Method, Measured]], limit: float, saving: float) -> dict[str, Any]:
    """The single setting that saves most within a divergence, and whether a saving comes near to it."""
    within = [item for item in uniform if item[1].mean_kl <= limit]
    method, best = max(within, key=lambda item: item[1].saving)
    # Where sharing costs more than it saves, 90 % of a loss would be easier to reach than the loss.
    enough = KEPT_SAVING * best.saving if best.saving > 0 else best.saving
    return {
        "method": method.name,
        "criterion": method.criterion,
        "threshold": method.threshold,
        **_point(best),
        "share": saving / best.saving if best.saving > 0 else None,
        "kept": saving >= enough,
    }


def _bd_rate(uniform: Sequence[Measured], plans: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Change of stored bytes by plans against single settings at equal divergence, in percent."""

    def curve(name: str, points: Sequence[tuple[float, float]]) -> RateDistortionCurve:
        share, kl = zip(*points, strict=True)
        return RateDistortionCurve(name, share, kl)  # type: ignore[arg-type]

    anchor = [(1 - found.saving, found.mean_kl) for found in uniform]
    test = [(1 - point["saving"], point["kl"]) for point in plans]
    try:
        delta = bd_rate(curve("single settings", anchor), curve("plans", test))
    except InputError as error:
        return {"percent": None, "kl_low": None, "kl_high": None, "overlap": None, "reason": str(error)}
    return {
        "percent": delta.value,
        "kl_low": delta.low,
        "kl_high": delta.high,
        "overlap": delta.overlap,
        "reason": None,
    }
