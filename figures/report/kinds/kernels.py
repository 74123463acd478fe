"""What the Triton kernels compile to, without a GPU."""

from __future__ import annotations

from typing import Any

from ratedist.figures.report.content import Section
from ratedist.figures.report.kinds.building import Loaded, any_table, source_of, table

__all__ = ["section"]

_HALF = ("float16", "bfloat16")


def section(loaded: Loaded) -> Section:
    """What is wanting on any target: spills, shared memory beyond the limit, products without matrix "
    "units."""
    record = loaded.record
    targets = list(dict.fromkeys(row["target"] for row in record.rows))
    return Section(
        title="What the kernels compile to",
        answer=[
            "Compiled and never run: no number here was measured on a GPU.",
            *(_sentence(name, [r for r in record.rows if r["target"] == name]) for name in targets),
        ],
        sources=[source_of(loaded)],
        tables=[
            any_table("The worst of every quantity, by target", record.summary),
            table(
                "Every kernel in every form",
                record.rows,
                {
                    "kernel": "name",
                    "dtype": "dtype",
                    "target": "target",
                    "registers": "registers",
                    "spills (bytes)": "spills",
                    "shared (bytes)": "shared_bytes",
                    "narrowest load (bytes)": "load_bytes",
                    "matrix instructions": "matrix_instructions",
                    "operations per byte": "arithmetic_intensity",
                },
                detail=True,
            ),
        ],
    )


def _sentence(target: str, rows: list[dict[str, Any]]) -> str:
    spilling = sum(row["spills"] > 0 for row in rows)
    beyond = sum(row["shared_bytes"] > row["shared_limit"] for row in rows)
    products = [row for row in rows if row["has_product"] and row["dtype"] in _HALF]
    without = sum(row["matrix_instructions"] == 0 for row in products)
    return (
        f"{target}: of {len(rows)} kernels {spilling} spill, {beyond} want more shared memory than there is; "
        f"of {len(products)} with a product in 16 bits {without} have no matrix instructions."
    )
