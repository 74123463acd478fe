"""What a suite found, in words; what fails comes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ratedist.suite_record import Columns
from ratedist.validate.suite.run import LayerWork
from ratedist.validate.suite.tasks import Suite
from ratedist.validate.summary import ALL

__all__ = ["covered", "describe", "is_whole", "transferred", "unseen"]


def describe(
    summary: Sequence[dict[str, Any]], goals: Sequence[dict[str, Any]], chosen: str | None, coverage: str
) -> list[str]:
    """The result in words, a sentence or two each; what fails comes first.

    Args:
        summary: from ``summarise_suite``.
        goals: from ``goals_of``.
        chosen: the predictor that was chosen.
        coverage: what the suite covers, in words.
    """
    words = []
    if chosen is None:
        words.append("No predictor was chosen, so none can be held to the goals.")
    judged = [goal for goal in goals if goal["predictor"] == chosen]
    missed = [goal for goal in judged if not goal["met"]]
    if judged:
        outcome = f"{len(missed)} of {len(judged)} goals are missed" if missed else "All goals are met"
        words.append(f"{outcome} by {chosen}, which was chosen on calibration requests alone.")
    words += [_missed(goal, summary) for goal in missed]
    words += [_met(goal) for goal in judged if goal["met"]]
    if chosen is not None and not judged:
        words.append("The goals are about 16 → 16 and 16 → 64, which this suite does not hold.")
    refusals = [
        entry for entry in summary if entry["workload"] == ALL and is_whole(entry) and entry["refused"]
    ]
    words += [
        f"{entry['predictor']} predicted nothing in {entry['refused']} of {entry['rows']} rows at "
        f"{entry['n']} → {entry['m']}."
        for entry in refusals
    ]
    return [*words, coverage]


def covered(
    work: Sequence[LayerWork], suite: Suite, finished: int, cells: int, checks: Sequence[dict[str, Any]]
) -> str:
    """What the suite covers, in words."""
    manifest = work[0].capture.manifest
    layers: dict[str, int] = {}
    for item in work:
        name = item.capture.manifest.workload
        layers[name] = layers.get(name, 0) + 1
    counts = sorted(set(layers.values()))
    spread = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    sizes = ", ".join(f"{n} → {m}" for n, m in sorted({size[:2] for item in work for size in item.sizes}))
    pairs = {
        (size.source, item.capture.manifest.workload)
        for item in work
        for size in item.sizes
        if size.source != item.capture.manifest.workload
    }
    across = {"bff": "requests", "cff": f"chunks of {suite.chunk_blocks} blocks"}
    modes = dict.fromkeys(size.mode for item in work for size in item.sizes)
    other = sum(check["kept"] != check["kept_looked_up"] for check in checks)
    text = (
        f"Covered: {manifest.model}, {len(layers)} workloads, {spread} of {manifest.model_layers} layers, "
        f"splits {sizes} with {len(suite.seeds)} seeds, thresholds {min(suite.thresholds):g} to "
        f"{max(suite.thresholds):g}, {' and '.join(suite.variants)} across "
        f"{' and across '.join(across[mode] for mode in modes)}, by {' and '.join(suite.criteria)}; "
        f"{finished} of {cells} cells are finished."
    )
    if pairs:
        text += f" Predictions were transferred between {_pairs(len(pairs))} of workloads."
    if checks:
        text += f" {len(checks)} fusions were repeated without looked-up scores: {other} kept other counts."
    return text


def transferred(transfer: Sequence[dict[str, Any]], chosen: str | None) -> list[str]:
    """In words, how far the chosen predictor is off where another workload calibrated; nothing if never.

    Args:
        transfer: from ``ratedist.validate.suite.summary.summarise_transfer``.
        chosen: the predictor that was chosen; the first where None.
    """
    if not transfer:
        return []
    chosen = transfer[0]["predictor"] if chosen is None else chosen
    known = [e for e in transfer if e["predictor"] == chosen and e["median_abs_log_ratio"] is not None]
    own = [e["median_abs_log_ratio"] for e in known if e["calibrated_on"] == e["workload"]]
    others = [e for e in known if e["calibrated_on"] != e["workload"]]
    if not own or not others:
        return []
    worst = max(others, key=lambda entry: entry["median_abs_log_ratio"])
    errors = [entry["median_abs_log_ratio"] for entry in others]
    return [
        f"Calibrated on another workload, {chosen} is off by {np.median(errors):.2f} in the median of "
        f"{_pairs(len(others))} (on its own by {np.median(own):.2f}), at worst by "
        f"{worst['median_abs_log_ratio']:.2f}, from {worst['calibrated_on']} to {worst['workload']}."
    ]


def unseen(columns: Columns) -> list[str]:
    """In words, how often no pair of calibration blocks exceeded the threshold; nothing if never."""
    none = (columns["calibration_exceedances"] == 0) & (columns["counts"] > 0)
    if not none.any():
        return []
    cells = np.count_nonzero(columns["counts"])
    return [
        f"In {none.sum() / cells:.1%} of the rows that count no pair of calibration blocks exceeded the "
        "threshold: predictions there rest on what lies below it. Calibrating on more requests would help."
    ]


def is_whole(entry: dict[str, Any]) -> bool:
    """Whether an entry is about every mode, variant and criterion."""
    return all(entry.get(name) is None for name in ("mode", "variant", "criterion"))


_GOAL_NAMES = {"median": "the median error", "p90": "the 90 % quantile of the error", "coverage": "coverage"}


def _missed(goal: dict[str, Any], summary: Sequence[dict[str, Any]]) -> str:
    where = f"{_GOAL_NAMES[goal['goal']]} at {goal['n']} → {goal['m']}"
    if goal["value"] is None:
        return f"Missed: {where} cannot be judged over {goal['rows']} rows."
    if goal["goal"] == "coverage":
        low, high = goal["limit"]
        return (
            f"Missed: {where} is {goal['value']:.0%}{_interval(goal)}, not {low:.0%} to {high:.0%}, over "
            f"{goal['rows']} rows."
        )
    field = f"{goal['goal']}_abs_log_ratio"
    alike = [
        entry
        for entry in summary
        if entry["workload"] != ALL
        and is_whole(entry)
        and (entry["predictor"], entry["n"], entry["m"]) == (goal["predictor"], goal["n"], goal["m"])
        and entry[field] is not None
    ]
    aside = ""
    if goal["met_against_split_half"]:
        aside = f" (two halves of the data differ so much that {goal['split_half_limit']:.3f} would be met)"
    if goal["sample"] is not None:
        aside += f"; the best that {goal['n']} requests can tell would show {goal['sample']:.3f}"
    worst = sorted(alike, key=lambda entry: entry[field], reverse=True)[:3]
    named = ", ".join(f"{entry['workload']} {entry[field]:.3f}" for entry in worst)
    return (
        f"Missed: {where} is {goal['value']:.3f}{_interval(goal)}, {goal['value'] / goal['limit']:.1f} times "
        f"the limit of {goal['limit']:.3f}, over {goal['rows']} rows{aside}; worst: {named}."
    )


def _met(goal: dict[str, Any]) -> str:
    where = f"{_GOAL_NAMES[goal['goal']]} at {goal['n']} → {goal['m']}"
    if goal["goal"] == "coverage":
        return f"Met: {where} is {goal['value']:.0%}{_interval(goal)}."
    return f"Met: {where} is {goal['value']:.3f}{_interval(goal)} (limit {goal['limit']:.3f})."


def _interval(goal: dict[str, Any]) -> str:
    """In which the value lies over other splits, in words; nothing where that is not known."""
    if goal["over_splits"] is None:
        return ""
    form = ".0%" if goal["goal"] == "coverage" else ".3f"
    low, high = (format(end, form) for end in goal["over_splits"])
    return f" ({low} to {high} over other splits)"


def _pairs(count: int) -> str:
    return f"{count} pair" if count == 1 else f"{count} pairs"
