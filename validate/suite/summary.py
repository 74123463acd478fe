"""What a suite's rows say: errors beside the noise floor, and goals met or missed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.records import provenance
from ratedist.suite_record import Columns, SuiteRecord
from ratedist.validate.suite.folder import SuiteFolder
from ratedist.validate.suite.over_splits import (
    split_weights,
    weighted_mean_interval,
    weighted_quantile_interval,
)
from ratedist.validate.suite.rows import Choice, choose, collect
from ratedist.validate.suite.run import LayerWork, fingerprint
from ratedist.validate.suite.tasks import Suite
from ratedist.validate.suite.words import covered, describe, is_whole, transferred, unseen
from ratedist.validate.summary import ALL

__all__ = [
    "COVERAGE",
    "GOALS",
    "GOAL_SPLITS",
    "NOISE_FACTOR",
    "goals_of",
    "make_record",
    "summarise_suite",
    "summarise_transfer",
]

GOALS = {"median": 0.05, "p90": 0.15}
NOISE_FACTOR = 1.25
COVERAGE = (0.85, 0.95)
"""Asked of the chosen predictor over all workloads: the median and the 90 % quantile of
|ln(predicted/measured)| at most this, or at most so many times the same quantile of the noise where that is
larger; and bands that hold the measurement in this share of the rows."""

QUANTILES = {"median": 0.5, "p90": 0.9}

GOAL_SPLITS = ((16, 16), (16, 64))
"""Splits that the goals are about."""

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def make_record(
    suite: Suite,
    work: Sequence[LayerWork],
    folder: SuiteFolder,
    *,
    command: list[str] | None = None,
) -> SuiteRecord:
    """The record of all finished cells of a suite.

    Args:
        suite: that was run.
        work: its cells, finished or not.
        folder: that holds the finished ones.
        command: what the record names as the command that made it; this process's own where None.

    Raises InputError where no split is finished.
    """
    columns = collect(suite, work, folder)
    choice = choose(suite, work, folder)
    chosen = choice.chosen
    summary = summarise_suite(columns, choice)
    goals = goals_of(summary)
    transfer = summarise_transfer(columns)
    keys = [key for item in work for key in (*item.noise, *item.splits)]
    finished = sum(folder.has(key) for key in keys)
    checks = [
        check
        for item in work
        for key in item.splits
        if folder.has(key)
        for check in folder.read(key).get("rechecked", [])
    ]
    coverage = covered(work, suite, finished, len(keys), checks)
    return SuiteRecord(
        provenance=provenance(
            command,
            suite=suite.to_json(),
            captures=[
                {
                    "workload": manifest.workload,
                    "model": manifest.model,
                    "weights_hash": manifest.weights_hash,
                    "dtype": manifest.dtype,
                    "requests": manifest.requests,
                    "seed": manifest.seed,
                    "fingerprint": fingerprint(manifest),
                }
                for manifest in {id(item.capture): item.capture.manifest for item in work}.values()
            ],
            layers={
                workload: sorted({item.layer for item in work if item.capture.manifest.workload == workload})
                for workload in dict.fromkeys(item.capture.manifest.workload for item in work)
            },
            choice=asdict(choice),
            cells={"finished": finished, "all": len(keys)},
            rechecked={
                "fusions": len(checks),
                "other_kept": sum(check["kept"] != check["kept_looked_up"] for check in checks),
            },
        ),
        words=[*describe(summary, goals, chosen, coverage), *transferred(transfer, chosen), *unseen(columns)],
        goals=goals,
        summary=summary,
        columns=columns,
        transfer=transfer,
    )


def summarise_suite(columns: Columns, choice: Choice | None = None) -> list[dict[str, Any]]:
    """Errors by workload, split and predictor, then over all workloads, and there by variant and criterion.

    Args:
        columns: rows of a suite.
        choice: of a predictor, not by these errors.

    Returns:
        Entries with ``workload`` (``"all"`` for all), ``n``, ``m``, ``mode``, ``variant`` and ``criterion``
        (None for all), ``predictor``, and over the rows that count (measured compression between 1.05 and
        0.9 × the requests measured, or the chunks of one):

        - ``rows``, how many there are, and ``refused``, in how many of them the predictor gave nothing;
        - ``median_abs_log_ratio`` and ``p90_abs_log_ratio``; a refusal counts as infinitely wrong, and the
          quantile is None where it falls on one or where no row counts;
        - ``noise_median`` and ``noise_p90``, the same quantiles of ``noise_draw``: what a prediction would
          show that knew the workload exactly; ``median_over_noise`` and ``p90_over_noise``, the ratios;
        - ``sample_median`` and ``sample_p90``, the same of ``sample_draw``: what a prediction would show that
          is the best one from n requests for traffic of any kind;
        - ``band_coverage``, the share of rows whose band holds the measurement, of those that have one;
        - ``calibration_seconds``, the median per layer and criterion;
        - ``chosen`` and ``held_out_error``, the error it was chosen by, on rows over all workloads alone, and
          there ``over_splits``: 90 % intervals of ``median``, ``p90`` and ``coverage`` over other random
          splits (``ratedist.validate.suite.over_splits``), None where there is none.
    """
    columns = {
        name: column[columns["calibrated_on"] == columns["workload"]] for name, column in columns.items()
    }
    count = columns["counts"] > 0
    error = np.nan_to_num(columns["abs_log_ratio"], nan=np.inf)
    entries = []
    workloads = list(dict.fromkeys(columns["workload"].tolist()))
    predictors = list(dict.fromkeys(columns["predictor"].tolist()))
    sizes = sorted(set(zip(columns["n"].tolist(), columns["m"].tolist(), strict=True)))
    settings = dict.fromkeys(zip(columns["variant"].tolist(), columns["criterion"].tolist(), strict=True))
    modes = list(dict.fromkeys(columns["mode"].tolist()))
    groups: list[tuple[str, str | None, str | None, str | None]] = [
        (workload, None, None, None) for workload in [*workloads, ALL]
    ]
    if len(modes) > 1:
        groups += [(workload, mode, None, None) for mode in modes for workload in [*workloads, ALL]]
    if len(settings) > 1:
        groups += [(ALL, None, variant, criterion) for variant, criterion in settings]
    fields = ("workload", "mode", "variant", "criterion")
    at = {
        name: {value: columns[name] == value for value in dict.fromkeys(columns[name].tolist())}
        for name in (*fields, "predictor")
    }
    for n, m in sizes:
        of_size = (columns["n"] == n) & (columns["m"] == m)
        for group in groups:
            here = of_size.copy()
            for name, value in zip(fields, group, strict=True):
                if value is not None and value != ALL:
                    here &= at[name][value]
            for predictor in predictors:
                rows = here & at["predictor"][predictor]
                if not rows.any():
                    continue
                counted = rows & count
                entry = {
                    **dict(zip(fields, group, strict=True)),
                    "n": n,
                    "m": m,
                    "predictor": predictor,
                    **_figures(columns, counted, error),
                    "calibration_seconds": _finite(float(np.median(columns["calibration_seconds"][rows]))),
                }
                if group[0] == ALL:
                    entry["chosen"] = choice is not None and predictor == choice.chosen
                    entry["held_out_error"] = None if choice is None else choice.errors.get(predictor)
                    entry["over_splits"] = _over_splits(columns, counted, error)
                entries.append(entry)
    return entries


def summarise_transfer(columns: Columns) -> list[dict[str, Any]]:
    """Errors where one workload calibrates and another (or the same) is measured.

    Returns:
        Nothing where no row is transferred. Else entries ``{calibrated_on, workload, n, m, predictor, rows,
        refused, median_abs_log_ratio, p90_abs_log_ratio, noise_median, …}`` as ``summarise_suite`` has them,
        for the splits and layers in which predictions are transferred, own workload included.
    """
    moved = columns["calibrated_on"] != columns["workload"]
    if not moved.any():
        return []
    # Only layers and splits that were transferred: over others a workload's own errors do not compare.
    place = np.array(
        [f"{n} {m} {layer}" for n, m, layer in zip(columns["n"], columns["m"], columns["layer"], strict=True)]
    )
    shared = np.isin(place, np.unique(place[moved]))
    columns = {name: column[shared] for name, column in columns.items()}
    error = np.nan_to_num(columns["abs_log_ratio"], nan=np.inf)
    fields = ("calibrated_on", "workload", "n", "m", "predictor")
    keys = list(zip(*(columns[name].tolist() for name in fields), strict=True))
    rows_of: dict[tuple[Any, ...], list[int]] = {}
    for number, key in enumerate(keys):
        rows_of.setdefault(key, []).append(number)
    entries = []
    for key, numbers in rows_of.items():
        counted = np.zeros(len(keys), dtype=bool)
        counted[numbers] = columns["counts"][numbers] > 0
        entries.append({**dict(zip(fields, key, strict=True)), **_figures(columns, counted, error)})
    return entries


def goals_of(summary: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether each predictor meets each goal, at the splits that the goals are about.

    Returns:
        Entries with ``predictor``, ``chosen``, ``n``, ``m``, ``goal`` (``"median"``, ``"p90"`` or
        ``"coverage"``), ``value``, ``limit`` (a pair for coverage), ``met``, ``missed_by`` (0 where met; the
        difference to the limit; None where there is no value) and ``rows``. What cannot be judged, for
        want of rows or of bands, is not met. Errors have two fields more: ``split_half_limit`` is the limit
        with √2 times the noise, which is what two disjoint halves differ by, so what a prediction would show
        that *is* the measurement of m other requests; ``met_against_split_half`` says whether it is met; and
        ``sample``, what the best prediction from n requests would show. ``over_splits`` is the interval of
        the value over other random splits.
    """
    goals = []
    for entry in summary:
        if entry["workload"] != ALL or not is_whole(entry) or (entry["n"], entry["m"]) not in GOAL_SPLITS:
            continue
        common = {name: entry[name] for name in ("predictor", "chosen", "n", "m", "rows")}
        for goal in GOALS:
            value, noise = entry[f"{goal}_abs_log_ratio"], entry[f"noise_{goal}"]
            limit = max(GOALS[goal], 0.0 if noise is None else NOISE_FACTOR * noise)
            missed = None if value is None else max(0.0, value - limit)
            halves = max(GOALS[goal], 0.0 if noise is None else NOISE_FACTOR * math.sqrt(2) * noise)
            goals.append(
                {
                    **common,
                    "goal": goal,
                    "value": value,
                    "limit": limit,
                    "missed_by": missed,
                    "split_half_limit": halves,
                    "met_against_split_half": value is not None and value <= halves,
                    "sample": entry[f"sample_{goal}"],
                    "over_splits": entry["over_splits"][goal],
                }
            )
        value, (low, high) = entry["band_coverage"], COVERAGE
        missed = None if value is None else max(0.0, low - value, value - high)
        goals.append(
            {
                **common,
                "goal": "coverage",
                "value": value,
                "limit": [low, high],
                "missed_by": missed,
                "over_splits": entry["over_splits"]["coverage"],
            }
        )
    return [{**goal, "met": goal["missed_by"] == 0.0} for goal in goals]


