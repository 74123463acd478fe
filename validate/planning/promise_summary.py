"""What the experiment on plans comes to, in numbers and in words: promises broken first, then those kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy

__all__ = ["AIM", "summarise_promise"]

AIM = 0.9
"""Share of the cells that is to keep each promise."""

Row = Mapping[str, Any]


def summarise_promise(rows: Sequence[Row], missing: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Entries by ``kind``: ``goal`` (divergence, saving, bd-rate), ``prediction``, ``tolerance``,
    ``workload``, ``drift``, ``sensitivity``, and ``words``, sentences with failures first.

    Args:
        rows: from ``ratedist.validate.planning.promise.promise_cell``, at least one.
        missing: names of cells that are not measured yet.
    """
    workloads = [_workload(name, _of(rows, name)) for name in dict.fromkeys(row["workload"] for row in rows)]
    goals = _goals(rows, workloads)
    prediction, tolerance = _prediction(rows), _tolerance(rows)
    drift = [
        _drift(target, rows) for target in dict.fromkeys(to["to"] for row in rows for to in row["drift"])
    ]
    entries = [*goals, prediction, tolerance, *workloads, *drift, _sensitivity(rows)]
    words = _words(rows[0], goals, workloads, prediction, tolerance, drift)
    if missing:
        cells = len(rows) + len(missing)
        words.insert(0, f"Not all is measured: {len(rows)} of {cells} cells, without {', '.join(missing)}.")
    return [*entries, *({"kind": "words", "text": text} for text in words)]


def _of(rows: Sequence[Row], workload: str) -> list[Row]:
    return [row for row in rows if row["workload"] == workload]


def _goals(rows: Sequence[Row], workloads: Sequence[Row]) -> list[dict[str, Any]]:
    judged = [entry for entry in workloads if entry["bd_rate"] is not None]
    won = sum(entry["bd_rate"] < 0 for entry in judged)
    counts = {
        "divergence": (sum(row["kl_kept"] for row in rows), len(rows), AIM),
        "saving": (sum(row["hindsight"]["kept"] for row in rows), len(rows), AIM),
        "bd-rate": (won, len(workloads), 0.5),
    }
    return [
        {
            "kind": "goal",
            "name": name,
            "kept": kept,
            "of": of,
            "aim": aim,
            # Most workloads is more than half; of cells at least so many.
            "met": kept / of > aim if name == "bd-rate" else kept / of >= aim,
        }
        for name, (kept, of, aim) in counts.items()
    ]


def _prediction(rows: Sequence[Row]) -> dict[str, Any]:
    """How predicted and measured divergence and saving of the plans compare."""
    plans = [row["plan"] for row in rows]
    ratios = [
        math.log(plan["kl_measured"] / plan["kl_predicted"])
        for plan in plans
        if plan["kl_measured"] > 0 and plan["kl_predicted"] > 0
    ]
    covered = [plan["kl_low"] <= plan["kl_measured"] <= plan["kl_high"] for plan in plans]
    compression = [abs(math.log(p["compression_measured"] / p["compression_predicted"])) for p in plans]
    return {
        "kind": "prediction",
        "kl_ratio_geometric_mean": math.exp(float(np.mean(ratios))) if ratios else None,
        "kl_ratio_median_abs_log": float(np.median(np.abs(ratios))) if ratios else None,
        "kl_band_coverage": float(np.mean(covered)),
        "compression_median_abs_log_ratio": float(np.median(compression)),
    }


def _tolerance(rows: Sequence[Row]) -> dict[str, Any]:
    """What planning by the foreseen divergence and its band, not the measured mean alone, kept and cost."""
    limit = rows[0]["tolerance"] * rows[0]["max_kl"]
    return {
        "kind": "tolerance",
        "kept_by_band": sum(row["kl_kept"] for row in rows),
        "kept_by_mean": sum(row["by_mean"]["kl_measured"] <= limit for row in rows),
        "of": len(rows),
        "saving_by_band": _mean(row["plan"]["saving_measured"] for row in rows),
        "saving_by_mean": _mean(row["by_mean"]["saving_measured"] for row in rows),
    }


