"""A real model that generates on the fused cache."""

from __future__ import annotations

from ratedist.figures.report.content import Section
from ratedist.figures.report.kinds.building import Loaded, source_of, table

__all__ = ["section"]


def section(loaded: Loaded) -> Section:
    """Tokens that stay, bytes and speed, beside the unmodified model."""
    record = loaded.record
    fused = next(row for row in record.rows if row["name"] == "fused")
    plain = next(row for row in record.rows if row["name"] == "unmodified")
    return Section(
        title="A real model on the fused cache",
        answer=[
            f"{fused['same_tokens']} of {fused['tokens']} tokens are the unmodified model's; the cache takes "
            f"{fused['cache_bytes'] / 1e6:.1f} MB in the place of {plain['cache_bytes'] / 1e6:.1f} MB, at "
            f"{fused['tokens_per_second'] / plain['tokens_per_second']:.2f} times the tokens per second."
        ],
        sources=[source_of(loaded)],
        tables=[
            table(
                "Each way of generating",
                record.rows,
                {
                    "way": "name",
                    "tokens/s": "tokens_per_second",
                    "cache (bytes)": "cache_bytes",
                    "held (bytes)": "held_bytes",
                    "same tokens": "same_tokens",
                    "of": "tokens",
                },
            )
        ],
    )
