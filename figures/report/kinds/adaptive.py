"""Adaptive thresholds over a stream of requests."""

from __future__ import annotations

from typing import Any

from ratedist.figures.report.content import Picture, Section
from ratedist.figures.report.kinds.building import Loaded, any_table, source_of
from ratedist.records import Record

__all__ = ["section"]


def section(loaded: Loaded) -> Section:
    """Every policy's summary and the course of the stream."""
    record = loaded.record

    def draw() -> Any:
        from ratedist.figures.adaptive import plot_adaptive

        return plot_adaptive(record)

    return Section(
        title="A threshold that follows the workload",
        answer=_answer(record),
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


def _answer(record: Record) -> list[str]:
    """Who went beyond the target, then who stayed within it, and at what compression."""
    target, window = record.provenance["target"], record.provenance["window"]
    words = []
    for entry in sorted(record.summary, key=lambda entry: -entry["largest_window_error"]):
        worst = entry["largest_window_error"]
        verb = "goes beyond" if worst > target else "stays within"
        words.append(
            f"{entry['policy']} {verb} the target of {target:g} over {window} requests: {worst:.4f} at "
            f"worst, compression {entry['compression']:.2f}×."
        )
    return words
