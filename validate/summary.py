"""How far predictions lie from measurements, per workload and predictor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["ALL", "HIGHEST_SHARE", "LOWEST_COMPRESSION", "abs_log_ratio", "summarise", "within_band"]

ALL = "all"
"""Name of the workload that stands for all rows together."""

LOWEST_COMPRESSION = 1.05
"""Rows that compress less say little: any predictor of no fusion is right there."""

HIGHEST_SHARE = 0.9
"""Rows that compress beyond this share of the number of requests say as little: everything fuses."""


def abs_log_ratio(row: Mapping[str, Any]) -> float | None:
    """|ln(predicted / measured compression)| of a row, None where its measured compression is near an end.

    Near an end is below 1.05 or above 0.9 × requests.
    """
    measured = row["compression_measured"]
    if not LOWEST_COMPRESSION <= measured <= HIGHEST_SHARE * row["requests"]:
        return None
    return abs(float(np.log(row["compression_predicted"] / measured)))


def within_band(row: Mapping[str, Any]) -> bool | None:
    """Whether a row's measured compression lies within its predicted band, None where it has none."""
    low, high = row.get("compression_predicted_low"), row.get("compression_predicted_high")
    if low is None or high is None:
        return None
    # Ends that were computed through another division may differ from the measurement in the last digit.
    measured = row["compression_measured"]
    return bool(low * (1 - 1e-9) <= measured <= high * (1 + 1e-9))


def summarise(
    rows: Iterable[Mapping[str, Any]], held_out_errors: Mapping[str, float | None] | None = None
) -> list[dict[str, Any]]:
    """One entry per workload and predictor, then one per predictor for workload ``"all"``.

    Args:
        rows: with ``workload``, ``predictor``, ``requests``, ``compression_measured`` and
            ``compression_predicted``, and ``compression_predicted_low`` and ``_high`` where there is a band.
        held_out_errors: mean error of each predictor within the calibration samples, by which one is
            chosen; None where it has no such error.

    Returns:
        Entries ``{workload, predictor, median_abs_log_ratio, p90_abs_log_ratio, rows, band_coverage}`` in
        order of first appearance; ``rows`` counts those with measured compression between 1.05 and 0.9 ×
        requests, and the two quantiles (linear interpolation) are None where there is none.
        ``band_coverage`` is the share of those rows, as far as they have a band, whose measured
        compression lies within it; None where none has. Entries over all workloads also say
        ``held_out_error`` and ``chosen``, true for the predictor of the smallest one, where
        ``held_out_errors`` are given: never by what is measured in ``rows``.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    bands: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        ratio, inside = abs_log_ratio(row), within_band(row)
        for workload in (row["workload"], ALL):
            key = (workload, row["predictor"])
            found = groups.setdefault(key, [])
            if ratio is not None:
                found.append(ratio)
                if inside is not None:
                    bands.setdefault(key, []).append(inside)
    ordered = sorted(groups.items(), key=lambda item: item[0][0] == ALL)
    entries: list[dict[str, Any]] = [
        {
            "workload": workload,
            "predictor": predictor,
            "median_abs_log_ratio": float(np.median(ratios)) if ratios else None,
            "p90_abs_log_ratio": float(np.quantile(ratios, 0.9)) if ratios else None,
            "rows": len(ratios),
            "band_coverage": float(np.mean(bands[key])) if (key := (workload, predictor)) in bands else None,
        }
        for (workload, predictor), ratios in ordered
    ]
    if held_out_errors is not None:
        known = {name: error for name, error in held_out_errors.items() if error is not None}
        best = min(known, key=lambda name: known[name]) if known else None
        for entry in entries:
            if entry["workload"] == ALL:
                entry["held_out_error"] = held_out_errors.get(entry["predictor"])
                entry["chosen"] = entry["predictor"] == best
    return entries
