"""What methods cost in the model's output: fusion beside exact sharing, quantisation and eviction."""

from __future__ import annotations

from typing import Any

from ratedist.figures.report.content import Picture, Section, Table
from ratedist.figures.report.kinds.building import Entries, Loaded, source_of, table
from ratedist.records import Record

__all__ = ["section", "verdicts"]


def verdicts(record: Record) -> list[dict[str, Any]]:
    """The two questions of every workload in numbers, from where fusion does worst.

    Per workload ``workload``; ``adds_to_exact`` and ``beats_four_bits``, the answers; ``exact``, compression
    by exact sharing; ``fusion``, ``fusion_low``, ``fusion_high``, of the best fusion within ``kl_limit``;
    ``over_exact``, their ratio, with its interval; ``four_bits`` and ``kl_four_bits``, compression and
    divergence of 4 bits; ``kl_fusion``, that of fusion at these bytes; ``over_exact_with_four_bits``, what
    fusion adds to exact sharing with 4 bits on both, None in records that do not hold it.
    """
    found = []
    for entry in record.summary:
        if entry.get("kind") != "verdict":
            continue
        workload = entry["workload"]
        schemes = {
            scheme["scheme"]: scheme
            for scheme in record.summary
            if scheme.get("kind") == "scheme"
            and scheme["workload"] == workload
            and scheme["variant"] is None
            and scheme["criterion"] is None
        }
        fusion, exact = schemes.get("fusion", {}), schemes.get("exact", {})
        four = [row for row in record.rows if row["workload"] == workload and row["method"] == "kivi4"]
        found.append(
            {
                "workload": workload,
                "adds_to_exact": entry["adds_to_exact"],
                "beats_four_bits": entry["beats_four_bits"],
                "text": entry["text"],
                "exact": exact.get("compression"),
                "fusion": fusion.get("compression"),
                "over_exact_with_four_bits": entry.get("over_exact_with_four_bits"),
                "fusion_low": fusion.get("compression_low"),
                "fusion_high": fusion.get("compression_high"),
                "over_exact": fusion.get("over_exact"),
                "over_exact_low": fusion.get("over_exact_low"),
                "over_exact_high": fusion.get("over_exact_high"),
                "kl_limit": fusion.get("kl_limit"),
                "four_bits": four[0]["compression"] if four else None,
                "kl_four_bits": four[0]["kl_mean"] if four else None,
                "kl_fusion": fusion.get("kl_at_four_bits"),
            }
        )
    return sorted(found, key=lambda entry: (bool(entry["beats_four_bits"]), entry["over_exact"] or 0.0))


def section(loaded: Loaded) -> Section:
    """Verdicts, the frontier of every scheme, all cells, BD-rates and the link from errors to divergence."""
    record = loaded.record
    judged = verdicts(record)
    answer = [entry["text"] for entry in judged]
    tables = [
        table(
            "Every method on every workload",
            record.rows,
            {
                "workload": "workload",
                "method": "method",
                "variant": "variant",
                "criterion": "criterion",
                "threshold": "threshold",
                "times smaller": "compression",
                "KL (nats)": "kl_mean",
                "KL, 99 %": "kl_p99",
                "same top token": "same_top1",
                "Δ ln perplexity": "delta_log_ppl",
                "error of V": "v_error",
                "error of attention": "attention_error",
            },
            detail=True,
        )
    ]
    if judged:
        tables.insert(0, _verdict_table(judged))
    rates = [entry for entry in record.summary if entry.get("kind") == "bd-rate"]
    if rates:
        tables.append(_rates(rates))
    link = [e for e in record.summary if e.get("kind") == "link" and e["workload"] == "all"]
    if link:
        tables.append(_links(link))
    return Section(
        title="What it costs in quality, beside quantisation and eviction",
        answer=answer or ["Without exact sharing, fusion and 4 bits in one record there is no verdict."],
        sources=[source_of(loaded)],
        tables=tables,
        pictures=_pictures(record),
        headline=_headline(judged),
    )


