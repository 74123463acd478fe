"""Error of a suite's predictions by workload and predictor, for each split."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ratedist.figures.style import predictor_style
from ratedist.figures.suite_rows import predictors_of, sizes_of, split_label, workloads_of
from ratedist.suite_record import SuiteRecord

__all__ = ["plot_suite_errors"]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


def plot_suite_errors(record: SuiteRecord) -> Figure:
    """A panel per split and a line per workload: the median error as a mark, up to the 90 % quantile.

    Grey bars reach to the median of the noise of measuring (dark) and to its 90 % quantile (light): a
    prediction that knew the workload exactly would show these. Strokes stand at the same two of what the best
    prediction from n requests would show, where the record has them.
    """
    sizes, workloads, predictors = sizes_of(record), workloads_of(record), predictors_of(record)
    names = [*workloads, "all"]
    figure, axes = plt.subplots(
        1,
        len(sizes),
        figsize=(max(6.4, 3.4 * len(sizes) + 1.6), (0.13 * len(predictors) + 0.22) * len(names) + 1.5),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    entries = {
        (entry["workload"], entry["n"], entry["m"], entry["predictor"]): entry
        for entry in record.summary
        if entry["variant"] is None and entry.get("mode") is None
    }
    room = 0.72
    for ax, (n, m) in zip(axes[0], sizes, strict=True):
        for line, workload in enumerate(names):
            noise = entries.get((workload, n, m, predictors[0]))
            if noise is not None and noise["noise_p90"] is not None:
                for field, shade in (("noise_p90", "#E3E3E3"), ("noise_median", "#B9B9B9")):
                    ax.barh(line, noise[field], height=room + 0.14, color=shade, linewidth=0, zorder=1)
            best = [] if noise is None else [noise.get("sample_median"), noise.get("sample_p90")]
            reach = (room + 0.14) / 2
            ax.vlines(
                [value for value in best if value is not None],
                line - reach,
                line + reach,
                color="#555555",
                linewidth=1.1,
                linestyle=(0, (2, 1)),
                zorder=1.5,
            )
            for index, name in enumerate(predictors):
                entry = entries.get((workload, n, m, name))
                if entry is None or entry["median_abs_log_ratio"] is None:
                    continue
                look = predictor_style(name, index)
                place = line + room * ((index + 0.5) / len(predictors) - 0.5)
                median, high = entry["median_abs_log_ratio"], entry["p90_abs_log_ratio"]
                if high is not None:
                    ax.plot([median, high], [place, place], color=look["color"], linewidth=1.1, zorder=2)
                ax.plot(
                    median,
                    place,
                    marker=_MARKERS[index % len(_MARKERS)],
                    markersize=4,
                    linestyle="none",
                    color=look["color"],
                    label=look["label"] if line == len(names) - 1 else None,
                    zorder=3,
                )
        ax.axhline(len(workloads) - 0.5, color="#666666", linewidth=0.8)
        ax.set_yticks(range(len(names)), names)
        ax.set_title(split_label((n, m)))
        ax.set_xscale("symlog", linthresh=0.1, linscale=0.8)
        ax.set_xlim(0, 3)
        ticks = [0, 0.05, 0.1, 0.3, 1, 3]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("|ln(predicted / measured)|")
        ax.grid(axis="y", visible=False)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    found: dict[str, Artist] = {}
    for ax in axes[0]:
        handles, labels = ax.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            found.setdefault(label, handle)
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=min(2 + len(sizes), len(found)),
    )
    strokes = "; strokes: of the best that the sample can tell" if _has_best(record) else ""
    figure.suptitle(
        f"Error: median (mark) to 90 % quantile (line)\nGrey: the same of the noise of measuring{strokes}"
    )
    return figure


def _has_best(record: SuiteRecord) -> bool:
    return any(entry.get("sample_median") is not None for entry in record.summary)
