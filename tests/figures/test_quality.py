"""The rate-KL figure: what it draws, from rows made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from ratedist.errors import InputError, RatedistError
from ratedist.figures.quality import plot_rate_cost, quality_figure, save_quality_figure
from ratedist.records import Record


def row(method: str, compression: float, kl: float, workload: str = "templates", **fields: Any) -> dict:
    return {
        "workload": workload,
        "method": method,
        "variant": None,
        "criterion": None,
        "threshold": None,
        "compression": compression,
        "kl_mean": kl,
        "kl_mean_se": kl / 5,
        "requests": 8,
        "continuation": 32,
    } | fields


def rows(workload: str = "templates") -> list[dict]:
    fused = [
        row(method, compression * factor, kl, workload, variant=variant, criterion=criterion, threshold=0.8)
        for method, factor in (("fusion", 1.0), ("fusion+kivi4", 2.9))
        for variant in ("leader", "tree")
        for criterion in ("keys", "both")
        for compression, kl in ((2.0, 0.3), (1.2, 0.01))
    ]
    rivals = [
        row("nothing", 1.0, 0.0, workload),
        row("exact", 1.1, 0.0, workload),
        row("int8", 1.9, 1e-6, workload),
        row("kivi4", 3.2, 0.005, workload),
        row("kivi2", 5.3, 0.2, workload),
        row("evict0.5", 2.0, 0.1, workload),
    ]
    return fused + rivals


@pytest.fixture(autouse=True)
def close() -> Any:
    yield
    plt.close("all")


def lines(ax: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def test_every_scheme_is_a_line_from_the_least_to_the_most_compressed() -> None:
    _, ax = plot_rate_cost(rows())
    drawn = lines(ax)
    assert set(drawn) == {
        "fusion by keys, leader",
        "fusion by keys and values, leader",
        "fusion by keys, tree",
        "fusion by keys and values, tree",
        "fusion × 4 bits",
        "2, 3, 4 bits (KIVI's layout)",
        "int8 per token",
        "eviction (H2O)",
        "exact sharing (costs nothing)",
        "4 bits",
    }
    assert drawn["fusion by keys, tree"].get_xdata().tolist() == [1.2, 2.0]
    assert drawn["fusion by keys, tree"].get_ydata().tolist() == [0.01, 0.3]
    assert drawn["2, 3, 4 bits (KIVI's layout)"].get_xdata().tolist() == [3.2, 5.3]
    assert list(drawn["exact sharing (costs nothing)"].get_xdata()) == [1.1, 1.1]
    assert list(drawn["4 bits"].get_ydata()) == [0.005]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert list(drawn["int8 per token"].get_ydata()) == [ax.get_ylim()[0]]  # below the axis: at its edge


def test_no_two_schemes_look_alike() -> None:
    _, ax = plot_rate_cost(rows())
    looks = [
        (line.get_color(), line.get_marker(), line.get_linestyle(), line.get_markerfacecolor())
        for line in lines(ax).values()
    ]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("count", [1, 5])
def test_figure_has_a_panel_per_workload_and_one_legend(count: int) -> None:
    record = Record("ratedist/quality/1", {"model": "tiny"}, [r for i in range(count) for r in rows(f"w{i}")])
    figure = quality_figure(record)
    titles = [ax.get_title() for ax in figure.axes if ax.axison]
    assert titles == [f"w{i}" for i in range(count)]
    assert len(figure.legends) == 1
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(set(labels)) == 10


def test_the_lowest_panel_of_every_column_names_its_axis() -> None:
    record = Record("x", {}, [r for number in range(7) for r in rows(f"w{number}")], [])
    figure = quality_figure(record)
    named = [ax.get_title() for ax in figure.axes if ax.get_xlabel()]
    assert named == ["w4", "w5", "w6"]
    figure.canvas.draw()
    shown = [ax.get_title() for ax in figure.axes if any(t.get_visible() for t in ax.get_xticklabels())]
    assert [name for name in shown if name] == named


def test_picture_is_written(tmp_path: Path) -> None:
    record = Record("ratedist/quality/1", {"model": "tiny"}, rows())
    assert save_quality_figure(record, tmp_path) == tmp_path / "quality.png"
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_and_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"record.*at least one row"):
        quality_figure(Record("ratedist/quality/1", {}, []))
    with pytest.raises(InputError, match=r"rows.*at least one row"):
        plot_rate_cost([])
    (tmp_path / "file").write_text("")
    with pytest.raises(RatedistError, match="cannot be written"):
        save_quality_figure(Record("ratedist/quality/1", {}, rows()), tmp_path / "file")
