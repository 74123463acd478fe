"""What a suite's rows say: errors beside the noise floor, goals met or missed, and the result in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.records import provenance
from ratedist.suite_record import Columns, SuiteRecord
from ratedist.validate.suite.folder import SuiteFolder
from ratedist.validate.suite.rows import Choice, choose, collect
from ratedist.validate.suite.run import LayerWork, fingerprint
from ratedist.validate.suite.tasks import Suite
from ratedist.validate.summary import ALL

__all__ = [
    "COVERAGE",
    "GOALS",
    "GOAL_SPLITS",
    "NOISE_FACTOR",
    "describe",
    "goals_of",
    "make_record",
    "summarise_suite",
    "summarise_transfer",
]

GOALS = {"median": 0.05, "p90": 0.15}
NOISE_FACTOR = 1.25
COVERAGE = (0.85, 0.95)
"""Asked of the chosen predictor over all workloads: the median and the 90 % quantile of
|ln(predicted/measured)| at most this, or at most so many times the same quantile of the noise where that is
larger; and bands that hold the measurement in this share of the rows."""

GOAL_SPLITS = ((16, 16), (16, 64))
"""Splits that the goals are about."""

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def make_record(
    suite: Suite,
    work: Sequence[LayerWork],
    folder: SuiteFolder,
    *,
    command: list[str] | None = None,
) -> SuiteRecord:
    """The record of all finished cells of a suite.

    Args:
        suite: that was run.
        work: its cells, finished or not.
        folder: that holds the finished ones.
        command: what the record names as the command that made it; this process's own where None.

    Raises InputError where no split is finished.
    """
    columns = collect(suite, work, folder)
    choice = choose(suite, work, folder)
    chosen = choice.chosen
    summary = summarise_suite(columns, choice)
    goals = goals_of(summary)
    keys = [key for item in work for key in (*item.noise, *item.splits)]
    finished = sum(folder.has(key) for key in keys)
    checks = [
        check
        for item in work
        for key in item.splits
        if folder.has(key)
        for check in folder.read(key).get("rechecked", [])
    ]
    coverage = _coverage(work, suite, finished, len(keys), checks)
    return SuiteRecord(
        provenance=provenance(
            command,
            suite=suite.to_json(),
            captures=[
                {
                    "workload": manifest.workload,
                    "model": manifest.model,
                    "weights_hash": manifest.weights_hash,
                    "dtype": manifest.dtype,
                    "requests": manifest.requests,
                    "seed": manifest.seed,
                    "fingerprint": fingerprint(manifest),
                }
                for manifest in {id(item.capture): item.capture.manifest for item in work}.values()
            ],
            layers={
                workload: sorted({item.layer for item in work if item.capture.manifest.workload == workload})
                for workload in dict.fromkeys(item.capture.manifest.workload for item in work)
            },
            choice=asdict(choice),
            cells={"finished": finished, "all": len(keys)},
            rechecked={
                "fusions": len(checks),
                "other_kept": sum(check["kept"] != check["kept_looked_up"] for check in checks),
            },
        ),
        words=[*describe(summary, goals, chosen, coverage), *_unseen(columns)],
        goals=goals,
        summary=summary,
        columns=columns,
        transfer=summarise_transfer(columns),
    )


def summarise_suite(columns: Columns, choice: Choice | None = None) -> list[dict[str, Any]]:
    """Errors by workload, split and predictor, then over all workloads, and there by variant and criterion.

    Args:
        columns: rows of a suite.
        choice: of a predictor, not by these errors.

    Returns:
        Entries with ``workload`` (``"all"`` for all), ``n``, ``m``, ``mode``, ``variant`` and ``criterion``
        (None for all), ``predictor``, and over the rows that count (measured compression between 1.05 and
        0.9 × the requests measured, or the chunks of one):

        - ``rows``, how many there are, and ``refused``, in how many of them the predictor gave nothing;
        - ``median_abs_log_ratio`` and ``p90_abs_log_ratio``; a refusal counts as infinitely wrong, and the
          quantile is None where it falls on one or where no row counts;
        - ``noise_median`` and ``noise_p90``, the same quantiles of ``noise_draw``: what a prediction would
          show that knew the workload exactly; ``median_over_noise`` and ``p90_over_noise``, the ratios;
        - ``band_coverage``, the share of rows whose band holds the measurement, of those that have one;
        - ``calibration_seconds``, the median per layer and criterion;
        - ``chosen`` and ``held_out_error``, the error it was chosen by, on rows over all workloads alone.
    """
    columns = {
        name: column[columns["calibrated_on"] == columns["workload"]] for name, column in columns.items()
    }
    count = columns["counts"] > 0
    error = np.nan_to_num(columns["abs_log_ratio"], nan=np.inf)
    entries = []
    workloads = list(dict.fromkeys(columns["workload"].tolist()))
    predictors = list(dict.fromkeys(columns["predictor"].tolist()))
    sizes = sorted(set(zip(columns["n"].tolist(), columns["m"].tolist(), strict=True)))
    settings = dict.fromkeys(zip(columns["variant"].tolist(), columns["criterion"].tolist(), strict=True))
    modes = list(dict.fromkeys(columns["mode"].tolist()))
    groups: list[tuple[str, str | None, str | None, str | None]] = [
        (workload, None, None, None) for workload in [*workloads, ALL]
    ]
    if len(modes) > 1:
        groups += [(workload, mode, None, None) for mode in modes for workload in [*workloads, ALL]]
    if len(settings) > 1:
        groups += [(ALL, None, variant, criterion) for variant, criterion in settings]
    fields = ("workload", "mode", "variant", "criterion")
    at = {
        name: {value: columns[name] == value for value in dict.fromkeys(columns[name].tolist())}
        for name in (*fields, "predictor")
    }
    for n, m in sizes:
        of_size = (columns["n"] == n) & (columns["m"] == m)
        for group in groups:
            here = of_size.copy()
            for name, value in zip(fields, group, strict=True):
                if value is not None and value != ALL:
                    here &= at[name][value]
            for predictor in predictors:
                rows = here & at["predictor"][predictor]
                if not rows.any():
                    continue
                counted = rows & count
                entry = {
                    **dict(zip(fields, group, strict=True)),
                    "n": n,
                    "m": m,
                    "predictor": predictor,
                    **_figures(columns, counted, error),
                    "calibration_seconds": _finite(float(np.median(columns["calibration_seconds"][rows]))),
                }
                if group[0] == ALL:
                    entry["chosen"] = choice is not None and predictor == choice.chosen
                    entry["held_out_error"] = None if choice is None else choice.errors.get(predictor)
                entries.append(entry)
    return entries


def summarise_transfer(columns: Columns) -> list[dict[str, Any]]:
    """Errors where one workload calibrates and another (or the same) is measured.

    Returns:
        Nothing where no row is transferred. Else entries ``{calibrated_on, workload, n, m, predictor, rows,
        refused, median_abs_log_ratio, p90_abs_log_ratio, noise_median, …}`` as ``summarise_suite`` has them,
        for the splits and layers in which predictions are transferred, own workload included.
    """
    moved = columns["calibrated_on"] != columns["workload"]
    if not moved.any():
        return []
    # Only layers and splits that were transferred: over others a workload's own errors do not compare.
    place = np.array(
        [f"{n} {m} {layer}" for n, m, layer in zip(columns["n"], columns["m"], columns["layer"], strict=True)]
    )
    shared = np.isin(place, np.unique(place[moved]))
    columns = {name: column[shared] for name, column in columns.items()}
    error = np.nan_to_num(columns["abs_log_ratio"], nan=np.inf)
    fields = ("calibrated_on", "workload", "n", "m", "predictor")
    keys = list(zip(*(columns[name].tolist() for name in fields), strict=True))
    rows_of: dict[tuple[Any, ...], list[int]] = {}
    for number, key in enumerate(keys):
        rows_of.setdefault(key, []).append(number)
    entries = []
    for key, numbers in rows_of.items():
        counted = np.zeros(len(keys), dtype=bool)
        counted[numbers] = columns["counts"][numbers] > 0
        entries.append({**dict(zip(fields, key, strict=True)), **_figures(columns, counted, error)})
    return entries


def goals_of(summary: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether each predictor meets each goal, at the splits that the goals are about.

    Returns:
        Entries with ``predictor``, ``chosen``, ``n``, ``m``, ``goal`` (``"median"``, ``"p90"`` or
        ``"coverage"``), ``value``, ``limit`` (a pair for coverage), ``met``, ``missed_by`` (0 where met; the
        difference to the limit; None where there is no value) and ``rows``. What cannot be judged, for
        want of rows or of bands, is not met. Errors have two fields more: ``split_half_limit`` is the limit
        with √2 times the noise, which is what two disjoint halves differ by, so what a prediction would show
        that *is* the measurement of m other requests; ``met_against_split_half`` says whether it is met.
    """
    goals = []
    for entry in summary:
        if entry["workload"] != ALL or not _whole(entry) or (entry["n"], entry["m"]) not in GOAL_SPLITS:
            continue
        common = {name: entry[name] for name in ("predictor", "chosen", "n", "m", "rows")}
        for goal in GOALS:
            value, noise = entry[f"{goal}_abs_log_ratio"], entry[f"noise_{goal}"]
            limit = max(GOALS[goal], 0.0 if noise is None else NOISE_FACTOR * noise)
            missed = None if value is None else max(0.0, value - limit)
            halves = max(GOALS[goal], 0.0 if noise is None else NOISE_FACTOR * math.sqrt(2) * noise)
            goals.append(
                {
                    **common,
                    "goal": goal,
                    "value": value,
                    "limit": limit,
                    "missed_by": missed,
                    "split_half_limit": halves,
                    "met_against_split_half": value is not None and value <= halves,
                }
            )
        value, (low, high) = entry["band_coverage"], COVERAGE
        missed = None if value is None else max(0.0, low - value, value - high)
        goals.append(
            {**common, "goal": "coverage", "value": value, "limit": [low, high], "missed_by": missed}
        )
    return [{**goal, "met": goal["missed_by"] == 0.0} for goal in goals]


