"""Every recursion beside its Monte Carlo at random settings: the table of the theory page.

Two kinds of simulation, named in each row:

- ``process``: the point process itself (``chains``, ``marked``, ``graph``). Its mean is what the recursion
  approximates by moments, so the gap must vanish within the standard error. With a hard core it samples the
  process defined by the same three numbers of the geometry.
- ``vectors``: uniform directions fused by their actual cosines (``directions``). Here the gap shows what the
  model leaves out; it is reported in per cent and need not vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist._arguments import whole_number
from ratedist.fusion.centroid import centroid
from ratedist.fusion.components import components
from ratedist.fusion.hardcore import HardCore
from ratedist.fusion.leader import leader
from ratedist.fusion.marked import leader_marked, tree_marked
from ratedist.fusion.tree import tree
from ratedist.montecarlo.chains import simulate_centroid, simulate_leader, simulate_tree
from ratedist.montecarlo.directions import simulate_directions
from ratedist.montecarlo.graph import simulate_components
from ratedist.montecarlo.marked import simulate_marked
from ratedist.montecarlo.sample import Estimate, RunSample
from ratedist.similarity.base import SimilarityLaw
from ratedist.similarity.gaussian import Gaussian
from ratedist.similarity.spherical import Spherical

__all__ = ["Setting", "agreement_rows", "random_settings", "summarise", "vector_rows"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MOST_BLOCKS = 1500
# Up to this chance of an exceedance the process with a hard core is compared; above, two or three blocks
# cover everything and moments say little.
_HARD_CORE_CHANCE = 0.15


@dataclass(frozen=True)
class Setting:
    """One fusion problem: a law, units and a threshold."""

    law: SimilarityLaw
    units: IntArray
    threshold: float

    @property
    def chance(self) -> float:
        """F̄(τ)."""
        return float(self.law.sf(self.threshold))

    def describe(self) -> dict[str, Any]:
        """Columns that name the setting."""
        return {
            "law": repr(self.law),
            "units": int(self.units.size),
            "blocks": int(self.units.sum()),
            "threshold": self.threshold,
            "chance": self.chance,
        }


def random_settings(count: int, rng: np.random.Generator) -> Iterator[Setting]:
    """Random laws, units of equal and of unequal lengths, and thresholds.

    Exceedance chances are spread evenly in the logarithm from 0.001 to 0.5.
    """
    for index in range(whole_number("count", count, low=1)):
        law: SimilarityLaw = Spherical(float(rng.integers(3, 129)))
        if index % 3 == 2:
            law = Gaussian(float(rng.uniform(0.0, 0.6)), float(rng.uniform(0.03, 0.15)))
        number = int(np.exp(rng.uniform(np.log(2), np.log(100))))
        blocks = int(np.exp(rng.uniform(0, np.log(max(_MOST_BLOCKS / number, 1)))))
        units = np.full(number, max(blocks, 1))
        if index % 4 == 1:
            units = rng.integers(1, 2 * units + 1)
        chance = float(np.exp(rng.uniform(np.log(1e-3), np.log(0.5))))
        yield Setting(law, units, float(law.isf(chance)))


def agreement_rows(
    *,
    settings: int = 48,
    runs: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows of predicted beside simulated, one per setting, recursion and quantity; JSON-ready.

    A row has ``recursion, quantity, simulation, runs``, the setting (one block at a time draws units of its
    own for it, the hard core a sphere), ``predicted, simulated, standard_error,
    z``, for kept blocks ``std_predicted, std_simulated`` and the share of runs within the 90 % band
    (``coverage``, None where the simulated standard deviation is below 2 and whole numbers are too coarse).
    The centroid's error is a model and has no ``z``.

    Args:
        settings: random settings.
        runs: Monte Carlo runs of each.
        seed: of the random generator.
        progress: called with settings done and settings in all.

    Raises:
        InputError: fewer than one setting or two runs.
    """
    whole_number("runs", runs, low=2)
    rng = np.random.default_rng(seed)
    rows = []
    for index, setting in enumerate(random_settings(settings, rng)):
        for recursion, at, predicted, sample in _compared(setting, runs, rng):
            rows += _rows(recursion, at.describe(), predicted, sample)
        rows += _marked_rows(runs, rng)
        if progress is not None:
            progress(index + 1, settings)
    return rows


