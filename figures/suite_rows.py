"""Picking rows of a suite's record for a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.suite_record import Columns, SuiteRecord

__all__ = ["chosen_predictor", "counted", "predictors_of", "sizes_of", "split_label", "workloads_of"]


def counted(columns: Columns, **wanted: Any) -> Columns:
    """The rows that the summary counts, of them those whose fields have the wanted values; may be empty.

    Rows that were calibrated on another workload are not among them.
    """
    keep: NDArray[np.bool_] = (columns["counts"] > 0) & (columns["calibrated_on"] == columns["workload"])
    for name, value in wanted.items():
        keep = keep & (columns[name] == value)
    return {name: column[keep] for name, column in columns.items()}


def sizes_of(record: SuiteRecord) -> list[tuple[int, int]]:
    """Splits (n, m) of the record, ascending; raises InputError where it has no rows."""
    sizes = sorted({(int(n), int(m)) for n, m in zip(record.columns["n"], record.columns["m"], strict=True)})
    if not sizes:
        raise InputError("record", "no rows", "run the suite first")
    return sizes


def predictors_of(record: SuiteRecord) -> Sequence[str]:
    """Predictors in order of first appearance."""
    return list(dict.fromkeys(record.columns["predictor"].tolist()))


def workloads_of(record: SuiteRecord) -> Sequence[str]:
    """Workloads in order of first appearance."""
    return list(dict.fromkeys(record.columns["workload"].tolist()))


def chosen_predictor(record: SuiteRecord, predictor: str | None = None) -> str:
    """The predictor to show: the one named, else the one that was chosen, else the last of the record.

    Raises InputError for one that the record does not hold.
    """
    there = predictors_of(record)
    if predictor is None:
        chosen = [entry["predictor"] for entry in record.summary if entry.get("chosen")]
        return chosen[0] if chosen else there[-1]
    if predictor not in there:
        raise InputError("predictor", predictor, f"is not in the record; choose one of {', '.join(there)}")
    return predictor


def split_label(size: tuple[int, int]) -> str:
    """How figures call a split."""
    return f"{size[0]} → {size[1]} requests"
