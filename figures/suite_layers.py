"""Error of a suite's predictions by layer and threshold, beside the noise of measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ratedist.errors import InputError
from ratedist.figures.style import predictor_style
from ratedist.figures.suite_rows import predictors_of, shown_predictor, sizes_of, split_label
from ratedist.suite_digest import layer_errors
from ratedist.suite_record import SuiteRecord

__all__ = ["plot_suite_layers"]

_HIGHEST = 0.3
"""Error at which the colours end: a factor of 1.35."""


def plot_suite_layers(record: SuiteRecord, predictor: str | None = None) -> Figure:
    """Medians over workloads, seeds, variants and criteria: errors above, the noise of measuring below.

    Cells without a row that counts are hatched: there hardly anything fuses, or everything does.

    Args:
        record: of a suite.
        predictor: whose errors; the chosen one where None.

    Raises InputError where the record holds no errors by layer.
    """
    name = shown_predictor(record, predictor)
    entries = layer_errors(record, name)
    if not entries:
        raise InputError("record", "no rows", f"hold an error of {name} by layer")
    sizes = sizes_of(record)
    layers = sorted({int(entry["layer"]) for entry in entries})
    thresholds = sorted({float(entry["threshold"]) for entry in entries})
    height = max(1.6, 0.16 * len(layers) + 0.7)
    figure, grid = plt.subplots(
        2,
        len(sizes),
        figsize=(3.3 * len(sizes) + 1.2, 2 * height + 1.2),
        squeeze=False,
        layout="constrained",
        sharex=True,
        sharey=True,
    )
    image = None
    for column, size in enumerate(sizes):
        here = [entry for entry in entries if (entry["n"], entry["m"]) == size]
        for line, field in enumerate(("error", "noise")):
            image = _map(grid[line, column], here, field, layers, thresholds)
        grid[0, column].set_title(split_label(size))
        grid[1, column].set_xlabel("threshold τ")
    look = predictor_style(name, list(predictors_of(record)).index(name))
    grid[0, 0].set_ylabel(f"layer\n(error of {look['label']})")
    grid[1, 0].set_ylabel("layer\n(noise of measuring)")
    assert image is not None
    bar = figure.colorbar(image, ax=grid, shrink=0.8, extend="max")
    bar.set_label("median |ln(predicted / measured)|")
    figure.suptitle("Error by layer and threshold; hatched: not measured, or nothing (or all) fuses")
    return figure


def _map(
    ax: Axes, entries: Sequence[dict[str, Any]], field: str, layers: list[int], thresholds: list[float]
) -> AxesImage:
    values = np.full((len(layers), len(thresholds)), np.nan)
    for entry in entries:
        if entry[field] is not None:
            values[layers.index(entry["layer"]), thresholds.index(entry["threshold"])] = entry[field]
    ax.set_facecolor("#F2F2F2")
    ax.patch.set_hatch("///")
    ax.patch.set_edgecolor("#BBBBBB")
    image = ax.imshow(values, aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=_HIGHEST)
    ax.grid(False)
    shown = np.arange(0, len(layers), max(1, len(layers) // 13))
    ax.set_yticks(shown, [str(layers[index]) for index in shown])
    ax.set_xticks(np.arange(len(thresholds)), [f"{threshold:g}" for threshold in thresholds])
    ax.tick_params(axis="x", labelrotation=60)
    return image