def vector_rows(
    *,
    settings: int = 20,
    runs: int = 200,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows as of ``agreement_rows`` against real uniform directions, with and without the hard core."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(whole_number("settings", settings, low=1)):
        dim = int(np.exp(rng.uniform(np.log(4), np.log(64))))
        units = np.full(int(rng.integers(4, 65)), int(rng.integers(2, 33)))
        law = Spherical(dim)
        rate = float(np.exp(rng.uniform(np.log(0.5), np.log(12))))
        setting = Setting(law, units, float(law.isf(min(rate / units.sum(), 0.2))))
        for variant, recursion in (("leader", leader), ("tree", tree), ("centroid", centroid)):
            sample = simulate_directions(dim, units, setting.threshold, variant=variant, runs=runs, rng=rng)
            for hard_core in (True, False):
                predicted = recursion(law, units, setting.threshold, hard_core=hard_core)
                name = variant if hard_core else f"{variant}, no hard core"
                rows += _rows(name, setting.describe(), predicted, sample, simulation="vectors")
        if progress is not None:
            progress(index + 1, settings)
    return rows


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per recursion and quantity, in the order in which they first appear.

    ``settings``, ``worst_z`` and ``rms_z`` (None where the quantity is a model), ``median_gap_percent`` and
    ``worst_gap_percent``, and the least and largest ``coverage`` of the 90 % band with the ``covered``
    settings that have one.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["recursion"], row["quantity"]), []).append(row)
    summary = []
    for (recursion, quantity), group in groups.items():
        z = np.array([row["z"] for row in group if row["z"] is not None])
        gaps = np.abs([row["gap_percent"] for row in group])
        covered = [row["coverage"] for row in group if row.get("coverage") is not None]
        summary.append(
            {
                "recursion": recursion,
                "quantity": quantity,
                "simulation": group[0]["simulation"],
                "settings": len(group),
                "worst_z": float(np.abs(z).max()) if z.size else None,
                "rms_z": float(np.sqrt(np.mean(z**2))) if z.size else None,
                "median_gap_percent": float(np.median(gaps)),
                "worst_gap_percent": float(gaps.max()),
                "covered": len(covered),
                "coverage_low": min(covered, default=None),
                "coverage_high": max(covered, default=None),
            }
        )
    return summary


def _compared(
    setting: Setting, runs: int, rng: np.random.Generator
) -> Iterator[tuple[str, Setting, Any, RunSample]]:
    law, units, tau = setting.law, setting.units, setting.threshold
    at: dict[str, Any] = {"runs": runs, "rng": rng}
    plain = leader(law, units, tau, hard_core=False)
    yield "leader", setting, plain, simulate_leader(law, units, tau, **at)
    single = Setting(law, np.ones(int(rng.integers(20, 200)), dtype=np.int64), tau)
    alone = leader(law, single.units, tau, hard_core=False)
    yield "one block at a time", single, alone, simulate_leader(law, single.units, tau, **at)
    # Similarities are sampled around no common direction, so that they multiply as they stand.
    flat = tree(law, units, tau, hard_core=False, baseline=0.0)
    yield "tree", setting, flat, simulate_tree(law, units, tau, **at)
    moved = centroid(law, units, tau, hard_core=False)
    yield "centroid", setting, moved, simulate_centroid(law, units, tau, **at)
    joined = components(law, units, tau)
    yield "components", setting, joined, simulate_components(law, units, tau, **at)
    for name, recursion, simulate in (("leader", leader, simulate_leader), ("tree", tree, simulate_tree)):
        sphere = Spherical(float(rng.integers(4, 65)))
        level = float(sphere.isf(min(setting.chance, _HARD_CORE_CHANCE)))
        core = HardCore.spherical(sphere.dim, level)
        predicted = recursion(sphere, units, level, hard_core=core)
        sample = simulate(sphere, units, level, scores=False, hard_core=core, **at)
        yield f"{name}, hard core", Setting(sphere, units, level), predicted, sample


