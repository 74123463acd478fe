"""Plans on requests that they were not made for: divergence promised and measured, savings in hindsight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ratedist.figures.report.content import Picture, Section
from ratedist.figures.report.kinds.building import Loaded, saved, source_of, table, tables_by_kind

__all__ = ["section"]


def section(loaded: Loaded) -> Section:
    """The words of the record, goals, and every cell."""
    record = loaded.record

    def draw(folder: Path) -> Path:
        from ratedist.figures.planning import save_planning_figure

        return save_planning_figure(record, folder)

    words = [entry["text"] for entry in record.summary if entry["kind"] == "words"]
    others = [entry for entry in record.summary if entry["kind"] != "words"]
    return Section(
        title="Plans, checked on other requests",
        answer=words or ["The record says nothing in words."],
        sources=[source_of(loaded)],
        tables=[
            *tables_by_kind(others, {"goal": "Goals that were set beforehand", "workload": "By workload"}),
            table(
                "Every plan beside the best single threshold in hindsight",
                [_flat(row) for row in record.rows],
                {
                    "workload": "workload",
                    "seed": "seed",
                    "KL predicted": "plan.kl_predicted",
                    "KL measured": "plan.kl_measured",
                    "times smaller, predicted": "plan.compression_predicted",
                    "measured": "plan.compression_measured",
                    "saved": "plan.saving_measured",
                    "saved in hindsight": "hindsight.saving",
                    "BD-rate (per cent)": "bd_rate.percent",
                },
                detail=True,
            ),
        ],
        pictures=[
            Picture(
                "Divergence of plans, and what they save beside the best single threshold",
                saved(draw),
                "plan-check",
                "Left: a measurement above the upper line breaks the promise. Right: points below the dotted "
                "line save less than nine tenths of what one threshold would have saved, chosen in "
                "hindsight.",
            )
        ],
    )


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Fields of the objects within a row beside its own, as ``object.field``."""
    inner = {
        f"{name}.{field}": value
        for name, entry in row.items()
        if isinstance(entry, dict)
        for field, value in entry.items()
    }
    return row | inner
