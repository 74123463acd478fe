"""The rows of a transfer's record: predictions made from elsewhere, and thresholds chosen elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ratedist.suite_record import Columns
from ratedist.validate.transfer.matched import MatchedCapture
from ratedist.validate.transfer.thresholds import GRID, Goal, pick

if TYPE_CHECKING:
    from ratedist.validate.transfer.run import TransferPlan

__all__ = ["prediction_rows", "relation", "threshold_rows"]

Row = dict[str, Any]

_KEPT = (
    "seed",
    "variant",
    "criterion",
    "threshold",
    "predictor",
    "compression_measured",
    "compression_predicted",
    "compression_predicted_low",
    "compression_predicted_high",
    "abs_log_ratio",
    "noise_draw",
    "counts",
    "refused",
)
_DIGITS = 6


def relation(source: MatchedCapture, target: MatchedCapture) -> str:
    """How two captures are related: ``"own"`` (one and the same), ``"other model"`` (of one workload) or
    ``"other workload"`` (of one model)."""
    if source is target:
        return "own"
    return "other model" if source.own_workload == target.own_workload else "other workload"


def prediction_rows(columns: Columns, captures: Sequence[MatchedCapture]) -> list[Row]:
    """A row for every prediction.

    Args:
        columns: of ``ratedist.validate.suite.rows.collect``, workloads named as matched captures name them.
        captures: the matched captures.

    Returns:
        Rows of kind ``"prediction"``: ``source_model``, ``source_workload``, ``source_layer`` and ``model``,
        ``workload``, ``layer`` of the target, their ``relation``, and of the fields of
        ``ratedist.suite_record.SuiteRecord.columns`` the setting, the compression predicted and measured,
        ``abs_log_ratio``, ``noise_draw``, ``counts`` and ``refused``.
    """
    by_name = {capture.manifest.workload: capture for capture in captures}
    values = {name: column.tolist() for name, column in columns.items()}
    return [
        {
            "kind": "prediction",
            **_ends(
                by_name[values["calibrated_on"][number]],
                by_name[values["workload"][number]],
                values["layer"][number],
            ),
            **{name: _plain(values[name][number]) for name in _KEPT},
        }
        for number in range(len(values["workload"]))
    ]


def threshold_rows(
    pairs: Sequence[tuple[MatchedCapture, MatchedCapture]],
    plan: TransferPlan,
    curve: Callable[[MatchedCapture, int, int], Mapping[str, Any]],
) -> list[Row]:
    """A row for every goal and pair: the threshold that the source asks for, and what it gives in the target.

    Args:
        pairs: of source and target.
        plan: goals and seeds.
        curve: called with a capture, a layer and a seed; the cell of ``curve_cell``.

    Returns:
        Rows of kind ``"threshold"``: ends as in ``prediction_rows``, ``seed``, ``variant``, ``criterion``,
        ``quantity`` and ``goal``; the ``threshold`` chosen on the calibration requests of the source (None
        where none does what is asked), the ``chosen_value`` of the quantity there, and of the target's
        measured requests ``value``, ``value_over_goal``, ``k_error``, ``v_error`` and ``compression``.
    """
    rows = []
    for source, target in pairs:
        for layer in target.manifest.layers:
            for seed in plan.seeds:
                found = zip(
                    curve(source, layer, seed)["results"], curve(target, layer, seed)["results"], strict=True
                )
                for there, here in found:
                    for goal in plan.goals:
                        rows.append(
                            {
                                "kind": "threshold",
                                **_ends(source, target, layer),
                                "seed": seed,
                                "variant": here["variant"],
                                "criterion": here["criterion"],
                                **_transferred(there["calibration"], here["held_out"], goal),
                            }
                        )
    return rows


def _transferred(
    chosen_on: Mapping[str, Sequence[float]], measured: Mapping[str, Sequence[float]], goal: Goal
) -> Row:
    place = pick(chosen_on, goal)
    row: Row = {"quantity": goal.quantity, "goal": goal.value, "threshold": None, "chosen_value": None}
    if place is None:
        return row | dict.fromkeys(("value", "value_over_goal", "k_error", "v_error", "compression"))
    value = measured[goal.quantity][place]
    return row | {
        "threshold": GRID[place],
        "chosen_value": chosen_on[goal.quantity][place],
        "value": value,
        "value_over_goal": _plain(value / goal.value),
        **{name: measured[name][place] for name in ("k_error", "v_error", "compression")},
    }


def _ends(source: MatchedCapture, target: MatchedCapture, layer: int) -> Row:
    return {
        "relation": relation(source, target),
        "source_model": source.model,
        "source_workload": source.own_workload,
        "source_layer": source.chosen[layer],
        "model": target.model,
        "workload": target.own_workload,
        "layer": target.chosen[layer],
    }


def _plain(value: Any) -> Any:
    """A value for JSON: floats rounded, None for what is not finite."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