def _rows(
    recursion: str, setting: dict[str, Any], predicted: Any, sample: RunSample, simulation: str = "process"
) -> list[dict[str, Any]]:
    rows = []

    def add(quantity: str, value: float, estimate: Estimate, **more: Any) -> None:
        if not np.isfinite(value) or not np.isfinite(estimate.mean):
            return
        row = {
            "recursion": recursion,
            "quantity": quantity,
            "simulation": simulation,
            **setting,
            "runs": int(sample.kept.size),
            "predicted": value,
            "simulated": estimate.mean,
            "standard_error": estimate.standard_error,
            "z": estimate.z_score(value),
            "gap_percent": 100 * (value / estimate.mean - 1) if estimate.mean else 0.0,
        }
        rows.append(row | more)

    std = sample.std_kept()
    low, high = float(predicted.kept_low[0]), float(predicted.kept_high[0])
    add(
        "kept",
        float(predicted.kept[0]),
        sample.mean_kept(),
        std_predicted=float(predicted.kept_std[0]),
        std_simulated=std,
        coverage=sample.coverage(low, high) if std >= 2 else None,
    )
    if sample.direct_error2 is not None:
        add("direct_error2", float(predicted.direct_error2[0]), sample.mean_error2("direct"))
    if sample.final_error2 is not None and recursion.startswith("centroid"):
        add("final_error2", float(predicted.final_error2[0]), sample.mean_error2(), z=None)
    elif sample.final_error2 is not None and recursion.startswith("tree"):
        add("final_error2", float(predicted.final_error2[0]), sample.mean_error2())
    return rows


@dataclass(frozen=True)
class _MarkedAsOne:
    """A position-marked result at its only threshold, with the names of the homogeneous ones."""

    kept: FloatArray
    kept_std: FloatArray
    kept_low: FloatArray
    kept_high: FloatArray
    direct_error2: FloatArray


def _marked_rows(runs: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Random position-marked problems: most chance at equal positions, falling away from them."""
    positions = int(rng.integers(1, 9))
    requests = int(rng.integers(2, 41))
    lengths = np.full(requests, positions)
    if rng.random() < 0.5:
        lengths = rng.integers(1, positions + 1, requests)
    distance = np.abs(np.subtract.outer(np.arange(positions), np.arange(positions)))
    peak = float(rng.uniform(0.02, 0.7))
    chance = peak * np.exp(-distance / rng.uniform(0.3, 2.0))
    tau = 0.5
    grid = np.linspace(tau, 0.95, 8)
    exceedance = chance * ((1 - grid) / (1 - tau))[:, None, None] ** 2
    setting = {
        "law": f"{positions} positions, peak {peak:.3f}",
        "units": requests,
        "blocks": int(lengths.sum()),
        "threshold": tau,
        "chance": peak,
    }
    rows = []
    for variant, recursion in (("leader", leader_marked), ("tree", tree_marked)):
        result = recursion(exceedance, lengths, thresholds=[tau], scores=grid, spread=True)
        assert result.kept_std is not None
        low, high = result.band()
        predicted = _MarkedAsOne(
            result.total_kept, result.kept_std, low, high, result.mean_over_matches(lambda s: 2 - 2 * s)
        )
        sample = simulate_marked(exceedance, lengths, scores=grid, variant=variant, runs=runs, rng=rng)
        rows += _rows(f"position-marked {variant}", setting, predicted, sample)
    return rows
