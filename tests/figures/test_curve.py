"""Figures of curves: what stands on the axes is what the record holds."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from ratedist.figures.curve import (
    plot_compression_curve,
    plot_curve,
    plot_error_curve,
    plot_rate_distortion,
)
from ratedist.figures.style import style
from ratedist.fusion_curve import curve_record, fusion_curve, simulated_rows
from ratedist.records import Record
from ratedist.similarity import Gaussian, Spherical


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def record() -> Record:
    curves = [
        fusion_curve(
            Gaussian(0.2, 0.1), requests=16, blocks=8, thresholds=np.linspace(0.35, 0.6, 6), variant=variant
        )
        for variant in ("leader", "tree", "components")
    ]
    return curve_record(curves, simulated=[simulated_rows(curve, 20, 1) for curve in curves])


def of(record: Record, variant: str, field: str) -> list[float]:
    return [row[field] for row in record.rows if row["variant"] == variant]


def test_compression_lines_bands_and_points(record: Record) -> None:
    _, ax = plot_compression_curve(record.rows)
    lines = {line.get_label(): line for line in ax.get_lines()}
    for variant in ("leader", "tree", "components"):
        np.testing.assert_allclose(lines[variant].get_ydata(), of(record, variant, "compression"))
    assert len(ax.collections) >= 3  # bands
    bars = ax.containers
    assert len(bars) == 3
    np.testing.assert_allclose(
        np.asarray(bars[0].lines[0].get_ydata(), dtype=float), of(record, "leader", "simulated_compression")
    )
    heights = [segment[1][1] - segment[0][1] for segment in bars[0].lines[2][0].get_segments()]
    np.testing.assert_allclose(
        heights,
        4 * np.array(of(record, "leader", "simulated_compression_se")),
        rtol=1e-6,
    )


def test_error_lines(record: Record) -> None:
    _, ax = plot_error_curve(record.rows)
    labels = [line.get_label() for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    assert labels == ["leader", "tree, final", "tree, direct match"]
    final = next(line for line in ax.get_lines() if line.get_label() == "tree, final")
    np.testing.assert_allclose(final.get_ydata(), of(record, "tree", "absorbed_error2"))


def test_rate_distortion_with_references() -> None:
    curves = [fusion_curve(Spherical(64), requests=16, blocks=8, thresholds=[0.2, 0.3, 0.4])]
    record = curve_record(curves)
    figure, ax = plt.subplots()
    assert plot_rate_distortion(record.rows, record.summary, ax) == (figure, ax)
    labels = [str(line.get_label()) for line in ax.get_lines()]
    assert labels == [
        "leader",
        "code bound, dimension 64",
        "code bound, high dimension",
        "quantised, groups of 32",
    ]
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), of(record, "leader", "bits_per_scalar"))


def test_whole_figure_leaves_settings_alone(record: Record) -> None:
    before = mpl.rcParams.copy()
    with style():
        figure = plot_curve(record)
    assert len(figure.axes) == 3
    assert figure.get_suptitle() == record.provenance["title"]
    assert mpl.rcParams == before
