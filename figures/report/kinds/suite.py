"""A suite: predictions over many workloads, splits and seeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ratedist.figures.report.content import Picture, Section, Table
from ratedist.figures.report.kinds.building import Entries, Loaded, any_table, source_of, table
from ratedist.suite_record import SuiteRecord, suite_record_from

__all__ = ["section"]

_COLUMNS = {
    "workload": "workload",
    "seen": "n",
    "predicted for": "m",
    "predictor": "predictor",
    "median": "median_abs_log_ratio",
    "best from that sample": "sample_median",
    "noise": "noise_median",
    "90 % quantile": "p90_abs_log_ratio",
    "best, 90 %": "sample_p90",
    "noise, 90 %": "noise_p90",
    "held by bands": "band_coverage",
    "rows": "rows",
}


_GOALS = {
    "median": "median error",
    "p90": "90 % quantile of the error",
    "coverage": "share of rows that 90 % bands hold",
}


def section(loaded: Loaded) -> Section:
    """Words, goals of the chosen predictor, errors and transfer; pictures of what the record holds."""
    record = suite_record_from(loaded.data)
    chosen = {entry["predictor"] for entry in record.summary if entry.get("chosen")}
    whole = [e for e in record.summary if e.get("variant") is None and e.get("mode") is None]
    return Section(
        title=_title(record),
        answer=[*record.words, *_missing(record)],
        sources=[source_of(loaded)],
        tables=[
            _goals([goal for goal in record.goals if goal["predictor"] in chosen] or record.goals),
            table(
                "All workloads together, |ln(predicted / measured compression)|, every predictor",
                [entry for entry in whole if entry["workload"] == "all"],
                _COLUMNS,
            ),
            table(
                "By workload, the chosen predictor",
                [e for e in whole if e["workload"] != "all" and e["predictor"] in chosen],
                _COLUMNS,
            ),
            table(
                "Across requests (bff) and across the chunks of each (cff), the chosen predictor",
                [
                    e
                    for e in record.summary
                    if e.get("mode") and e["workload"] == "all" and e["predictor"] in chosen
                ],
                {"mode": "mode", **_COLUMNS},
            ),
            any_table("Every predictor, workload, split, variant and criterion", record.summary, detail=True),
            any_table(
                "Transfer: calibrated on one workload, measured on another", record.transfer, detail=True
            ),
        ],
        pictures=_pictures(record),
    )


def _title(record: SuiteRecord) -> str:
    suite = record.provenance.get("suite", {}).get("name")
    named = "" if suite is None else f" (suite {suite})"
    between = ", and from each to the others" if record.transfer else ""
    return f"Predictions over {_count(record)} workloads{between}{named}"


def _count(record: SuiteRecord) -> int:
    return len({entry["workload"] for entry in record.summary} - {"all"})


def _missing(record: SuiteRecord) -> list[str]:
    if record.columns:
        return []
    return [
        "This record was kept without its rows: the scatter, the layers and the bands cannot be drawn from "
        "it."
    ]


def _goals(goals: Entries) -> Table:
    def limit(goal: dict[str, Any]) -> str:
        given = goal["limit"]
        return f"{given[0]:g} to {given[1]:g}" if isinstance(given, list) else f"{given:.3g}"

    def over_splits(goal: dict[str, Any]) -> str | None:
        found = goal.get("over_splits")  # records of before splits were drawn again have none
        return None if found is None else f"{found[0]:.3g} to {found[1]:.3g}"

    rows = [
        {
            **goal,
            "goal": _GOALS.get(goal["goal"], goal["goal"]),
            "limit": limit(goal),
            "over_splits": over_splits(goal),
        }
        for goal in goals
    ]
    return table(
        "Goals that were set beforehand, the chosen predictor; seen and predicted for: requests",
        rows,
        {
            "seen": "n",
            "predicted for": "m",
            "goal": "goal",
            "value": "value",
            "over other splits": "over_splits",
            "best from that sample": "sample",
            "limit": "limit",
            "met": "met",
            "rows": "rows",
        },
    )


def _pictures(record: SuiteRecord) -> list[Picture]:
    from ratedist.figures import suite

    captions: dict[str, tuple[str, str]] = {
        "suite-scatter": (
            "Compression predicted and measured, with the noise of measuring",
            "A prediction that knew the workload would fill the grey band; points outside it are errors of "
            "the predictor.",
        ),
        "suite-errors": (
            "Error by workload and predictor",
            "The nearer to the grey bars, which are noise of measuring, the better; the last line is all "
            "workloads together.",
        ),
        "suite-layers": (
            "Error by layer and threshold",
            "Bright cells above that stay dark below are errors of the predictor, not noise.",
        ),
        "suite-bands": (
            "How often bands hold, and how wide they are",
            "Left of the grey stripe bands promise too much, right of it they are wider than needed.",
        ),
        "suite-transfer": (
            "Calibrated on one workload, measured on another",
            "The diagonal is a workload predicting itself; bright fields are workloads that cannot stand in "
            "for each other.",
        ),
    }
    figures: dict[str, Callable[[SuiteRecord], Any]] = suite.figures_of(record)
    pictures = []
    for name, plot in figures.items():
        title, caption = captions[name]
        pictures.append(Picture(title, partial(plot, record), name.removeprefix("suite-"), caption))
    return pictures
