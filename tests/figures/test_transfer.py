"""The figure of a transfer: what it shows, from a summary made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.figures.transfer import plot_law_transfer, plot_threshold_transfer, save_transfer_figure
from ratedist.records import Record


def matrix(source: tuple[str, str], target: tuple[str, str], error: float | None) -> list[dict[str, Any]]:
    ends = {
        "source_model": source[0],
        "source_workload": source[1],
        "model": target[0],
        "workload": target[1],
    }
    shared = {"kind": "matrix", **ends}
    return [
        {**shared, "predictor": "gaussian", "median_abs_log_ratio": 9.0, "chosen": False},
        {**shared, "predictor": "position-marked", "median_abs_log_ratio": error, "chosen": True},
    ]


def threshold(relation: str, quantity: str, goal: float, ratios: tuple[float | None, ...]) -> dict[str, Any]:
    names = ("p10_value_over_goal", "median_value_over_goal", "p90_value_over_goal")
    return {
        "kind": "threshold",
        "relation": relation,
        "quantity": quantity,
        "goal": goal,
        **dict(zip(names, ratios, strict=True)),
    }


A, B, C = ("small", "documents"), ("small", "templates"), ("large", "documents")


@pytest.fixture
def record() -> Record:
    errors = {(A, A): 0.1, (B, B): 0.2, (C, C): 0.3, (A, B): 0.4, (B, A): None, (A, C): 0.5, (C, A): 0.6}
    summary = [entry for ends, error in errors.items() for entry in matrix(*ends, error)]
    summary += [
        threshold("own", "k_error", 0.1, (0.9, 1.0, 1.1)),
        threshold("other workload", "k_error", 0.1, (0.5, 0.8, 2.0)),
        threshold("other model", "k_error", 0.1, (0.0, 0.0, 4.0)),
        threshold("own", "compression", 1.5, (0.95, 1.0, 1.05)),
        threshold("other model", "compression", 1.5, (None, None, None)),
    ]
    return Record("ratedist/transfer/1", {}, [], summary)


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_matrix_shows_the_chosen_predictor_by_source_and_target(record: Record, ax) -> None:
    plot_law_transfer(record, ax)
    (image,) = ax.get_images()
    gap = np.nan
    np.testing.assert_array_equal(
        np.ma.filled(image.get_array(), np.nan), [[0.1, 0.4, 0.5], [gap, 0.2, gap], [0.6, gap, 0.3]]
    )
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["documents", "templates", "documents"]
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("–") == 1  # compared, but without a row that counts
    assert {"0.10", "0.60", "small", "large"} <= set(texts)
    assert "position-marked" in ax.get_title(loc="left")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("measured on", "calibrated on (models in the same order)")


def test_thresholds_show_medians_and_spreads(record: Record, ax) -> None:
    plot_threshold_transfer(record, ax)
    marks = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
    assert list(marks) == ["other requests of the same", "another workload", "another model"]
    assert marks["another workload"].get_xdata()[0] == 0.8
    spreads = [tuple(line.get_xdata()) for line in ax.get_lines() if len(line.get_xdata()) == 2]
    assert (0.5, 2.0) in spreads
    assert min(min(ends) for ends in spreads) > 0  # nothing is lost off a logarithmic axis
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["keys' error ≤ 0.1", "compression ≥ 1.5×"]


def test_the_picture_is_saved(record: Record, tmp_path: Path) -> None:
    assert save_transfer_figure(record, tmp_path) == tmp_path / "transfer.png"
    assert (tmp_path / "transfer.png").stat().st_size > 10_000


def test_records_without_what_is_drawn(ax) -> None:
    empty = Record("ratedist/transfer/1", {}, [], [])
    with pytest.raises(
        InputError, match="record = 'no matrix': name the record that ratedist transfer wrote"
    ):
        plot_law_transfer(empty, ax)
    with pytest.raises(InputError, match="record = 'no thresholds': run ratedist transfer with at least one"):
        plot_threshold_transfer(empty, ax)
