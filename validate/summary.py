"""How far predictions lie from measurements, per workload and predictor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["ALL", "HIGHEST_SHARE", "LOWEST_COMPRESSION", "abs_log_ratio", "summarise"]

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


def summarise(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per workload and predictor, then one per predictor for workload ``"all"``.

    Args:
        rows: with ``workload``, ``predictor``, ``requests``, ``compression_measured`` and
            ``compression_predicted``.

    Returns:
        Entries ``{workload, predictor, median_abs_log_ratio, p90_abs_log_ratio, rows}`` in order of first
        appearance; ``rows`` counts those with measured compression between 1.05 and 0.9 × requests, and
        the two quantiles (linear interpolation) are None where there is none.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        ratio = abs_log_ratio(row)
        for workload in (row["workload"], ALL):
            found = groups.setdefault((workload, row["predictor"]), [])
            if ratio is not None:
                found.append(ratio)
    ordered = sorted(groups.items(), key=lambda item: item[0][0] == ALL)
    return [
        {
            "workload": workload,
            "predictor": predictor,
            "median_abs_log_ratio": float(np.median(ratios)) if ratios else None,
            "p90_abs_log_ratio": float(np.quantile(ratios, 0.9)) if ratios else None,
            "rows": len(ratios),
        }
        for (workload, predictor), ratios in ordered
    ]