def _headline(judged: Entries) -> list[str]:
    """What fusion adds to exact sharing, and whether it is better than 4 bits: in all, and by workload."""
    if not judged:
        return []
    worse = sum(not entry["beats_four_bits"] for entry in judged)
    adds = sum(bool(entry["adds_to_exact"]) for entry in judged)
    return [
        f"Fusion alone is no better than 4 bits at equal bytes on {worse} of {len(judged)} workloads, and "
        f"adds to exact prefix sharing on {adds} of {len(judged)}.",
        *(_in_numbers(entry) for entry in judged),
    ]


def _in_numbers(entry: dict[str, Any]) -> str:
    wanted = ("over_exact_low", "exact", "fusion", "four_bits", "kl_fusion", "kl_limit")
    if any(entry[name] is None for name in wanted):
        return str(entry["text"])
    verdict = "better than" if entry["beats_four_bits"] else "no better than"
    return (
        f"{entry['workload']}: {entry['over_exact']:.2f}× beyond exact sharing "
        f"({entry['over_exact_low']:.2f} to {entry['over_exact_high']:.2f}), {verdict} 4 bits. "
        f"{entry['fusion']:.2f}× at KL {entry['kl_limit']:g}, where exact sharing gives "
        f"{entry['exact']:.2f}× at none and 4 bits {entry['four_bits']:.2f}× at {entry['kl_four_bits']:.4f}; "
        f"at the bytes of 4 bits fusion costs {entry['kl_fusion']:.4f}."
        + (
            f" With 4 bits on both: {entry['over_exact_with_four_bits']:.2f}× beyond exact sharing."
            if entry.get("over_exact_with_four_bits") is not None
            else ""
        )
    )


def _verdict_table(judged: Entries) -> Table:
    limit = next((entry["kl_limit"] for entry in judged if entry["kl_limit"] is not None), None)
    at = "" if limit is None else f" at KL ≤ {limit:g}"
    return table(
        f"Fusion{at} beside exact sharing and 4 bits: times smaller, whole cache; intervals of 90 %",
        judged,
        {
            "workload": "workload",
            "exact": "exact",
            "fusion": "fusion",
            "over exact": "over_exact",
            "from": "over_exact_low",
            "to": "over_exact_high",
            "4 bits": "four_bits",
            "KL of 4 bits": "kl_four_bits",
            "KL of fusion at those bytes": "kl_fusion",
            "better than 4 bits": "beats_four_bits",
            "over exact, 4 bits on both": "over_exact_with_four_bits",
        },
    )


def _rates(rates: Entries) -> Table:
    known = [entry for entry in rates if entry["percent"] is not None]
    return table(
        "BD-rate: bytes at equal divergence, in per cent of the anchor's more (+) or fewer (−)",
        known,
        {
            "workload": "workload",
            "of": "test",
            "against": "anchor",
            "per cent": "percent",
            "from": "percent_low",
            "to": "percent_high",
            "shared part of the ranges": "overlap",
        },
    )


def _links(link: Entries) -> Table:
    plain = [
        {**e, "law": e.get("law"), "errors": ", ".join(e["errors"]) if e["errors"] else "noise floor"}
        for e in link
    ]
    return table(
        "Divergence predicted from errors, on held-out requests and workloads",
        plain,
        {
            "held out": "protocol",
            "law": "law",
            "from errors of": "errors",
            "cells": "cells",
            "within the factor": "within",
            "factor": "factor",
            "median |ln ratio|": "median_abs_log_ratio",
            "chosen": "chosen",
        },
    )


def _pictures(record: Record) -> list[Picture]:
    def draw(which: str) -> Any:
        from ratedist.figures.quality import quality_figure

        return quality_figure(record, which)

    return [
        Picture(
            "Divergence against compression of the whole cache",
            lambda: draw("kl"),
            "rate-kl",
            "Lower and further right is better: where the lines of fusion lie above the ringed point of 4 "
            "bits, fusion loses to it at equal bytes.",
        ),
        Picture(
            "Error of the attention output against compression of the whole cache",
            lambda: draw("attention"),
            "rate-distortion",
            "The same methods by distortion. Compare with the picture of divergence: methods of equal error "
            "need not cost the output equally.",
        ),
    ]
