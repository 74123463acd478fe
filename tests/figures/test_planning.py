"""The figure of the experiment on plans, from rows made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from ratedist.figures.planning import plot_divergence, plot_saving, save_planning_figure
from ratedist.records import Record

WORKLOADS = ("templates", "documents")


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def make_record() -> Record:
    rows = [
        {
            "workload": workload,
            "seed": seed,
            "max_kl": 0.02,
            "tolerance": 1.5,
            "plan": {
                "kl_low": 0.01,
                "kl_high": 0.025,
                "kl_measured": 0.015 + 0.01 * seed,
                "saving_measured": 0.3 - 0.1 * seed,
            },
            "hindsight": {"saving": -0.01 if workload == "documents" else 0.2},
        }
        for workload in WORKLOADS
        for seed in range(2)
    ]
    return Record("ratedist/plan-check/1", {}, rows)


def test_every_cell_has_its_band_and_point() -> None:
    _, ax = plt.subplots()
    record = make_record()
    plot_divergence(record, ax)
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == 1]
    assert [line.get_ydata()[0] for line in lines] == [row["plan"]["kl_measured"] for row in record.rows]
    bands = [line.get_ydata() for line in ax.get_lines() if list(line.get_ydata()) == [0.01, 0.025]]
    assert len(bands) == 4
    assert [label.get_text() for label in ax.get_xticklabels()] == list(WORKLOADS)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["predicted, 90 % band", "measured, held-out requests", "goal, 0.02", "limit, 0.03"]
    assert {line.get_ydata()[0] for line in ax.get_lines() if line.get_color() == "#D55E00"} == {0.02, 0.03}


def test_savings_stand_over_those_of_the_rival_in_percent() -> None:
    _, ax = plt.subplots()
    plot_saving(make_record(), ax)
    points = {line.get_label(): line for line in ax.get_lines()}
    assert list(points["templates"].get_xdata()) == pytest.approx([20, 20])
    assert list(points["templates"].get_ydata()) == pytest.approx([30, 20])
    assert list(points["documents"].get_xdata()) == pytest.approx([-1, -1])
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlim()[0] < -1
    ninety = points["90 % of it"]
    assert ninety.get_ydata()[1] == pytest.approx(0.9 * ninety.get_xdata()[1])


def test_the_picture_is_written(tmp_path: Path) -> None:
    path = save_planning_figure(make_record(), tmp_path)
    assert path.name == "plan-check.png"
    assert path.stat().st_size > 10_000
