"""What the rows of a transfer say: errors by source and target, thresholds that keep their promise or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.suite_record import Columns
from ratedist.validate.suite.summary import summarise_transfer
from ratedist.validate.transfer.matched import MatchedCapture
from ratedist.validate.transfer.rows import relation

__all__ = ["ALLOWED", "BEYOND", "describe", "summarise"]

BEYOND = 1.25
"""A goal counts as missed by far where the error is more than so many times the limit, or the compression
less than the limit by this factor."""

ALLOWED = 2.0
"""A law counts as transferred where its median error is at most so many times that of calibrating on the
capture itself, or at most ``BEYOND`` times the noise of measuring."""

RELATIONS = ("own", "other workload", "other model")

_FIGURES = (
    "rows",
    "refused",
    "median_abs_log_ratio",
    "p90_abs_log_ratio",
    "noise_median",
    "median_over_noise",
    "band_coverage",
)

Entry = dict[str, Any]


def summarise(
    columns: Columns,
    thresholds: Sequence[Mapping[str, Any]],
    captures: Sequence[MatchedCapture],
    chosen: str | None,
) -> list[Entry]:
    """Entries of five kinds.

    Args:
        columns: of ``ratedist.validate.suite.rows.collect``.
        thresholds: from ``ratedist.validate.transfer.rows.threshold_rows``.
        captures: the matched captures.
        chosen: the predictor that was chosen within the calibration requests of the captures.

    Returns:
        - ``"relation"``: by relation (``RELATIONS``) and predictor, over the rows that count (see
          ``ratedist.validate.suite.summary.summarise_suite``): ``median_abs_log_ratio``,
          ``p90_abs_log_ratio``, ``noise_median``, ``median_over_noise``, ``band_coverage``, ``rows``,
          ``refused``; and ``unfused_median``, the median error of the guess that nothing fuses;
        - ``"models"``: the same by source model and target model, over equal workloads;
        - ``"matrix"``: the same by source and target, model and workload of each;
        - ``"threshold"``: by relation, quantity and goal: ``cells``, ``undetermined`` of them (the source
          has no such threshold), quantiles ``p10_``, ``median_`` and ``p90_value_over_goal`` in the target,
          and the share ``beyond`` the goal by more than the factor ``BEYOND``;
        - ``"threshold matrix"``: the same by source and target.

        Entries of predictions have ``chosen``.
    """
    by_name = {capture.manifest.workload: capture for capture in captures}
    sources = [by_name[name] for name in columns["calibrated_on"].tolist()]
    targets = [by_name[name] for name in columns["workload"].tolist()]
    related = [relation(*pair) for pair in zip(sources, targets, strict=True)]
    entries = _predictions("relation", columns, related, ["all"] * len(related), ("relation", None))
    across = np.array([name != "other workload" for name in related])
    entries += _predictions(
        "models",
        {name: column[across] for name, column in columns.items()},
        [capture.model for capture, kept in zip(sources, across, strict=True) if kept],
        [capture.model for capture, kept in zip(targets, across, strict=True) if kept],
        ("source_model", "model"),
    )
    for entry in _predictions(
        "matrix",
        columns,
        columns["calibrated_on"].tolist(),
        columns["workload"].tolist(),
        ("source", "target"),
    ):
        source, target = by_name[entry.pop("source")], by_name[entry.pop("target")]
        entries.append({"kind": entry.pop("kind"), **_names(source, target), **entry})
    for entry in entries:
        entry["chosen"] = entry["predictor"] == chosen
    return [*entries, *_thresholds(thresholds)]


def _predictions(
    kind: str,
    columns: Columns,
    sources: Sequence[str],
    targets: Sequence[str],
    names: tuple[str, str | None],
) -> list[Entry]:
    """Figures by named groups of sources and targets, as the suite's transfer has them by workload."""
    if not sources:
        return []
    # A name that no target has: the suite leaves a transfer out where every row is a workload's own.
    groups = {
        **columns,
        "calibrated_on": np.array([f"from {name}" for name in sources], dtype=object),
        "workload": np.array(targets, dtype=object),
    }
    guess = np.abs(np.log(columns["compression_measured"]))
    entries = []
    for found in summarise_transfer(groups):
        here = (
            (groups["calibrated_on"] == found["calibrated_on"])
            & (groups["workload"] == found["workload"])
            & (columns["predictor"] == found["predictor"])
            & (columns["counts"] > 0)
        )
        ends = zip(names, (found["calibrated_on"].removeprefix("from "), found["workload"]), strict=True)
        entries.append(
            {
                "kind": kind,
                **{name: value for name, value in ends if name is not None},
                "predictor": found["predictor"],
                **{name: found[name] for name in _FIGURES},
                "unfused_median": float(np.median(guess[here])) if here.any() else None,
            }
        )
    return entries


def _names(source: MatchedCapture, target: MatchedCapture) -> Entry:
    return {
        "source_model": source.model,
        "source_workload": source.own_workload,
        "model": target.model,
        "workload": target.own_workload,
    }


