"""Transfer between models and workloads: whose law predicts whom, whose thresholds keep their promise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ratedist.errors import InputError
from ratedist.figures.style import predictor_style, style
from ratedist.records import Record

__all__ = ["plot_law_transfer", "plot_threshold_transfer", "save_transfer_figure"]

_HIGHEST = 1.0
"""Error at which the colours end: a factor of 2.7."""

_RELATIONS = {
    "own": ("other requests of the same", "#0072B2", "o"),
    "other workload": ("another workload", "#E69F00", "s"),
    "other model": ("another model", "#D55E00", "D"),
}
_QUANTITIES = {
    "k_error": "keys' error ≤ {:g}",
    "v_error": "values' error ≤ {:g}",
    "compression": "compression ≥ {:g}×",
}


def save_transfer_figure(record: Record, folder: Path) -> Path:
    """Draw both pictures of a transfer's record (its summary suffices) side by side as ``transfer.png``.

    Raises InputError where the record holds no matrix.
    """
    with style():
        ends = _ends(_matrix(record))
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(0.62 * len(ends) + 8.2, 0.46 * len(ends) + 2.6), width_ratios=(1.2, 1)
        )
        plot_law_transfer(record, left)
        plot_threshold_transfer(record, right)
        path = folder / "transfer.png"
        figure.savefig(path)
        plt.close(figure)
    return path


def plot_law_transfer(record: Record, ax: Axes) -> None:
    """Median error of the chosen predictor by the capture that calibrates (line) and that measured (column).

    On the diagonal a capture predicts other requests of its own. Pairs that share neither model nor workload
    are not compared, and a pair without a row that counts has no number.

    Raises InputError where the record holds no matrix.
    """
    entries = _matrix(record)
    ends = _ends(entries)
    values = np.full((len(ends), len(ends)), np.nan)
    compared = np.zeros(values.shape, dtype=bool)
    for entry in entries:
        place = ends.index(_source(entry)), ends.index(_target(entry))
        compared[place] = True
        if entry["median_abs_log_ratio"] is not None:
            values[place] = entry["median_abs_log_ratio"]
    ax.set_facecolor("#F2F2F2")
    image = ax.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=_HIGHEST)
    for (line, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < 0.55 * _HIGHEST else "black"
            ax.text(column, line, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
        elif compared[line, column]:
            ax.text(column, line, "–", ha="center", va="center", color="#555555", fontsize=8)
    names = [workload for _, workload in ends]
    ax.grid(False)
    ax.set_xticks(range(len(ends)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(ends)), names)
    ax.set_xlabel("measured on")
    ax.set_ylabel("calibrated on (models in the same order)")
    _mark_models(ax, [model for model, _ in ends])
    bar = ax.figure.colorbar(image, ax=ax, extend="max", fraction=0.04, pad=0.02)
    bar.set_label("median |ln(predicted / measured compression)|")
    look = predictor_style(entries[0]["predictor"])
    ax.set_title(f"laws ({look['label']}); grey: not compared, –: hardly anything fuses", loc="left", pad=22)


def plot_threshold_transfer(record: Record, ax: Axes) -> None:
    """What a threshold chosen for a goal gives elsewhere, as a multiple of the goal.

    A mark is the median over captures, layers and seeds, a line holds the middle 80 % of them.

    Raises InputError where the record holds no transfer of thresholds.
    """
    entries = [e for e in record.summary if e["kind"] == "threshold"]
    drawn = [entry for entry in entries if entry["median_value_over_goal"] is not None]
    if not drawn:
        raise InputError("record", "no thresholds", "run ratedist transfer with at least one --goal")
    goals = list(dict.fromkeys((entry["quantity"], entry["goal"]) for entry in entries))
    lowest = min(entry["p10_value_over_goal"] for entry in drawn if entry["p10_value_over_goal"] > 0)
    for entry in drawn:
        label, colour, marker = _RELATIONS[entry["relation"]]
        place = goals.index((entry["quantity"], entry["goal"]))
        height = place + 0.25 * (list(_RELATIONS).index(entry["relation"]) - 1)
        ends = [max(entry[f"{q}_value_over_goal"], 0.8 * lowest) for q in ("p10", "p90")]
        ax.plot(ends, [height, height], color=colour, linewidth=2.2, solid_capstyle="butt")
        middle = max(entry["median_value_over_goal"], 0.8 * lowest)
        ax.plot(middle, height, marker, color=colour, markersize=6.5, label=label if place == 0 else None)
    ax.axvline(1, color="black", linewidth=1, linestyle="--")
    ax.set_xscale("log")
    _round_ticks(ax)
    ax.set_yticks(range(len(goals)), [_QUANTITIES[name].format(value) for name, value in goals])
    ax.set_ylim(len(goals) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(
        "reached on the target / goal\n(above 1 breaks a promised error,\nbelow 1 a promised compression)"
    )
    ax.set_title("thresholds chosen on", loc="left", pad=22)
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1.02, 1.0),
        ncols=3,
        borderpad=0,
        handletextpad=0.1,
        columnspacing=0.7,
        fontsize=7.5,
    )


def _matrix(record: Record) -> list[dict[str, Any]]:
    """The chosen predictor's entries, the first one's where none was chosen."""
    entries = [e for e in record.summary if e["kind"] == "matrix"]
    name = next((e["predictor"] for e in entries if e["chosen"]), None)
    if name is None and entries:
        name = entries[0]["predictor"]
    chosen = [e for e in entries if e["predictor"] == name]
    if not chosen:
        raise InputError("record", "no matrix", "name the record that ratedist transfer wrote")
    return chosen


def _source(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["source_model"], entry["source_workload"]


def _target(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["model"], entry["workload"]


def _ends(entries: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Models and workloads, model by model, workloads in one order."""
    found = list(dict.fromkeys(end for entry in entries for end in (_target(entry), _source(entry))))
    models = list(dict.fromkeys(model for model, _ in found))
    workloads = list(dict.fromkeys(workload for _, workload in found))
    return sorted(found, key=lambda end: (models.index(end[0]), workloads.index(end[1])))


def _mark_models(ax: Axes, models: Sequence[str]) -> None:
    """Lines between models, and their names above the columns."""
    for model in dict.fromkeys(models):
        first, count = models.index(model), models.count(model)
        if first:
            ax.axvline(first - 0.5, color="black", linewidth=1.2)
            ax.axhline(first - 0.5, color="black", linewidth=1.2)
        short = model if len(model) <= 7 * count else f"{model[: 7 * count - 1]}…"
        ax.text(first + (count - 1) / 2, -0.65, short, ha="center", va="bottom", fontsize=8.5)


def _round_ticks(ax: Axes) -> None:
    """Plain numbers on a logarithmic axis."""
    low, high = ax.get_xlim()
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
