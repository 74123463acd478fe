"""Figures of a validation record: what they show, from rows made by hand."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ratedist.errors import InputError, RatedistError
from ratedist.figures.compression import factor_axis, plot_compression, plot_compression_of_layers
from ratedist.figures.error import plot_error
from ratedist.figures.rows import distinct, select
from ratedist.figures.scatter import plot_scatter
from ratedist.figures.style import predictor_style, style
from ratedist.figures.validation import overview_figure, save_validation_figures, workload_figure
from ratedist.records import Record

THRESHOLDS = (0.6, 0.7, 0.8, 0.9)


def make_record(layers: tuple[int, ...] = (2, 3, 4, 5), variants: tuple[str, ...] = ("leader",)) -> Record:
    rows = []
    for workload in ("documents", "templates"):
        for variant in variants:
            for predictor, bias in (("gaussian", 0.6), ("position-marked", 1.05)):
                for layer in layers:
                    for step, threshold in enumerate(THRESHOLDS):
                        measured = 1 + 10 / (1 + step**2 * layer)
                        rows.append(
                            {
                                "model": "tiny",
                                "workload": workload,
                                "layer": layer,
                                "variant": variant,
                                "criterion": "keys",
                                "threshold": threshold,
                                "predictor": predictor,
                                "requests": 12,
                                "compression_measured": measured,
                                "compression_predicted": 1 + bias * (measured - 1),
                                "k_error_measured": 0.5 - 0.1 * step,
                                "k_error_predicted": 0.52 - 0.1 * step,
                                "v_error_measured": 0.9 - 0.1 * step,
                                "v_error_predicted": 0.95 - 0.1 * step,
                            }
                        )
    summary = [
        {
            "workload": workload,
            "predictor": predictor,
            "median_abs_log_ratio": 0.123 if workload == "documents" else None,
            "p90_abs_log_ratio": 0.2 if workload == "documents" else None,
            "rows": 7,
        }
        for workload in ("documents", "templates")
        for predictor in ("gaussian", "position-marked")
    ]
    return Record("ratedist/validation/1", {}, rows, summary)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def lines_by_label(ax) -> dict[str, object]:
    return {line.get_label(): line for line in ax.get_lines()}


def test_compression_draws_every_row_as_it_stands() -> None:
    rows = select(make_record().rows, workload="documents", layer=3)
    figure, ax = plot_compression(rows)
    assert figure is ax.figure
    lines = lines_by_label(ax)
    for name, field in (("gaussian", "compression_predicted"), ("position-marked", "compression_predicted")):
        chosen = select(rows, predictor=name)
        line = lines[predictor_style(name)["label"]]
        np.testing.assert_array_equal(line.get_xdata(), THRESHOLDS)
        np.testing.assert_array_equal(line.get_ydata(), [row[field] for row in chosen])
    np.testing.assert_array_equal(
        lines["measured"].get_ydata(), [r["compression_measured"] for r in select(rows, predictor="gaussian")]
    )
    assert ax.get_xlabel() == "threshold τ"
    assert ax.get_ylabel() == "compression (fused layer)"
    assert ax.get_title() == "layer 3"
    assert ax.get_yscale() == "log"


def test_layers_are_brought_together_by_their_median() -> None:
    rows = select(make_record().rows, workload="documents")
    _, ax = plot_compression_of_layers(rows)
    at = [r["compression_measured"] for r in select(rows, predictor="gaussian", threshold=0.7)]
    (measured,) = [c for c in ax.containers if c.get_label() == "measured"]
    assert measured.lines[0].get_ydata()[1] == np.median(at)
    low, high = measured.lines[2][0].get_segments()[1][:, 1]
    assert (low, high) == pytest.approx((min(at), max(at)))
    assert ax.get_title() == "median and range of 4 layers"


@pytest.mark.parametrize(("which", "name"), [("k", "keys"), ("v", "values")])
def test_error_against_compression(which: str, name: str) -> None:
    rows = select(make_record().rows, workload="templates", layer=4)
    _, ax = plot_error(rows, which)
    chosen = select(rows, predictor="position-marked")
    lines = lines_by_label(ax)
    np.testing.assert_array_equal(
        lines["measured"].get_ydata(), [r[f"{which}_error_measured"] for r in chosen]
    )
    np.testing.assert_array_equal(
        lines["position-marked"].get_xdata(), [r["compression_predicted"] for r in chosen]
    )
    assert ax.get_ylabel() == f"relative error of {name} (RMS, all blocks)"
    assert ax.get_xlabel() == "compression (fused layer)"
    with pytest.raises(InputError, match=r"which = 'q': must be 'k' \(keys\) or 'v' \(values\)"):
        plot_error(rows, "q")


def test_scatter_shows_every_row_and_where_both_agree() -> None:
    rows = make_record().rows
    _, ax = plot_scatter(rows)
    lines = lines_by_label(ax)
    assert len(lines["position-marked"].get_xdata()) == len(rows) / 2
    identity = lines["predicted = measured"]
    np.testing.assert_array_equal(identity.get_xdata(), identity.get_ydata())
    assert ax.get_xlim() == ax.get_ylim()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_axes_that_are_given_are_drawn_on() -> None:
    figure, axes = plt.subplots(1, 2)
    rows = select(make_record().rows, workload="documents", layer=3)
    assert plot_compression(rows, axes[1]) == (figure, axes[1])
    assert not axes[0].get_lines()


def test_workload_figure_names_what_it_shows() -> None:
    figure = workload_figure(make_record(), "documents", "leader", "keys")
    assert "tiny, workload “documents”: 12 unseen requests, leader, matched by keys" in figure.get_suptitle()
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [
        "layer 2",
        "layer 4",
        "layer 5",
        "median and range of 4 layers",
        "keys, layer 4",
        "values, layer 4",
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "Gaussian (the paper's)",
        "position-marked",
        "measured",
    ]
    with pytest.raises(InputError, match=r"rows = .*'nowhere'.*: no row of the record is like this"):
        workload_figure(make_record(), "nowhere", "leader", "keys")


def test_one_layer_is_enough() -> None:
    figure = workload_figure(make_record(layers=(7,)), "templates", "leader", "keys")
    assert next(ax.get_title() for ax in figure.axes if ax.axison) == "layer 7"


def test_overview_quotes_the_summary() -> None:
    figure = overview_figure(make_record())
    assert len(figure.axes) == 4
    texts = [ax.texts[0].get_text() for ax in figure.axes]
    assert texts[0] == "median |ln ratio| 0.123\n(7 rows in range)"
    assert texts[1] == "no row in range"


def test_files_are_written_and_named_after_workloads(tmp_path: Path) -> None:
    record = make_record(layers=(2, 3), variants=("leader", "tree"))
    paths = save_validation_figures(record, tmp_path / "out")
    assert {path.name for path in paths} == {
        "documents.png",
        "documents-tree-keys.png",
        "templates.png",
        "templates-tree-keys.png",
        "overview.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in paths}
    assert not plt.get_fignums()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RatedistError, match=r"file.documents.png cannot be written: .*choose another --out"):
        save_validation_figures(make_record(layers=(2,)), tmp_path / "file")


def test_style_leaves_the_settings_outside_alone() -> None:
    before = plt.rcParams["axes.grid"]
    with style():
        assert plt.rcParams["axes.grid"]
    assert plt.rcParams["axes.grid"] == before


def test_predictors_without_a_style_of_their_own_differ() -> None:
    looks = {(s["color"], s["linestyle"]) for s in (predictor_style(f"new {i}", i) for i in range(4))}
    assert len(looks) == 4


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.02), (0.97, 1.4), (1, 3), (0.9, 13), (1, 300), (1, 40_000)]
)
def test_factor_ticks_lie_inside_and_apart(low: float, high: float) -> None:
    _, ax = plt.subplots()
    factor_axis(ax, "x")
    ax.set_xlim(low, high)
    ticks = np.array([t for t in ax.get_xticks() if low <= t <= high])
    assert 2 <= len(ticks) <= 9
    assert (np.diff(np.log(ticks)) >= 0.12 * np.log(high / low)).all()


def test_distinct_keeps_the_order() -> None:
    assert distinct([{"a": 3}, {"a": 1}, {"a": 3}], "a") == [3, 1]
