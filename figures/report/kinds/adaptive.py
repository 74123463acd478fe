"""Adaptive thresholds over a stream of requests."""

from __future__ import annotations

from typing import Any

from ratedist.figures.report.content import Picture, Section
from ratedist.figures.report.kinds.building import Loaded, any_table, source_of

__all__ = ["section"]


def section(loaded: Loaded) -> Section:
    """Every policy's summary and the course of the stream."""
    record = loaded.record

    def draw() -> Any:
        from ratedist.figures.adaptive import plot_adaptive

        return plot_adaptive(record)

    return Section(
        title="A threshold that follows the workload",
        answer=["Each policy over the same stream of requests; the promise is on the error of a window."],
        sources=[source_of(loaded)],
        tables=[any_table("Policies", record.summary)],
        pictures=[
            Picture(
                "Threshold, error and evidence of change",
                draw,
                "adaptive",
                "At a vertical line the workload changes: see whether a policy's error comes back under what "
                "is promised, and after how many requests.",
            )
        ],
    )
