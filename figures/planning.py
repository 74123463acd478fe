"""Plans on held-out requests: divergence against what was promised, and saving against a rival in hindsight.

Reads a record of schema ``ratedist/plan-check/1`` and computes nothing.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ratedist.figures.rows import distinct
from ratedist.figures.style import MEASURED, style
from ratedist.records import Record

__all__ = ["plot_divergence", "plot_saving", "save_planning_figure"]

_BAND, _LIMIT = "#56B4E9", "#D55E00"
_LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#000000", "P"),
    ("#56B4E9", "X"),
    ("#7F7F7F", "*"),
)
"""Colour and marker by workload; they repeat after eight."""


def plot_divergence(record: Record, ax: Axes) -> None:
    """Measured divergence of every cell beside the predicted band, with the goal and the limit."""
    first = record.rows[0]
    workloads = list(distinct(record.rows, "workload"))
    seeds = sorted(distinct(record.rows, "seed"))
    width = 0.6 / len(seeds)
    for row in record.rows:
        plan = row["plan"]
        x = workloads.index(row["workload"]) + (seeds.index(row["seed"]) - (len(seeds) - 1) / 2) * width
        again = row is not first
        ax.plot(
            [x, x],
            [plan["kl_low"], plan["kl_high"]],
            color=_BAND,
            linewidth=5,
            solid_capstyle="butt",
            label=None if again else "predicted, 90 % band",
        )
        ax.plot(x, plan["kl_measured"], label=None if again else "measured, held-out requests", **MEASURED)
    goal, limit = first["max_kl"], first["tolerance"] * first["max_kl"]
    ax.axhline(goal, color=_LIMIT, linestyle="--", linewidth=1.2, label=f"goal, {goal:g}")
    ax.axhline(limit, color=_LIMIT, linewidth=1.2, label=f"limit, {limit:g}")
    highest = max(max(row["plan"]["kl_high"], row["plan"]["kl_measured"]) for row in record.rows)
    ax.set_ylim(0, 1.25 * max(highest, limit))  # room for the legend above all lines
    ax.set_xticks(range(len(workloads)), workloads, rotation=30, ha="right")
    ax.grid(axis="x", visible=False)
    ax.set_ylabel("mean next-token divergence (nats)")
    ax.set_title("Divergence of plans" + (", a bar per seed" if len(seeds) > 1 else ""))
    ax.legend(fontsize=8, ncols=2, loc="upper left")


def plot_saving(record: Record, ax: Axes) -> None:
    """Saving of every plan over that of the best single threshold in hindsight at the same divergence."""
    most = 0.0
    least = 0.0
    for number, workload in enumerate(distinct(record.rows, "workload")):
        colour, marker = _LOOKS[number % len(_LOOKS)]
        rows = [row for row in record.rows if row["workload"] == workload]
        x = [100 * row["hindsight"]["saving"] for row in rows]
        y = [100 * row["plan"]["saving_measured"] for row in rows]
        ax.plot(x, y, linestyle="none", marker=marker, color=colour, label=workload)
        most, least = max(most, *x, *y), min(least, *x, *y)
    ends = [0.0, 1.05 * most]
    ax.plot(ends, ends, color="#7F7F7F", linewidth=1, label="equal")
    ax.plot(
        ends, [0.9 * end for end in ends], color="#7F7F7F", linewidth=1, linestyle=":", label="90 % of it"
    )
    ax.set_xlim(1.05 * least - 0.5, 1.05 * most)
    ax.set_ylim(1.05 * least - 0.5, 1.05 * most)
    ax.set_xlabel("saved by the best single threshold in hindsight (%)")
    ax.set_ylabel("saved by the plan (%)")
    ax.set_title("Share of the whole cache, equal divergence")
    ax.legend(fontsize=8)


def save_planning_figure(record: Record, folder: Path) -> Path:
    """Write ``plan-check.png`` to a folder, and return its path."""
    path = folder / "plan-check.png"
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.0, 4.2))
        assert isinstance(figure, Figure)
        plot_divergence(record, left)
        plot_saving(record, right)
        figure.savefig(path)
        plt.close(figure)
    return path
