"""Figures of adaptive streams: what stands on the axes is what the record holds."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.figures.adaptive import plot_adaptive, plot_evidence, plot_thresholds, plot_window_errors
from ratedist.figures.style import style
from ratedist.records import Record


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def record() -> Record:
    rng = np.random.default_rng(0)
    rows = [
        {
            "policy": policy,
            "request": request,
            "workload": "one" if request < 6 else "two",
            "threshold": float(rng.uniform(0.5, 1)),
            "error": float(rng.uniform(0, 0.1)),
        }
        | ({"evidence": float(10 * request), "calibration_due": request == 7} if policy == "integral" else {})
        for policy in ("integral", "fixed")
        for request in range(10)
    ]
    settings = {"target": 0.05, "window": 4, "alarm_rate": 0.01, "layer": 2, "criterion": "both"}
    return Record("ratedist/adapt/1", settings | {"workloads": ["one", "two"]}, rows)


def test_thresholds_and_changes(record: Record) -> None:
    _, ax = plot_thresholds(record.rows)
    lines = {str(line.get_label()): line for line in ax.get_lines()}
    expected = [row["threshold"] for row in record.rows if row["policy"] == "fixed"]
    np.testing.assert_allclose(lines["fixed, calibrated on the first"].get_ydata(), expected)
    assert "bound" not in lines
    assert [line.get_xdata()[0] for line in ax.get_lines() if str(line.get_label()).startswith("_")] == [5.5]


def test_window_errors_and_promise(record: Record) -> None:
    _, ax = plot_window_errors(record.rows, target=0.05, window=4)
    line = next(line for line in ax.get_lines() if str(line.get_label()).startswith("integral"))
    errors = [row["error"] for row in record.rows if row["policy"] == "integral"]
    np.testing.assert_allclose(line.get_ydata(), np.convolve(errors, np.full(4, 0.25), "valid"))
    np.testing.assert_array_equal(line.get_xdata(), np.arange(3, 10))
    assert any(list(line.get_ydata()) == [0.05, 0.05] for line in ax.get_lines())


def test_evidence_and_alarms(record: Record) -> None:
    _, ax = plot_evidence(record.rows, alarm_rate=0.01)
    due = next(line for line in ax.get_lines() if line.get_label() == "calibration due")
    assert (list(due.get_xdata()), list(due.get_ydata())) == ([7], [70.0])
    assert ax.get_yscale() == "log"
    with pytest.raises(InputError, match=r"rows = 'integral': no row of the record"):
        plot_evidence([row for row in record.rows if row["policy"] == "fixed"], alarm_rate=0.01)


def test_whole_figure(record: Record) -> None:
    with style():
        figure = plot_adaptive(record)
    assert len(figure.axes) == 3
    assert figure.get_suptitle() == "one → two, layer 2, criterion both"