def _thresholds(rows: Sequence[Mapping[str, Any]]) -> list[Entry]:
    goal = ("quantity", "goal")
    ends = ("source_model", "source_workload", "model", "workload")
    entries = [
        {"kind": "threshold", **dict(zip(("relation", *goal), key, strict=True)), **_kept_promises(group)}
        for key, group in _grouped(rows, ("relation", *goal))
    ]
    entries += [
        {"kind": "threshold matrix", **dict(zip((*ends, *goal), key, strict=True)), **_kept_promises(group)}
        for key, group in _grouped(rows, (*ends, *goal))
    ]
    return entries


def _grouped(
    rows: Sequence[Mapping[str, Any]], fields: Sequence[str]
) -> Iterable[tuple[tuple[Any, ...], list[Mapping[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in fields), []).append(row)
    return groups.items()


def _kept_promises(rows: Sequence[Mapping[str, Any]]) -> Entry:
    ratios = np.array([row["value_over_goal"] for row in rows if row["value_over_goal"] is not None])
    low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9)).tolist() if len(ratios) else (None,) * 3
    return {
        "cells": len(rows),
        "undetermined": len(rows) - len(ratios),
        "p10_value_over_goal": low,
        "median_value_over_goal": middle,
        "p90_value_over_goal": high,
        "beyond": float(_beyond(rows[0]["quantity"], ratios).mean()) if len(ratios) else None,
    }


def _beyond(quantity: str, ratios: NDArray[np.float64]) -> NDArray[np.bool_]:
    return ratios < 1 / BEYOND if quantity == "compression" else ratios > BEYOND


def describe(summary: Sequence[Mapping[str, Any]], chosen: str | None) -> list[str]:
    """The result in words: what transfers, and by how much it is worse than calibrating anew.

    A law transfers where it does between every two captures: a median over all would hide one direction.
    """
    found = {e["relation"]: e for e in summary if e["kind"] == "relation" and e["predictor"] == chosen}
    own = found.get("own", {}).get("median_abs_log_ratio")
    words = [] if chosen else ["No predictor was chosen: the captures have too few requests to tell."]
    for name in RELATIONS[1:]:
        error = found.get(name, {}).get("median_abs_log_ratio")
        if error is None or own is None:
            continue
        noise, unfused = found[name]["noise_median"] or 0.0, found[name]["unfused_median"]
        pairs = _pairs(summary, chosen, name)
        worst = max(pairs, key=lambda pair: pair["median_abs_log_ratio"], default=None)
        most = error if worst is None else max(error, worst["median_abs_log_ratio"])
        transfers = most <= max(ALLOWED * own, BEYOND * noise)
        where = "" if worst is None else f" (worst: {_pair_name(worst)}, {worst['median_abs_log_ratio']:.3f})"
        words.append(
            f"The law of {chosen} {'transfers' if transfers else 'does not transfer'} from another "
            f"{name.split()[1]}: median |ln(predicted/measured compression)| {error:.3f}{where}, calibrated "
            f"on the same capture {own:.3f}, noise of measuring {noise:.3f}; guessing that nothing fuses "
            f"gives {unfused:.3f}."
        )
    return [*words, *(_promise(entry, summary) for entry in summary if _is_moved(entry))]


def _pairs(
    summary: Sequence[Mapping[str, Any]], chosen: str | None, relation: str
) -> list[Mapping[str, Any]]:
    """Entries of the matrix between captures of one relation, where rows count."""
    same = "model" if relation == "other workload" else "workload"
    other = "workload" if same == "model" else "model"
    return [
        entry
        for entry in summary
        if entry["kind"] == "matrix"
        and entry["predictor"] == chosen
        and entry["median_abs_log_ratio"] is not None
        and entry[f"source_{same}"] == entry[same]
        and entry[f"source_{other}"] != entry[other]
    ]


def _pair_name(entry: Mapping[str, Any]) -> str:
    if entry["source_model"] == entry["model"]:
        return f"{entry['source_workload']} for {entry['workload']}, {entry['model']}"
    return f"{entry['source_model']} for {entry['model']}, {entry['workload']}"


def _is_moved(entry: Mapping[str, Any]) -> bool:
    return entry["kind"] == "threshold" and entry["relation"] != "own" and entry["beyond"] is not None


def _promise(entry: Mapping[str, Any], summary: Sequence[Mapping[str, Any]]) -> str:
    own = next(
        other
        for other in summary
        if other["kind"] == "threshold"
        and (other["relation"], other["quantity"], other["goal"]) == ("own", entry["quantity"], entry["goal"])
    )
    missed = "" if own["beyond"] is None else f" (its own requests: {own['beyond']:.0%})"
    what = {"k_error": "keys' error at most", "v_error": "values' error at most"}.get(
        entry["quantity"], "compression at least"
    )
    return (
        f"A threshold for {what} {entry['goal']:g}, chosen on another {entry['relation'].split()[1]}, gave "
        f"{entry['median_value_over_goal']:.2f} times that (80 % of cells {entry['p10_value_over_goal']:.2f} "
        f"to {entry['p90_value_over_goal']:.2f}) and missed by more than a quarter in {entry['beyond']:.0%}"
        f"{missed}."
    )
