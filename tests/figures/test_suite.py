"""Figures of a suite's record: what they show, from rows made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ratedist.errors import InputError, RatedistError
from ratedist.figures.suite import save_suite_figures
from ratedist.figures.suite_bands import plot_suite_bands
from ratedist.figures.suite_errors import plot_suite_errors
from ratedist.figures.suite_layers import plot_suite_layers
from ratedist.figures.suite_rows import shown_predictor
from ratedist.figures.suite_scatter import plot_suite_scatter
from ratedist.figures.suite_transfer import plot_suite_transfer
from ratedist.suite_digest import banded_predictors, counted
from ratedist.suite_record import SuiteRecord, as_column

LAYERS, THRESHOLDS, SIZES = (2, 14, 27), (0.6, 0.7, 0.8), ((16, 16), (16, 64))
BIAS = {"gaussian": 0.5, "position-marked": 1.1, "accumulation": 1.02}


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def make_record(chosen: str | None = "accumulation", bands: bool = True) -> SuiteRecord:
    rows, summary = [], []
    for workload in ("documents", "templates"):
        for n, m in SIZES:
            for name, bias in BIAS.items():
                for seed in range(3):
                    for layer in LAYERS:
                        for threshold in THRESHOLDS:
                            measured = 1 + (1 - threshold) * layer / 4 + 0.05 * seed
                            banded = bands and name == "accumulation"
                            # Nothing fuses in layer 2 at the highest threshold.
                            counts = int((layer, threshold) != (2, 0.8))
                            rows.append(
                                {
                                    "workload": workload,
                                    "calibrated_on": workload,
                                    "n": n,
                                    "m": m,
                                    "predictor": name,
                                    "seed": seed,
                                }
                                | {"layer": layer, "threshold": threshold, "counts": counts}
                                | {"compression_measured": measured}
                                | {"compression_predicted": bias * measured}
                                | {"abs_log_ratio": abs(np.log(bias)), "noise_draw": 0.01 * (seed + 1)}
                                | {"compression_predicted_low": measured * 0.9 if banded else None}
                                | {"compression_predicted_high": measured * (1.2 - 0.15 * seed)}
                            )
                            if not banded:
                                rows[-1]["compression_predicted_high"] = None
    for workload in ("documents", "templates", "all"):
        for n, m in SIZES:
            for name, bias in BIAS.items():
                summary.append(
                    {"workload": workload, "n": n, "m": m, "variant": None, "predictor": name}
                    | {"median_abs_log_ratio": abs(np.log(bias)), "p90_abs_log_ratio": 2 * abs(np.log(bias))}
                    | {"noise_median": 0.02, "noise_p90": 0.03, "chosen": name == chosen}
                )
    columns = {name: as_column([row[name] for row in rows]) for name in rows[0]}
    return SuiteRecord({}, [], [], summary, columns)


def test_rows_that_count_and_the_predictor_to_show() -> None:
    record = make_record()
    rows = counted(record.columns, n=16, m=16, predictor="gaussian")
    assert len(rows["m"]) == 2 * 3 * 8
    assert shown_predictor(record) == "accumulation"
    assert shown_predictor(make_record(None)) == list(BIAS)[-1]
    assert shown_predictor(record, "gaussian") == "gaussian"
    with pytest.raises(InputError, match="predictor = 'oracle': is not in the record; choose one of"):
        shown_predictor(record, "oracle")


def test_scatter_has_a_panel_per_split_and_predictor_with_every_row() -> None:
    figure = plot_suite_scatter(make_record())
    assert [ax.get_title() for ax in figure.axes] == ["16 → 16 requests", "16 → 64 requests", "", ""]
    points = [line for ax in figure.axes for line in ax.get_lines() if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in points] == [2 * 3 * 8] * 4
    ratios = [np.unique(np.round(line.get_ydata() / line.get_xdata(), 6)) for line in points]
    assert [ratio.tolist() for ratio in ratios] == [[0.5], [0.5], [1.02], [1.02]]
    (band,) = figure.axes[0].collections
    edges = band.get_paths()[0].vertices
    spread = np.log(edges[:, 1] / edges[:, 0])
    assert np.abs(spread).max() == pytest.approx(0.03, rel=0.05)


def test_errors_stand_at_their_medians_over_the_noise() -> None:
    figure = plot_suite_errors(make_record())
    ax = figure.axes[0]
    marks = [line for line in ax.get_lines() if len(line.get_xdata()) == 1]
    assert len(marks) == 3 * 3
    assert sorted({round(float(line.get_xdata()[0]), 6) for line in marks}) == sorted(
        round(abs(float(np.log(bias))), 6) for bias in BIAS.values()
    )
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == 2 and line.get_xdata()[1] != 1]
    assert all(line.get_xdata()[1] == pytest.approx(2 * line.get_xdata()[0]) for line in lines)
    assert sorted({round(bar.get_width(), 3) for bar in ax.patches}) == [0.02, 0.03]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["documents", "templates", "all"]
    # A line is where its mark is: one workload's marks lie within its own bar.
    assert {round(float(line.get_ydata()[0])) for line in marks} == {0, 1, 2}


def test_heat_map_holds_medians_and_leaves_out_what_does_not_count() -> None:
    figure = plot_suite_layers(make_record())
    maps = [ax.get_images()[0].get_array() for ax in figure.axes if ax.get_images()]
    assert len(maps) == 4
    for found, value in zip(maps, (np.log(1.02),) * 2 + (0.02,) * 2, strict=True):
        values = np.ma.filled(found.astype(float), np.nan)
        assert values.shape == (3, 3)
        assert np.isnan(values[0, 2])
        assert np.isnan(values).sum() == 1
        np.testing.assert_allclose(values[np.isfinite(values)], value)


def test_bands_show_coverage_width_and_place() -> None:
    record = make_record()
    assert banded_predictors(record) == ["accumulation"]
    figure = plot_suite_bands(record)
    coverage = [line.get_xdata() for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 3]
    # Seeds 0 and 1 have the measurement below the upper end (1.2 and 1.05), seed 2 (0.9) has not.
    np.testing.assert_allclose(coverage, 2 / 3)
    width, noise = (line.get_xdata() for line in figure.axes[1].get_lines()[:2])
    np.testing.assert_allclose(width, np.log(1.05 / 0.9) / 2)
    np.testing.assert_allclose(noise, 0.03)
    with pytest.raises(InputError, match="predictor = 'gaussian': gives no bands; those that do: accu"):
        plot_suite_bands(record, "gaussian")
    with pytest.raises(InputError, match="gives no bands; those that do: none"):
        plot_suite_bands(make_record(bands=False))


def test_transfer_has_sources_as_lines() -> None:
    record = make_record()
    record.transfer = [
        {"calibrated_on": source, "workload": workload, "n": 16, "m": 16, "predictor": name}
        | {"median_abs_log_ratio": value}
        for name in BIAS
        for source, workload, value in (
            ("documents", "documents", 0.1),
            ("documents", "templates", 0.2),
            ("templates", "documents", 0.3),
            ("templates", "templates", None),
        )
    ]
    ax = plot_suite_transfer(record).axes[0]
    values = np.ma.filled(ax.get_images()[0].get_array().astype(float), np.nan)
    np.testing.assert_allclose(values, [[0.1, 0.2], [0.3, np.nan]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["documents", "templates"]
    assert [text.get_text() for text in ax.texts] == ["0.10", "0.20", "0.30"]
    with pytest.raises(InputError, match="record = 'no transfer'"):
        plot_suite_transfer(make_record())


def test_pictures_are_written_and_no_figure_stays_open(tmp_path: Path) -> None:
    paths = save_suite_figures(make_record(), tmp_path / "new")
    assert [path.name for path in paths] == [
        *("suite-scatter.png", "suite-errors.png", "suite-layers.png", "suite-bands.png")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert len(list((tmp_path / "new").iterdir())) == 4
    assert not plt.get_fignums()
    assert len(save_suite_figures(make_record(bands=False), tmp_path / "plain")) == 3
    (tmp_path / "file").touch()
    with pytest.raises(RatedistError, match=r"suite-scatter.png cannot be written"):
        save_suite_figures(make_record(), tmp_path / "file")
