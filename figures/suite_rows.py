"""Picking rows of a suite's record for a figure."""

from __future__ import annotations

from collections.abc import Sequence

from ratedist.errors import InputError
from ratedist.suite_digest import chosen_predictor
from ratedist.suite_record import SuiteRecord

__all__ = ["has_rows", "predictors_of", "shown_predictor", "sizes_of", "split_label", "workloads_of"]


def has_rows(record: SuiteRecord) -> bool:
    """Whether the record holds rows, all of them or a sample."""
    return bool(record.columns)


def sizes_of(record: SuiteRecord) -> list[tuple[int, int]]:
    """Splits (n, m) of the record, ascending; raises InputError where it has none."""
    if record.columns:
        pairs = zip(record.columns["n"].tolist(), record.columns["m"].tolist(), strict=True)
    else:
        pairs = zip(
            (entry["n"] for entry in record.summary), (entry["m"] for entry in record.summary), strict=True
        )
    sizes = sorted({(int(n), int(m)) for n, m in pairs})
    if not sizes:
        raise InputError("record", "no rows", "run the suite first")
    return sizes


def predictors_of(record: SuiteRecord) -> Sequence[str]:
    """Predictors in order of first appearance; the summary's where the rows are a sample or missing."""
    return _first_of(record, "predictor")


def workloads_of(record: SuiteRecord) -> Sequence[str]:
    """Workloads in order of first appearance."""
    return [name for name in _first_of(record, "workload") if name != "all"]


def shown_predictor(record: SuiteRecord, predictor: str | None = None) -> str:
    """The predictor to show: the one named, else the one that was chosen, else the last of the record.

    Raises InputError for one that the record does not hold.
    """
    if predictor is None:
        return chosen_predictor(record)
    there = predictors_of(record)
    if predictor not in there:
        raise InputError("predictor", predictor, f"is not in the record; choose one of {', '.join(there)}")
    return predictor


def _first_of(record: SuiteRecord, field: str) -> list[str]:
    if record.columns and record.sampled_from is None:
        return list(dict.fromkeys(record.columns[field].tolist()))
    return list(dict.fromkeys(entry[field] for entry in record.summary))


def split_label(size: tuple[int, int]) -> str:
    """How figures call a split."""
    return f"{size[0]} → {size[1]} requests"
