"""What figures need of the rows of a suite, and a record small enough to be kept under version control."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.suite_record import Columns, SuiteRecord

__all__ = [
    "band_errors",
    "banded_predictors",
    "chosen_predictor",
    "counted",
    "digest",
    "layer_errors",
]

POINTS = 200
"""Settings per split that a digest keeps rows of: a scatter of more is a blot."""

_KEY = ("workload", "n", "m", "seed", "layer", "mode", "variant", "criterion", "threshold")
"""Fields that tell settings apart."""

_KEPT = (
    *_KEY,
    "calibrated_on",
    "predictor",
    "counts",
    "compression_measured",
    "compression_predicted",
    "compression_predicted_low",
    "compression_predicted_high",
    "abs_log_ratio",
    "noise_draw",
    "sample_draw",
)
_DIGITS = 4


def digest(record: SuiteRecord, points: int = POINTS, seed: int = 0) -> SuiteRecord:
    """The record with a sample of its rows, and what figures sum up of all of them.

    Kept are rows that the summary counts, of the first predictor, the chosen one and one that gives bands, at
    the same settings drawn at random, ``points`` for each split. ``layers`` and ``bands`` are computed from
    all rows. A digest of a digest is the same digest.

    Test: tests/ratedist/test_suite_digest.py::test_a_digest_keeps_what_the_figures_show.
    """
    if record.sampled_from is not None or not record.columns:
        return record
    shown = list(dict.fromkeys([*_predictors(record)[:1], *banded_predictors(record)[-1:]]))
    if (chosen := chosen_predictor(record)) not in shown:
        shown.append(chosen)
    rows = counted(record.columns)
    names = [name for name in _KEPT if name in rows]
    keys = list(zip(*(rows[name].tolist() for name in _KEY if name in rows), strict=True))
    rng = np.random.default_rng(seed)
    drawn: set[tuple[Any, ...]] = set()
    for n, m in sorted(set(zip(rows["n"].tolist(), rows["m"].tolist(), strict=True))):
        here = sorted({keys[i] for i in np.flatnonzero((rows["n"] == n) & (rows["m"] == m))})
        picked = rng.choice(len(here), min(points, len(here)), replace=False)
        drawn |= {here[number] for number in picked.tolist()}
    keep = np.isin(rows["predictor"].astype(str), shown) & np.array([key in drawn for key in keys], bool)
    return dataclasses.replace(
        record,
        columns={name: _rounded(rows[name][keep]) for name in names},
        layers=layer_errors(record, chosen),
        bands=[entry for name in banded_predictors(record)[-1:] for entry in band_errors(record, name)]
        if chosen not in banded_predictors(record)
        else band_errors(record, chosen),
        sampled_from=len(record.columns["n"]),
    )


def counted(columns: Columns, **wanted: Any) -> Columns:
    """The rows that the summary counts, of them those whose fields have the wanted values; may be empty.

    Rows that were calibrated on another workload are not among them.
    """
    keep: NDArray[np.bool_] = (columns["counts"] > 0) & (columns["calibrated_on"] == columns["workload"])
    for name, value in wanted.items():
        keep = keep & (columns[name] == value)
    return {name: column[keep] for name, column in columns.items()}


def chosen_predictor(record: SuiteRecord) -> str:
    """The predictor that was chosen on calibration requests, else the last of the record."""
    chosen = [entry["predictor"] for entry in record.summary if entry.get("chosen")]
    return chosen[0] if chosen else _predictors(record)[-1]


def banded_predictors(record: SuiteRecord) -> list[str]:
    """Predictors of the record that give bands, as far as its rows show."""
    low = record.columns.get("compression_predicted_low")
    if low is None:
        return []
    known = np.isfinite(low)
    return [name for name in _predictors(record) if (known & (record.columns["predictor"] == name)).any()]


def layer_errors(record: SuiteRecord, predictor: str) -> list[dict[str, Any]]:
    """Medians over the rows that count, per split, layer and threshold: ``error`` and ``noise``.

    The record's own where it is a digest; entries are ``{predictor, n, m, layer, threshold, rows, error,
    noise}``, None where no row has the number.
    """
    if record.sampled_from is not None:
        return [entry for entry in record.layers if entry["predictor"] == predictor]
    rows = counted(record.columns, predictor=predictor)
    cells: dict[tuple[Any, ...], list[int]] = {}
    for number, cell in enumerate(
        zip(*(rows[f].tolist() for f in ("n", "m", "layer", "threshold")), strict=True)
    ):
        cells.setdefault(cell, []).append(number)
    return [
        {"predictor": predictor, "n": n, "m": m, "layer": layer, "threshold": threshold, "rows": len(here)}
        | {"error": _median(rows["abs_log_ratio"][here]), "noise": _median(rows["noise_draw"][here])}
        for (n, m, layer, threshold), here in sorted(cells.items())
    ]


def band_errors(record: SuiteRecord, predictor: str) -> list[dict[str, Any]]:
    """How often a predictor's bands hold and how wide they are, per split and workload, and for "all".

    The record's own where it is a digest; entries are ``{predictor, n, m, workload, rows, coverage,
    half_width, noise}``: share of rows within the band; median of half its width in ln(compression); 90 %
    quantile of the noise of measuring, None where unknown.
    """
    if record.sampled_from is not None:
        return [entry for entry in record.bands if entry["predictor"] == predictor]
    rows = counted(record.columns, predictor=predictor)
    low, high = rows["compression_predicted_low"], rows["compression_predicted_high"]
    known = np.isfinite(low) & np.isfinite(high)
    measured = rows["compression_measured"]
    held = (measured >= low * (1 - 1e-9)) & (measured <= high * (1 + 1e-9))
    found = []
    for n, m in sorted(set(zip(rows["n"].tolist(), rows["m"].tolist(), strict=True))):
        for workload in [*dict.fromkeys(rows["workload"].tolist()), "all"]:
            here = known & (rows["n"] == n) & (rows["m"] == m)
            if workload != "all":
                here &= rows["workload"] == workload
            if not here.any():
                continue
            noise = rows["noise_draw"][here]
            noise = noise[np.isfinite(noise)]
            found.append(
                {
                    "predictor": predictor,
                    "n": n,
                    "m": m,
                    "workload": workload,
                    "rows": int(here.sum()),
                    "coverage": float(held[here].mean()),
                    "half_width": float(np.median(np.log(high[here] / low[here])) / 2),
                    "noise": float(np.quantile(noise, 0.9)) if len(noise) else None,
                }
            )
    return found


def _predictors(record: SuiteRecord) -> list[str]:
    if record.columns:
        return list(dict.fromkeys(record.columns["predictor"].tolist()))
    return list(dict.fromkeys(entry["predictor"] for entry in record.summary))


def _median(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _rounded(column: NDArray[Any]) -> NDArray[Any]:
    if column.dtype != np.float64:
        return column
    return np.array([float(f"{value:.{_DIGITS}g}") for value in column.tolist()])