def describe(
    summary: Sequence[dict[str, Any]], goals: Sequence[dict[str, Any]], chosen: str | None, covered: str
) -> list[str]:
    """The result in words, a sentence or two each; what fails comes first.

    Args:
        summary: from ``summarise_suite``.
        goals: from ``goals_of``.
        chosen: the predictor that was chosen.
        covered: what the suite covers, in words.
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
    refusals = [entry for entry in summary if entry["workload"] == ALL and _whole(entry) and entry["refused"]]
    words += [
        f"{entry['predictor']} predicted nothing in {entry['refused']} of {entry['rows']} rows at "
        f"{entry['n']} → {entry['m']}."
        for entry in refusals
    ]
    return [*words, covered]


def _coverage(
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
        text += f" Predictions were transferred between {len(pairs)} pairs of workloads."
    if checks:
        text += f" {len(checks)} fusions were repeated without looked-up scores: {other} kept other counts."
    return text


def _unseen(columns: Columns) -> list[str]:
    """In words, how often no pair of calibration blocks exceeded the threshold; nothing if never."""
    none = (columns["calibration_exceedances"] == 0) & (columns["counts"] > 0)
    if not none.any():
        return []
    cells = np.count_nonzero(columns["counts"])
    return [
        f"In {none.sum() / cells:.1%} of the rows that count no pair of calibration blocks exceeded the "
        "threshold: predictions there rest on what lies below it. Calibrating on more requests would help."
    ]


def _whole(entry: dict[str, Any]) -> bool:
    """Whether an entry is about every mode, variant and criterion."""
    return all(entry.get(name) is None for name in ("mode", "variant", "criterion"))


def _figures(columns: Columns, counted: BoolArray, error: FloatArray) -> dict[str, Any]:
    """Figures over the rows that count, see ``summarise_suite``."""
    errors, noise = error[counted], columns["noise_draw"][counted]
    noise = noise[np.isfinite(noise)]
    figures: dict[str, Any] = {"rows": int(counted.sum()), "refused": int(np.isinf(errors).sum())}
    for name, q in (("median", 0.5), ("p90", 0.9)):
        value, floor = _quantile(errors, q), _quantile(noise, q)
        figures[f"{name}_abs_log_ratio"] = value
        figures[f"noise_{name}"] = floor
        figures[f"{name}_over_noise"] = value / floor if value is not None and floor else None
    low, high = (columns.get(f"compression_predicted_{end}") for end in ("low", "high"))
    coverage = None
    if low is not None and high is not None:
        banded = counted & np.isfinite(low) & np.isfinite(high)
        measured = columns["compression_measured"]
        # Ends that equal the measurement hold it, rounding aside.
        held = (measured >= low * (1 - 1e-9)) & (measured <= high * (1 + 1e-9))
        coverage = float(held[banded].mean()) if banded.any() else None
    figures["band_coverage"] = coverage
    return figures


def _quantile(values: FloatArray, q: float) -> float | None:
    """Quantile by linear interpolation; None without values, or where it falls on an infinite one."""
    if len(values) == 0:
        return None
    ordered = np.sort(values)
    place = q * (len(ordered) - 1)
    if not math.isfinite(ordered[math.ceil(place)]):
        return None
    return float(np.quantile(ordered[np.isfinite(ordered)], place / max(1, np.isfinite(ordered).sum() - 1)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_GOAL_NAMES = {"median": "the median error", "p90": "the 90 % quantile of the error", "coverage": "coverage"}


def _missed(goal: dict[str, Any], summary: Sequence[dict[str, Any]]) -> str:
    where = f"{_GOAL_NAMES[goal['goal']]} at {goal['n']} → {goal['m']}"
    if goal["value"] is None:
        return f"Missed: {where} cannot be judged over {goal['rows']} rows."
    if goal["goal"] == "coverage":
        low, high = goal["limit"]
        return (
            f"Missed: {where} is {goal['value']:.0%}, not {low:.0%} to {high:.0%}, over {goal['rows']} rows."
        )
    field = f"{goal['goal']}_abs_log_ratio"
    alike = [
        entry
        for entry in summary
        if entry["workload"] != ALL
        and _whole(entry)
        and (entry["predictor"], entry["n"], entry["m"]) == (goal["predictor"], goal["n"], goal["m"])
        and entry[field] is not None
    ]
    halves = ""
    if goal["met_against_split_half"]:
        halves = f" (two halves of the data differ so much that {goal['split_half_limit']:.3f} would be met)"
    worst = sorted(alike, key=lambda entry: entry[field], reverse=True)[:3]
    named = ", ".join(f"{entry['workload']} {entry[field]:.3f}" for entry in worst)
    return (
        f"Missed: {where} is {goal['value']:.3f}, {goal['value'] / goal['limit']:.1f} times the limit of "
        f"{goal['limit']:.3f}, over {goal['rows']} rows{halves}; worst: {named}."
    )


def _met(goal: dict[str, Any]) -> str:
    where = f"{_GOAL_NAMES[goal['goal']]} at {goal['n']} → {goal['m']}"
    if goal["goal"] == "coverage":
        return f"Met: {where} is {goal['value']:.0%}."
    return f"Met: {where} is {goal['value']:.3f} (limit {goal['limit']:.3f})."
