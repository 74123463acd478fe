"""Figures of a layer looked at closely: what they show, from a record made by hand."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from ratedist.errors import InputError
from ratedist.figures.inspection import counts_figure, differences_figure, plot_counts, plot_differences
from ratedist.records import Record

LAWS = ("gaussian", "poisson", "position-marked", "heterogeneous")


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def make_record(workload: str = "templates", lowest: float = 0.4) -> Record:
    counts = [
        {"kind": "counts", "low": low, "high": high, "blocks": 10 * number}
        | {law: number + place / 10 for place, law in enumerate(LAWS)}
        for number, (low, high) in enumerate(((0, 0), (1, 1), (2, 2), (3, 4)))
    ]
    differences = [
        {"kind": "difference", "difference": apart, "same_text": same, "pairs": 5}
        | {"k_q05": lowest, "k_q50": 0.7 + 0.2 * same, "k_q95": 0.95, "k_mean": 0.7, "v_mean": 0.2}
        for same, places in ((False, range(6)), (True, (0, 1, 4)))
        for apart in places
    ]
    about = {"workload": workload, "model": "m", "layer": 3, "requests": 8}
    return Record(
        "ratedist/inspect/1",
        about | {"threshold": 0.8, "criterion": "keys"},
        [*counts, *differences],
        [{"kind": "exceedances", "per_block": 1.5}],
    )


def test_counts_are_bars_and_laws_are_lines() -> None:
    _, ax = plot_counts(make_record())
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert [bar.get_height() for bar in bars] == [0, 10, 20, 30]
    lines = {tuple(np.round(line.get_ydata(), 6)) for line in ax.get_lines()}
    assert lines == {tuple(np.round(np.arange(4) + place / 10, 6)) for place in range(4)}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3–4"]
    assert ax.get_title() == "templates: 1.5 per block"


def test_no_line_joins_distances_without_a_pair_between() -> None:
    _, ax = plot_differences(make_record())
    found = [line.get_xdata().tolist() for line in ax.get_lines() if line.get_marker() == "o"]
    assert found == [[0, 1, 2, 3, 4, 5], [0, 1], [4]]
    assert ax.get_legend_handles_labels()[1] == ["other text", "same text", "threshold τ"]


def test_panels_share_an_axis_that_holds_all_of_them() -> None:
    records = [make_record("a", 0.5), make_record("b", 0.1), make_record("c", 0.6)]
    figure = differences_figure(records)
    drawn = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in drawn] == ["a", "b", "c"]
    assert [ax.get_ylim()[0] for ax in drawn] == pytest.approx([0.05] * 3)
    assert len(counts_figure(records[:2]).axes) == 2


def test_refuses_a_record_without_such_rows() -> None:
    record = make_record()
    record.rows = []
    with pytest.raises(InputError, match="record = 'no rows of kind counts': make one with ratedist inspect"):
        plot_counts(record)
    with pytest.raises(InputError, match="no rows of kind difference"):
        plot_differences(record)
