"""The record of a suite of validations: one row per prediction, kept by columns because there are many."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError, RatedistError
from ratedist.records import write_atomic

__all__ = [
    "SCHEMA",
    "Columns",
    "SuiteRecord",
    "as_column",
    "read_suite_record",
    "suite_record_from",
    "write_suite_record",
]

SCHEMA = "ratedist/suite/1"
"""Schema of the record of a suite."""

_DIGITS = 6
"""Significant digits of numbers in the rows: far below the noise of any of them."""

Columns = dict[str, NDArray[Any]]
"""Rows by column: arrays of equal length; text as objects, numbers that are not known as NaN."""


@dataclass
class SuiteRecord:
    """What a suite found.

    Attributes:
        provenance: command, versions, time, settings, captures, how many cells are finished.
        words: the result in words, failures first.
        goals: what was asked of the predictions and whether they meet it, see ``validate.suite.summary``.
        summary: errors by workload, split and predictor, see ``validate.suite.summary``.
        transfer: errors where one workload calibrates and another is measured, see
            ``validate.suite.summary``; empty where the suite transfers nothing.
        columns: the rows. Beside the fields of ``ratedist.validate.compare``: ``n``, ``m``, ``seed``;
            ``abs_log_ratio``, |ln(predicted/measured compression)|, unknown where refused; ``counts``, 1 in
            rows that the summary counts, else 0;
            ``noise_floor``, the spread of ln(compression) measured (``ratedist.validate.suite.noise``),
            and ``noise_draw``, one deviation of this size, as a prediction that knew the workload would have
            it; ``sample_draw``, one as a prediction from n requests would have it that is right for any
            traffic (``ratedist.validate.suite.noise.sample_factor``), unknown where transferred;
            ``calibration_pairs``, ``calibration_bytes`` and ``calibration_seconds``, what calibrating this
            layer looked at, and the processor seconds it took (sample of similarities, fit and prediction
            under one criterion); ``calibrated_on``, the workload of these requests, another one where a
            prediction is transferred; and ``refused``, why a predictor gave nothing. Empty where a file was
            written without its rows.
        layers, bands: of a digest, errors by layer and threshold and what bands hold, summed up over all rows
            (``ratedist.suite_digest``); empty in a whole record.
        sampled_from: of a digest, the number of rows that ``columns`` were drawn from; else None.
    """

    provenance: dict[str, Any]
    words: list[str]
    goals: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    columns: Columns = field(repr=False)
    transfer: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list, repr=False)
    bands: list[dict[str, Any]] = field(default_factory=list, repr=False)
    sampled_from: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows as dictionaries; what is not known is None."""
        names = list(self.columns)
        plain = [[_plain(value) for value in column.tolist()] for column in self.columns.values()]
        return [dict(zip(names, values, strict=True)) for values in zip(*plain, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """JSON data, rows by column."""
        summed_up = {
            "sampled_from": self.sampled_from,
            "layers": _by_column(self.layers),
            "bands": _by_column(self.bands),
        }
        return {
            "schema": SCHEMA,
            "provenance": self.provenance,
            "words": self.words,
            "goals": self.goals,
            "summary": self.summary,
            "transfer": self.transfer,
            **(summed_up if self.sampled_from is not None else {}),
            "columns": {name: _encode(column) for name, column in self.columns.items()},
        }


def write_suite_record(record: SuiteRecord, path: Path) -> None:
    """Write a record, whole or not at all, and beside it a digest of it, as the rows are megabytes.

    The second file is called like the first with ``-summary`` added: small enough to be kept under version
    control, and all that figures and reports need. Raises RatedistError where they cannot be written.
    """
    from ratedist.suite_digest import digest

    try:
        write_atomic(path, _text(record))
        write_atomic(path.with_name(f"{path.stem}-summary{path.suffix}"), _text(digest(record)))
    except OSError as error:
        raise RatedistError(f"{path} cannot be written: {error.strerror or error}") from error


def read_suite_record(path: Path) -> SuiteRecord:
    """Read a record; raises RatedistError where the file is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            "record", str(path), "no such file; make one with ratedist validate --suite"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RatedistError(f"{path} is not the record of a suite: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise RatedistError(f"{path} has schema {found!r}; a suite's record has {SCHEMA!r}")
    return suite_record_from(data)


def suite_record_from(data: dict[str, Any]) -> SuiteRecord:
    """A record from its JSON data; raises KeyError where something is missing but the rows."""
    return SuiteRecord(
        data["provenance"],
        data["words"],
        data["goals"],
        data["summary"],
        {name: _decode(column) for name, column in data.get("columns", {}).items()},
        data["transfer"],
        _by_row(data.get("layers", {})),
        _by_row(data.get("bands", {})),
        data.get("sampled_from"),
    )


def as_column(values: list[Any]) -> NDArray[Any]:
    """Values of one field as an array: text, whole numbers, or numbers with NaN for None."""
    if all(isinstance(value, str) for value in values):
        return np.array(values, dtype=object)
    if all(isinstance(value, int) for value in values):
        return np.array(values, dtype=np.int64)
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _encode(column: NDArray[Any]) -> Any:
    """Text and what is the same in every row take little room this way; there are many rows."""
    if column.dtype == object:
        values = list(dict.fromkeys(column.tolist()))
        place = {value: number for number, value in enumerate(values)}
        codes = [place[value] for value in column.tolist()] if len(values) > 1 else len(column)
        return {"values": values, "codes": codes}
    return [_plain(value) for value in column.tolist()]


def _decode(data: Any) -> NDArray[Any]:
    if isinstance(data, dict):
        codes = data["codes"]
        places = (
            np.zeros(codes, dtype=np.int64) if isinstance(codes, int) else np.array(codes, dtype=np.int64)
        )
        return np.array(data["values"], dtype=object)[places]
    return as_column(data)


def _text(record: SuiteRecord) -> str:
    return json.dumps(record.to_json(), allow_nan=False, separators=(",", ":"), ensure_ascii=False) + "\n"


def _by_column(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Entries of the same fields by column."""
    return (
        {name: _encode(as_column([entry[name] for entry in entries])) for name in entries[0]}
        if entries
        else {}
    )


def _by_row(columns: dict[str, Any]) -> list[dict[str, Any]]:
    names = list(columns)
    values = [[_plain(value) for value in _decode(columns[name]).tolist()] for name in names]
    return [dict(zip(names, entry, strict=True)) for entry in zip(*values, strict=True)]


def _plain(value: Any) -> Any:
    """A value for JSON: floats rounded, None for what is not finite."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
