"""Speed beside the floor that the work sets, or beside what was promised."""

from __future__ import annotations

from ratedist.figures.report.content import Section
from ratedist.figures.report.kinds.building import Loaded, source_of, table

__all__ = ["section"]


def section(loaded: Loaded) -> Section:
    """The worst ratio, and every case."""
    record = loaded.record
    timed = [row for row in record.rows if row.get("ratio") is not None]
    against = "promised time" if all("promised_seconds" in row for row in timed) and timed else "floor"
    answer = ["No row of this benchmark has a floor."]
    if timed:
        worst = max(timed, key=lambda row: row["ratio"])
        what = f"the floor that the work sets ({worst['name']})"
        if against == "promised time":
            what = f"the time that is promised ({worst['name']})"
        answer = [f"At worst {worst['ratio']:.2f} times {what}; {len(timed)} cases."]
    columns = {
        "case": "name",
        "seconds": "seconds",
        "floor (s)": "floor_seconds",
        "promised (s)": "promised_seconds",
        "ratio": "ratio",
        "times PyTorch's": "torch_ratio",
    }
    known = {
        heading: field
        for heading, field in columns.items()
        if field in ("name", "seconds", "ratio") or any(row.get(field) is not None for row in record.rows)
    }
    return Section(
        title=f"Speed beside its {against}",
        answer=answer,
        sources=[source_of(loaded)],
        tables=[table(f"Least time of several runs, and the {against}", record.rows, known)],
    )