def _workload(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    deltas = [row["bd_rate"]["percent"] for row in rows if row["bd_rate"]["percent"] is not None]
    return {
        "kind": "workload",
        "workload": name,
        "cells": len(rows),
        "kl_kept": sum(row["kl_kept"] for row in rows),
        "saving_kept": sum(row["hindsight"]["kept"] for row in rows),
        "kl_measured": [row["plan"]["kl_measured"] for row in rows],
        "saving": _mean(row["plan"]["saving_measured"] for row in rows),
        "hindsight_saving": _mean(row["hindsight"]["saving"] for row in rows),
        "goal_saving": _mean(row["hindsight_within_goal"]["saving"] for row in rows),
        "bd_rate": float(np.median(deltas)) if deltas else None,
        "bd_rates": [row["bd_rate"]["percent"] for row in rows],
        "exact_share": [row["sensitivity"]["exact_share"] for row in rows],
    }


def _drift(target: str, rows: Sequence[Row]) -> dict[str, Any]:
    """What the plans of other workloads gave on this one."""
    pairs = [(row, to) for row in rows for to in row["drift"] if to["to"] == target]
    limits = [row["tolerance"] * row["max_kl"] for row, _ in pairs]
    return {
        "kind": "drift",
        "to": target,
        "cells": len(pairs),
        "kl_kept": sum(to["kl"] <= limit for (_, to), limit in zip(pairs, limits, strict=True)),
        "kl_median": float(np.median([to["kl"] for _, to in pairs])),
        "kl_highest": max(to["kl"] for _, to in pairs),
        "saving": _mean(to["saving"] for _, to in pairs),
        "saving_at_home": _mean(row["plan"]["saving_measured"] for row, _ in pairs),
    }


def _sensitivity(rows: Sequence[Row]) -> dict[str, Any]:
    """Whether what calibration says of a plan's sensitivity goes with how far measured divergence was off.

    Spearman's rank correlation with |ln(measured / predicted)|; None where there are fewer than three cells.
    """
    off = {
        index: abs(math.log(row["plan"]["kl_measured"] / row["plan"]["kl_predicted"]))
        for index, row in enumerate(rows)
        if row["plan"]["kl_measured"] > 0 and row["plan"]["kl_predicted"] > 0
    }
    found: dict[str, Any] = {"kind": "sensitivity", "cells": len(off)}
    for name in ("ln_kl_per_hundredth", "heaviest_share"):
        pairs = [
            (told, off[index]) for index in off if (told := rows[index]["sensitivity"][name]) is not None
        ]
        told, wrong = zip(*pairs, strict=True) if pairs else ((), ())
        varied = len(set(told)) > 2 and len(set(wrong)) > 2
        rank = float(scipy.stats.spearmanr(told, wrong).statistic) if varied else None
        found[f"rank_correlation_{name}"] = rank
    return found


def _words(
    first: Row,
    goals: Sequence[Row],
    workloads: Sequence[Row],
    prediction: Row,
    tolerance: Row,
    drift: Sequence[Row],
) -> list[str]:
    limit = first["tolerance"] * first["max_kl"]
    texts = {
        "divergence": f"divergence at most {limit:g} nats on held-out requests where {first['max_kl']:g} was "
        "asked for",
        "saving": "at least 90 % of what the best single threshold saves within the same divergence, chosen "
        "in hindsight",
        "bd-rate": "fewer bytes than single settings at equal divergence (BD-rate)",
    }
    sentences = []
    for goal in sorted(goals, key=lambda goal: goal["met"]):
        cells = "workloads" if goal["name"] == "bd-rate" else "cells"
        verdict = "kept" if goal["met"] else "missed"
        aim = "more than half" if goal["name"] == "bd-rate" else f"{goal['aim']:.0%}"
        sentences.append(
            f"{verdict}: {texts[goal['name']]}: {goal['kept']} of {goal['of']} {cells} (aim: {aim})."
        )
    broken = [
        f"{entry['workload']} ({', '.join(f'{kl:.4f}' for kl in entry['kl_measured'])})"
        for entry in workloads
        if entry["kl_kept"] < entry["cells"]
    ]
    if broken:
        sentences.append(f"Divergence above the limit on {'; '.join(broken)}.")
    short = [
        f"{entry['workload']} ({entry['saving']:.1%} against {entry['hindsight_saving']:.1%})"
        for entry in workloads
        if entry["saving_kept"] < entry["cells"]
    ]
    if short:
        sentences.append(f"Savings that fall short in some cell: {'; '.join(short)}.")
    lost = [
        f"{entry['workload']} ({_percent(entry['bd_rate'])})"
        for entry in workloads
        if entry["bd_rate"] is None or entry["bd_rate"] >= 0
    ]
    if lost:
        sentences.append(f"A setting per layer does not beat single ones on {'; '.join(lost)}.")
    if prediction["kl_ratio_geometric_mean"] is not None:
        sentences.append(
            f"Held-out divergence is {prediction['kl_ratio_geometric_mean']:.2f} times the predicted one in "
            f"the geometric mean, and within its 90 % band in {prediction['kl_band_coverage']:.0%} of cells."
        )
    sentences.append(
        f"Planning by the foreseen divergence and its band keeps the limit in {tolerance['kept_by_band']} of "
        f"{tolerance['of']} cells and saves {tolerance['saving_by_band']:.1%}; by the measured mean alone it "
        f"would be {tolerance['kept_by_mean']} cells and {tolerance['saving_by_mean']:.1%}."
    )
    for entry in drift:
        sentences.append(
            f"Plans for other traffic, met by {entry['to']}: divergence up to {entry['kl_highest']:.3f}, "
            f"within the limit in {entry['kl_kept']} of {entry['cells']} cells; {entry['saving']:.1%} saved, "
            f"{entry['saving_at_home']:.1%} where they belong."
        )
    return sentences


def _percent(delta: float | None) -> str:
    return "no common range" if delta is None else f"{delta:+.1f} %"


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
