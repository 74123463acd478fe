"""What a law implies, and the ladder from closed form to captures."""

from __future__ import annotations

from typing import Any

from ratedist.figures.report.content import Picture, Section
from ratedist.figures.report.kinds.building import Loaded, any_table, source_of, table

__all__ = ["curve_section", "ladder_section"]


def curve_section(loaded: Loaded) -> Section:
    """Compression by threshold, its error, and rate against distortion, from theory alone."""
    record = loaded.record

    def draw() -> Any:
        from ratedist.figures.curve import plot_curve

        return plot_curve(record)

    falls = []
    for variant in dict.fromkeys(row["variant"] for row in record.rows):
        rows = sorted((r for r in record.rows if r["variant"] == variant), key=lambda row: row["threshold"])
        middle = rows[len(rows) // 2]
        falls.append(
            f"{variant} {rows[0]['compression']:.2f}× at threshold {rows[0]['threshold']:g}, "
            f"{middle['compression']:.2f}× at {middle['threshold']:g} and {rows[-1]['compression']:.2f}× at "
            f"{rows[-1]['threshold']:g}"
        )
    return Section(
        title="What a law of similarity implies",
        answer=[f"{record.provenance.get('title', 'A named law')}: {'; '.join(falls)}."],
        sources=[source_of(loaded)],
        tables=[any_table("Rows of the curve", record.rows, detail=True)],
        pictures=[
            Picture(
                "Compression, error, and rate against distortion",
                draw,
                "curve",
                "Lines are the theory and points its simulation; on the right, fusion against what "
                "quantisation and the bounds allow at the same bits.",
            )
        ],
    )


def ladder_section(loaded: Loaded) -> Section:
    """Compression on every rung, and the gaps between them."""
    record = loaded.record

    def draw() -> Any:
        from ratedist.figures.ladder import plot_ladder

        return plot_ladder(record)

    gaps = [entry for entry in record.summary if entry.get("kind") == "gap"]
    worst = max(gaps, key=lambda entry: abs(entry["log_ratio"]), default=None)
    answer = ["One batch on every rung; a gap names the assumption that fails."]
    if worst is not None:
        answer = [
            f"The largest gap, {worst['log_ratio']:+.2f} in ln(compression) at threshold "
            f"{worst['threshold']:g}, lies between rungs {worst['from']} and {worst['to']}: "
            f"{worst['assumption']}."
        ]
    return Section(
        title="From theory to captured blocks, rung by rung",
        answer=answer,
        sources=[source_of(loaded)],
        tables=[
            table(
                "Compression on every rung",
                record.rows,
                {
                    "rung": "rung",
                    "what": "name",
                    "threshold": "threshold",
                    "compression": "compression",
                    "standard error": "compression_se",
                },
                detail=True,
            )
        ],
        pictures=[
            Picture(
                "Compression on every rung of the ladder",
                draw,
                "ladder",
                "Where neighbouring rungs agree the assumption between them holds; the gaps on the right "
                "name those that do not.",
            )
        ],
    )
