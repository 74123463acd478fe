"""Layers looked at closely: counts of matches against laws, similarity by position, the worst merges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ratedist.figures.report.content import Picture, Section
from ratedist.figures.report.kinds.building import Loaded, source_of, table

__all__ = ["sections"]

_MERGES = 4
"""Merges of each record that a page of results shows."""


def sections(records: Sequence[Loaded]) -> list[Section]:
    """One section for all records, a panel of each picture for each."""
    laws: list[dict[str, Any]] = []
    merges: list[dict[str, Any]] = []
    few: list[dict[str, Any]] = []
    answer = []
    for loaded in records:
        record = loaded.record
        workload = record.provenance["workload"]
        here = [entry for entry in record.summary if entry["kind"] == "law"]
        there = next(entry for entry in record.summary if entry["kind"] == "exceedances")
        fusion = next(entry for entry in record.summary if entry["kind"] == "fusion")
        verdicts = {check["null"]: check["verdict"] for check in there["checks"]}
        closest = min(here, key=lambda entry: entry["distance"])
        answer.append(
            f"{workload}, layer {record.provenance['layer']} at {there['threshold']:g}: "
            f"{there['exceedances']:,} of {there['pairs']:,} pairs match "
            f"({there['byte_equal']:,} byte for byte), {there['per_block']:.3g} per block; "
            f"{verdicts['homogeneous']} over all pairs, {verdicts['positions']} given the positions. Closest "
            f"to the counts comes {closest['law']} (distance {closest['distance']:.2f}). Fused "
            f"{fusion['compression']:.2f}×, values of what is absorbed come back with an error of "
            f"{fusion['v_absorbed']['rms']:.2f}."
        )
        laws += [{"workload": workload, **entry} for entry in here]
        found = [_merge(workload, row) for row in record.rows if row["kind"] == "merge"]
        merges += found
        few += found[:_MERGES]
    columns = {
        "workload": "workload",
        "text of the block": "text",
        "read as": "with_text",
        "score": "score",
        "error of K": "k_error",
        "error of V": "v_error",
        "KL (nats)": "kl",
        "times": "times",
    }
    return [
        Section(
            title="Why a layer fuses as it does, and its worst merges",
            answer=[_in_all(records), *answer],
            sources=[source_of(loaded) for loaded in records],
            tables=[
                table(
                    "The worst merges: what stands in a block, and what it is read as; KL of this merge "
                    "alone, on the request's last tokens",
                    few,
                    columns,
                ),
                table(
                    "Matches per block: mean of each law, and its distance from the counts (0 equal, 1 "
                    "disjoint)",
                    laws,
                    {"workload": "workload", "law": "law", "mean": "mean", "distance": "distance"},
                ),
                table("All merges listed", merges, columns, detail=True),
            ],
            pictures=[
                Picture(
                    "Matches per block, beside four laws",
                    lambda: _draw("counts_figure", records),
                    "counts",
                    "Bars are measured. A law whose line leaves the bars expects other numbers of matches "
                    "than the blocks have, and so predicts another compression.",
                ),
                Picture(
                    "Similarity of keys by distance of positions",
                    lambda: _draw("differences_figure", records),
                    "differences",
                    "Dots are medians, bars hold 90 % of the pairs. Keys carry their position: where "
                    "similarity falls with the distance, the same text further on no longer matches.",
                ),
            ],
        )
    ]


def _in_all(records: Sequence[Loaded]) -> str:
    """How many of the layers are Poisson, and which law comes closest how often."""
    poisson, closest = 0, Counter[str]()
    for loaded in records:
        summary = loaded.record.summary
        there = next(entry for entry in summary if entry["kind"] == "exceedances")
        poisson += next(c["verdict"] for c in there["checks"] if c["null"] == "homogeneous") == "Poisson"
        laws = [entry for entry in summary if entry["kind"] == "law"]
        closest[min(laws, key=lambda entry: entry["distance"])["law"]] += 1
    law, often = closest.most_common(1)[0]
    return (
        f"Matches are Poisson over all pairs, as the paper has them, in {poisson} of {len(records)} layers "
        f"looked at; closest to the counts comes {law}, in {often}."
    )


def _merge(workload: str, row: dict[str, Any]) -> dict[str, Any]:
    effect = row.get("effect")
    place = f"request {row['request']}, block {row['block']}"
    other = f"request {row['with_request']}, block {row['with_block']}"
    return {
        **row,
        "workload": workload,
        "text": _one_line(row.get("text"), place),
        "with_text": _one_line(row.get("with_text"), other),
        "kl": effect["kl_mean"] if effect else None,
    }


def _one_line(text: str | None, place: str) -> str:
    """Text with its line ends made visible; the place of the block where the text is not known."""
    return place if text is None else "“" + text.replace("\n", "⏎").strip(" ") + "”"


def _draw(name: str, records: Sequence[Loaded]) -> Any:
    from ratedist.figures import inspection

    return getattr(inspection, name)([loaded.record for loaded in records])
