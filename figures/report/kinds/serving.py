"""Serving: what saved blocks buy, from one or several records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ratedist.figures.report.content import Picture, Section
from ratedist.figures.report.kinds.building import Loaded, source_of, table

__all__ = ["sections"]


def sections(records: Sequence[Loaded]) -> list[Section]:
    """One section for all records, a panel of its picture for each."""
    summary = [entry for loaded in records for entry in loaded.record.summary]
    answer = []
    for entry in sorted(summary, key=lambda entry: entry["gain"]):
        verb = "loses" if entry["gain"] < 0.98 else "gains" if entry["gain"] > 1.02 else "changes nothing"
        spread = (
            f", {entry['gain_low']:.2f} to {entry['gain_high']:.2f} over the runs"
            if entry.get("gain_low") is not None
            else ""
        )
        answer.append(
            f"{entry['workload']}, pool at {entry['pool_share']:.0%} of what the trace takes unfused: "
            f"fusion {verb}, {entry['gain']:.2f} times the tokens per second{spread} "
            f"({entry['gain_predicted']:.2f} predicted){_ceiling(entry)}."
        )
    return [
        Section(
            title="What saved blocks buy in serving",
            answer=answer,
            sources=[source_of(loaded) for loaded in records],
            tables=[
                table(
                    "Served from pools of several sizes, exact prefix sharing on in both modes",
                    [row for loaded in records for row in loaded.record.rows],
                    {
                        "workload": "workload",
                        "pool share": "pool_share",
                        "mode": "mode",
                        "tokens/s": "tokens_per_second",
                        "predicted": "tokens_per_second_predicted",
                        "requests at a time": "mean_running",
                        "first token (s)": "time_to_first_token_mean",
                        "between tokens (s)": "time_between_tokens_mean",
                        "preemptions": "preemptions",
                        "same tokens": "same_tokens",
                    },
                ),
                table(
                    "Gain of fusion in tokens per second, and what an unlimited pool would gain without it",
                    summary,
                    {
                        "workload": "workload",
                        "pool share": "pool_share",
                        "compression of fused layers": "compression",
                        "gain": "gain",
                        "predicted": "gain_predicted",
                        "unlimited pool": "ceiling",
                        "predicted, unlimited": "ceiling_predicted",
                        "tokens/s without fusion": "tokens_per_second_unfused",
                        "with fusion": "tokens_per_second_fused",
                        "transformers": "tokens_per_second_transformers",
                    },
                ),
            ],
            pictures=[
                Picture(
                    "Tokens per second against the size of the pool",
                    lambda: _figure(records),
                    "serving",
                    "Points are runs, dashes the capacity model: fusion pays where the squares stand above "
                    "the circles. The dotted line is the engine without fusion and without a limit: saved "
                    "blocks buy no more.",
                )
            ],
        )
    ]


def _ceiling(entry: dict[str, Any]) -> str:
    """What an unlimited pool would gain, in words; nothing in records that do not say."""
    if entry.get("ceiling") is None:
        return ""
    return f"; without fusion but with no limit on the pool it would be {entry['ceiling']:.2f} times"


def _figure(records: Sequence[Loaded]) -> Any:
    from ratedist.figures.serving import serving_figure

    return serving_figure([loaded.record for loaded in records])