def _figures(columns: Columns, counted: BoolArray, error: FloatArray) -> dict[str, Any]:
    """Figures over the rows that count, see ``summarise_suite``."""
    errors = error[counted]
    noise, sample = (_known(columns[f"{name}_draw"][counted]) for name in ("noise", "sample"))
    figures: dict[str, Any] = {"rows": int(counted.sum()), "refused": int(np.isinf(errors).sum())}
    for name, q in QUANTILES.items():
        value, floor = _quantile(errors, q), _quantile(noise, q)
        figures[f"{name}_abs_log_ratio"] = value
        figures[f"noise_{name}"] = floor
        figures[f"{name}_over_noise"] = value / floor if value is not None and floor else None
        figures[f"sample_{name}"] = _quantile(sample, q)
    _, held = _bands(columns, counted)
    figures["band_coverage"] = float(held.mean()) if held.size else None
    return figures


def _bands(columns: Columns, counted: BoolArray) -> tuple[BoolArray, BoolArray]:
    """Which of the rows that count have a band, and of those, whether it holds the measurement."""
    low, high = (columns.get(f"compression_predicted_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return np.zeros_like(counted), np.zeros(0, dtype=bool)
    banded = counted & np.isfinite(low) & np.isfinite(high)
    measured = columns["compression_measured"]
    # Ends that equal the measurement hold it, rounding aside.
    held = (measured >= low * (1 - 1e-9)) & (measured <= high * (1 + 1e-9))
    return banded, held[banded]


def _over_splits(columns: Columns, counted: BoolArray, error: FloatArray) -> dict[str, list[float] | None]:
    """Intervals over other splits, see ``summarise_suite``."""
    found: dict[str, list[float] | None] = dict.fromkeys((*QUANTILES, "coverage"))
    if (
        drawn := split_weights(columns["workload"][counted].tolist(), columns["seed"][counted].tolist())
    ) is None:
        return found
    split, weights = drawn
    for name, q in QUANTILES.items():
        found[name] = weighted_quantile_interval(error[counted], split, weights, q)
    banded, held = _bands(columns, counted)
    drawn = split_weights(columns["workload"][banded].tolist(), columns["seed"][banded].tolist())
    if drawn is not None:
        found["coverage"] = weighted_mean_interval(held.astype(np.float64), *drawn)
    return found


def _known(values: FloatArray) -> FloatArray:
    return values[np.isfinite(values)]


def _quantile(values: FloatArray, q: float) -> float | None:
    """Quantile by linear interpolation; None without values, or where it falls on an infinite one."""
    if len(values) == 0:
        return None
    ordered = np.sort(values)
    place = q * (len(ordered) - 1)
    if not math.isfinite(ordered[math.ceil(place)]):
        return None
    return float(np.quantile(ordered[np.isfinite(ordered)], place / max(1, np.isfinite(ordered).sum() - 1)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
