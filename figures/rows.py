"""Picking rows of a validation record for a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ratedist.errors import InputError

__all__ = ["Row", "distinct", "select"]

Row = Mapping[str, Any]
"""A row of a record, see ``ratedist.validate.compare``."""


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Rows whose fields have the wanted values, by threshold; raises InputError where there is none."""
    chosen = [row for row in rows if all(row[field] == value for field, value in wanted.items())]
    if not chosen:
        raise InputError("rows", wanted, "no row of the record is like this")
    return sorted(chosen, key=lambda row: row["threshold"])


def distinct(rows: Iterable[Row], field: str) -> Sequence[Any]:
    """Values of a field, in order of first appearance."""
    return list(dict.fromkeys(row[field] for row in rows))
