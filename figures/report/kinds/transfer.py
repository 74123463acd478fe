"""Laws and thresholds of one workload or model, applied to another."""

from __future__ import annotations

from pathlib import Path

from ratedist.figures.report.content import Picture, Section
from ratedist.figures.report.kinds.building import Loaded, saved, source_of, tables_by_kind

__all__ = ["section"]


def section(loaded: Loaded) -> Section:
    """The words of the record, and its summary by kind."""
    record = loaded.record

    def draw(folder: Path) -> Path:
        from ratedist.figures.transfer import save_transfer_figure

        return save_transfer_figure(record, folder)

    return Section(
        title="Calibrated on one workload or model, applied to another",
        answer=record.provenance.get("words") or ["The record says nothing in words."],
        sources=[source_of(loaded)],
        tables=tables_by_kind(record.summary, {"threshold": "Do thresholds keep their promise elsewhere?"}),
        pictures=[
            Picture(
                "Error of predictions, and promises of thresholds, by where they were calibrated",
                saved(draw),
                "transfer",
                "On the diagonal a capture predicts other requests of its own; a bright field is a pair that "
                "cannot stand in for each other.",
            )
        ],
    )
