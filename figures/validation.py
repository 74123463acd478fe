"""The pictures of a validation record: one per workload, and an overview."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ratedist.errors import RatedistError
from ratedist.figures.compression import plot_compression, plot_compression_of_layers
from ratedist.figures.error import plot_error
from ratedist.figures.rows import distinct, select
from ratedist.figures.scatter import plot_scatter
from ratedist.figures.style import predictor_style, style
from ratedist.records import Record

__all__ = ["overview_figure", "save_validation_figures", "workload_figure"]


def workload_figure(record: Record, workload: str, variant: str, criterion: str) -> Figure:
    """Compression against threshold for a low, a middle and a high layer and over all layers; and the
    errors of keys and values against compression in the middle one.

    Raises InputError where the record has no such rows.
    """
    rows = select(record.rows, workload=workload, variant=variant, criterion=criterion)
    layers = sorted(distinct(rows, "layer"))
    shown = sorted({layers[0], layers[len(layers) // 2], layers[-1]})
    middle = select(rows, layer=layers[len(layers) // 2])
    with style():
        figure, grid = plt.subplots(2, 3, figsize=(11.5, 6.8))
        for ax, layer in zip(grid[0], shown, strict=False):
            plot_compression(select(rows, layer=layer), ax)
        for ax in grid[0, len(shown) :]:
            ax.set_axis_off()
        plot_compression_of_layers(rows, grid[1, 0])
        plot_error(middle, "k", grid[1, 1])
        plot_error(middle, "v", grid[1, 2])
        _share_limits(grid[0, : len(shown)])
        first = rows[0]
        figure.suptitle(
            f"{first['model']}, workload “{workload}”: {first['requests']} unseen requests, "
            f"{variant}, matched by {_CRITERIA.get(criterion, criterion)}"
        )
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def overview_figure(record: Record) -> Figure:
    """Predicted against measured compression, a panel for every workload (column) and predictor (row).

    Every row of the record is a point; the figure quoted in a panel is the record's summary.
    """
    workloads, predictors = distinct(record.rows, "workload"), distinct(record.rows, "predictor")
    with style():
        figure, grid = plt.subplots(
            len(predictors),
            len(workloads),
            figsize=(2.9 * len(workloads) + 0.6, 3.0 * len(predictors) + 0.8),
            squeeze=False,
            layout="compressed",
        )
        for column, workload in enumerate(workloads):
            rows = select(record.rows, workload=workload)
            for line, predictor in enumerate(predictors):
                ax = grid[line, column]
                plot_scatter(select(rows, predictor=predictor), ax)
                ax.set_title(workload if line == 0 else "")
                ax.set_ylabel(
                    f"{predictor_style(predictor, line)['label']}\npredicted" if column == 0 else ""
                )
                ax.set_xlabel("measured" if line == len(predictors) - 1 else "")
                ax.text(0.04, 0.96, _quote(record, workload, predictor), transform=ax.transAxes, va="top")
            _share_limits(grid[:, column], both=True)
        first = record.rows[0]
        figure.suptitle(
            f"{first['model']}: compression of fused layers,\npredicted and measured on unseen requests"
        )
    return figure


def save_validation_figures(record: Record, folder: Path) -> list[Path]:
    """Write one PNG per workload (and per further variant and criterion) and ``overview.png``.

    Raises RatedistError where a file cannot be written.
    """
    modes = list(dict.fromkeys((row["variant"], row["criterion"]) for row in record.rows))
    figures: dict[str, Figure] = {}
    for workload in distinct(record.rows, "workload"):
        for index, (variant, criterion) in enumerate(modes):
            name = workload if index == 0 else f"{workload}-{variant}-{criterion}"
            figures[name] = workload_figure(record, workload, variant, criterion)
    figures["overview"] = overview_figure(record)
    paths = []
    try:
        for name, figure in figures.items():
            paths.append(_save(figure, folder / f"{name}.png"))
    finally:
        for figure in figures.values():
            plt.close(figure)
    return paths


_CRITERIA = {"keys": "keys", "both": "keys and values"}


def _quote(record: Record, workload: str, predictor: str) -> str:
    found: list[dict[str, Any]] = [
        entry for entry in record.summary if entry["workload"] == workload and entry["predictor"] == predictor
    ]
    if not found or found[0]["median_abs_log_ratio"] is None:
        return "no row in range"
    return f"median |ln ratio| {found[0]['median_abs_log_ratio']:.3f}\n({found[0]['rows']} rows in range)"


def _share_limits(axes: Any, both: bool = False) -> None:
    """Give panels that are compared the same limits, and with ``both`` x the same as y."""
    lows, highs = zip(*(ax.get_ylim() for ax in axes), strict=True)
    for ax in axes:
        ax.set_ylim(min(lows), max(highs))
        if both:
            ax.set_xlim(min(lows), max(highs))


def _save(figure: Figure, path: Path) -> Path:
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise RatedistError(
            f"{path} cannot be written: {error}; free space or choose another --out"
        ) from error
    return path
