"""A validation: predicted beside measured on the requests of one split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ratedist.figures.report.content import Picture, Section
from ratedist.figures.report.kinds.building import Entries, Loaded, factor_text, source_of, table
from ratedist.records import Record

__all__ = ["section"]

_FAITHFUL = 0.1
"""Relative error of values, root mean square over layers, that the first sentences allow."""

_NOTHING = 1.005
"""Compression of the whole cache up to which fusion counts as saving nothing."""


def section(loaded: Loaded) -> Section:
    """Savings by workload, least first, and the error of the best predictor; pictures where there are "
    "rows."""
    data = loaded.data
    record = Record(data["schema"], data["provenance"], data.get("rows", []), data["summary"])
    overall = [row for row in record.summary if row["workload"] == "all" and row["rows"]]
    best = min(overall, key=lambda row: row["median_abs_log_ratio"], default=None)
    answer = ["No row compresses enough to judge a prediction by."]
    if best is not None:
        answer = [
            f"The best predictor, {best['predictor']}, is off by a factor of "
            f"{factor_text(best['median_abs_log_ratio'])} in the median and of "
            f"{factor_text(best['p90_abs_log_ratio'])} in one row of ten, on requests that it did not see."
        ]
    return Section(
        title="Predicted beside measured",
        answer=[*_savings(record.rows), *answer],
        sources=[source_of(loaded)],
        tables=[
            table(
                "Error of predicted compression, |ln(predicted / measured)|",
                record.summary,
                {
                    "workload": "workload",
                    "predictor": "predictor",
                    "median": "median_abs_log_ratio",
                    "90 % quantile": "p90_abs_log_ratio",
                    "rows": "rows",
                },
            )
        ],
        pictures=_pictures(record) if record.rows else [],
    )


def _pictures(record: Record) -> list[Picture]:
    def overview() -> Any:
        from ratedist.figures.validation import overview_figure

        return overview_figure(record)

    def of_workload(workload: str, variant: str, criterion: str) -> Any:
        from ratedist.figures.validation import workload_figure

        return workload_figure(record, workload, variant, criterion)

    pictures = [
        Picture(
            "Predicted against measured compression",
            overview,
            "overview",
            "Each point is a layer at a threshold; predictions that hold lie on the diagonal.",
        )
    ]
    modes = dict.fromkeys((row["workload"], row["variant"], row["criterion"]) for row in record.rows)
    for workload, variant, criterion in modes:
        pictures.append(
            Picture(
                f"Compression and error: {workload}, {variant}, matched by {criterion}",
                lambda w=workload, v=variant, c=criterion: of_workload(w, v, c),  # type: ignore[misc]
                f"{workload}-{variant}-{criterion}",
                "Points are measured, lines predicted: compression by threshold in three layers and over "
                "all, and what it costs in the middle one.",
            )
        )
    return pictures


def _savings(rows: Entries) -> Sequence[str]:
    """Per workload, least first: how much smaller the whole cache gets while values stay what they were."""
    cells: dict[str, dict[tuple[Any, ...], list[dict[str, Any]]]] = {}
    first = rows[0]["predictor"] if rows else None
    for row in rows:
        if row["predictor"] == first:
            setting = (row["variant"], row["criterion"], row["threshold"])
            cells.setdefault(row["workload"], {}).setdefault(setting, []).append(row)
    best: list[tuple[float, str]] = []
    for workload, settings in cells.items():
        kept = [
            (here[0]["cache_compression_measured"], setting)
            for setting, here in settings.items()
            if sum(row["v_error_measured"] ** 2 for row in here) <= len(here) * _FAITHFUL**2
        ]
        times, (variant, criterion, threshold) = max(kept, default=(1.0, ("", "", 1.0)))
        how = f" ({variant}, {criterion}, threshold {threshold:g})" if times > _NOTHING else ""
        much = f"makes the cache {times:.2f} times smaller" if times > _NOTHING else "saves nothing"
        best.append(
            (
                times,
                f"{workload}: fusion, exact sharing included, {much} with values within "
                f"{_FAITHFUL:.0%} of what they were{how}.",
            )
        )
    return [sentence for _, sentence in sorted(best)]
