"""The rows of a suite's record, from its finished cells."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ratedist.errors import InputError
from ratedist.predictors import HeldOutError, best_of
from ratedist.suite_record import Columns, as_column
from ratedist.validate.compare import Split, cell_rows
from ratedist.validate.measure import runtime_for
from ratedist.validate.suite.folder import CellKey, SuiteFolder
from ratedist.validate.suite.noise import noise_floor, sample_factor
from ratedist.validate.suite.protocol import layer_cells
from ratedist.validate.suite.run import LayerWork
from ratedist.validate.suite.tasks import Suite
from ratedist.validate.summary import HIGHEST_SHARE, LOWEST_COMPRESSION

__all__ = ["Choice", "choose", "collect"]


@dataclass(frozen=True)
class Choice:
    """Which predictor was chosen, and by what.

    Attributes:
        chosen: name of the one with the smallest error; None where there were too few requests to tell.
        errors: by name, the median of |ln(predicted kept / kept)| within the calibration requests over all
            splits, layers and thresholds; None for a predictor that failed in one of them.
        seconds: processor seconds that it took in all.
    """

    chosen: str | None
    errors: dict[str, float | None]
    seconds: float


def choose(suite: Suite, work: Sequence[LayerWork], folder: SuiteFolder) -> Choice:
    """Choose a predictor by its errors on calibration requests it was not shown, over all finished cells.

    Nothing that was measured on other requests is looked at (``ratedist.predictors.held_out_errors``).
    """
    found: dict[str, list[float]] = {name: [] for name in suite.predictors}
    failed: set[str] = set()
    seconds = 0.0
    for item in work:
        for key in item.splits:
            if key.source is not None or not folder.has(key):
                continue
            cell = folder.read(key)
            seconds += cell["choice_seconds"]
            for result in cell["results"]:
                for name, errors in result["held_out"].items():
                    if errors is None:
                        failed.add(name)
                    else:
                        found[name] += errors
    tried = [
        HeldOutError(name, np.array(errors), 0.0)
        for name, errors in found.items()
        if errors and name not in failed
    ]
    scores = {error.predictor: error.score for error in tried}
    return Choice(
        best_of(tried) if tried else None, {name: scores.get(name) for name in suite.predictors}, seconds
    )


def collect(suite: Suite, work: Sequence[LayerWork], folder: SuiteFolder) -> Columns:
    """The rows of all finished cells.

    Raises InputError where no split is finished, and RatedistError where a cell's file is damaged.
    """
    parts: list[Columns] = []
    for rows in _groups(suite, work, folder):
        names = rows[0].keys()
        parts.append({name: as_column([row[name] for row in rows]) for name in names})
    if not parts:
        raise InputError("out", str(folder.path), "holds no finished cell; run the suite first")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    measured = columns["compression_measured"]
    columns["abs_log_ratio"] = np.abs(np.log(columns["compression_predicted"] / measured))
    counts = (measured >= LOWEST_COMPRESSION) & (measured <= HIGHEST_SHARE * columns["units"])
    columns["counts"] = counts.astype(np.int64)
    return columns


def _groups(suite: Suite, work: Sequence[LayerWork], folder: SuiteFolder) -> Iterator[list[dict[str, Any]]]:
    """Rows of one workload, split and seed at a time."""
    runtime = runtime_for("cpu")
    by_workload: dict[str, list[LayerWork]] = {}
    for item in work:
        by_workload.setdefault(item.capture.manifest.workload, []).append(item)
    for workload, items in by_workload.items():
        noise = {key: _noise(folder.read(key)) for item in items for key in item.noise if folder.has(key)}
        sizes = sorted({size for item in items for size in item.sizes})
        for size in sizes:
            n, m, source, mode = size
            for number, seed in enumerate(suite.seeds):
                other = None if source == workload else source
                keys = [
                    key
                    for item in items
                    if size in item.sizes
                    and folder.has(key := CellKey(workload, item.layer, m, n, seed, other, mode))
                ]
                cells = {key.layer: folder.read(key) for key in keys}
                if not cells:
                    continue
                plan = suite.plan(seed)
                found = {layer: layer_cells(cell, plan) for layer, cell in cells.items()}
                one = next(iter(cells.values()))
                rows = cell_rows(
                    items[0].capture.manifest,
                    Split(tuple(one["calibration"]), tuple(one["held_out"])),
                    len(cells),
                    [cell for layer_found, _ in found.values() for cell in layer_found],
                    plan,
                    runtime,
                )
                results = {
                    (layer, result["variant"], result["criterion"]): result["predicted"]
                    for layer, cell in cells.items()
                    for result in cell["results"]
                }
                for row in rows:
                    cell = cells[row["layer"]]
                    place = (row["variant"], row["criterion"])
                    spread = noise.get(CellKey(workload, row["layer"], m, mode=mode), {}).get(
                        (*place, row["threshold"]), _NO_NOISE
                    )
                    noise_draw = spread.draw(number + len(suite.seeds) * row["layer"])
                    predicted = results[(row["layer"], *place)][row["predictor"]]
                    row |= {
                        "mode": mode,
                        "units": cell["units"],
                        "calibrated_on": source,
                        "n": n,
                        "m": m,
                        "seed": seed,
                        "noise_floor": spread.floor,
                        "noise_draw": noise_draw,
                        "sample_draw": noise_draw * spread.factor(n, m) if other is None else math.nan,
                        "calibration_pairs": cell["calibration_pairs"],
                        "calibration_bytes": cell["calibration_bytes"],
                        "calibration_seconds": predicted["seconds"],
                        "refused": predicted.get("refused", ""),
                    }
                yield rows


@dataclass(frozen=True)
class _Noise:
    """Deviations at one setting, by drawing of requests and by order alone."""

    deviations: tuple[float, ...]
    by_order: tuple[float, ...]

    @property
    def floor(self) -> float:
        return noise_floor(self.deviations) if self.deviations else math.nan

    def draw(self, number: int) -> float:
        """One of the deviations: another one in every seed and layer, as far as there are."""
        return self.deviations[number % len(self.deviations)] if self.deviations else math.nan

    def factor(self, n: int, m: int) -> float:
        if not self.by_order:
            return math.nan
        return sample_factor(n, m, self.floor**2, noise_floor(self.by_order) ** 2)


_NO_NOISE = _Noise((), ())


def _noise(cell: Mapping[str, Any]) -> dict[tuple[str, str, float], _Noise]:
    return {
        (result["variant"], result["criterion"], result["threshold"]): _Noise(
            tuple(result["deviations"]),
            tuple(result.get("order_deviations", ())),  # cells of before orders were told apart have none
        )
        for result in cell["results"]
    }
