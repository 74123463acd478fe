"""figures.serving on records made by hand: runs, predictions, the ceiling, and rivals without predictions."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest

from ratedist.figures.serving import plot_serving, serving_figure
from ratedist.records import Record

MODES = ("prefix sharing", "prefix sharing and fusion")


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def record(*, transformers: bool = False, shares: tuple[float, ...] = (0.33, 0.5)) -> Record:
    rows = [("prefix sharing", None, rate, 9.0) for rate in (10.0, 12.0)]
    rows += [(mode, share, 4.0 + 2 * number, 5.0) for share in shares for number, mode in enumerate(MODES)]
    if transformers:
        rows += [("transformers", share, 3.0, None) for share in (None, *shares)]
    fields = ("mode", "pool_share", "tokens_per_second", "tokens_per_second_predicted")
    made = [dict(zip(fields, row, strict=True)) | {"workload": "w", "requests": 6} for row in rows]
    return Record("ratedist/serve/1", {}, made, [])


@pytest.mark.parametrize("transformers", [False, True])
def test_runs_stand_beside_predictions_and_the_ceiling(transformers: bool) -> None:
    _, ax = plot_serving(record(transformers=transformers))
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines["prefix sharing, measured"].get_ydata()) == [4.0, 4.0]
    assert list(lines["prefix sharing and fusion, measured"].get_ydata()) == [6.0, 6.0]
    assert list(lines["prefix sharing, predicted"].get_ydata()) == [5.0, 5.0]
    # The mean of the unlimited runs of the engine, not of transformers.
    assert set(lines["prefix sharing, no limit"].get_ydata()) == {11.0}
    assert ("transformers, measured" in lines) == transformers
    assert "transformers, predicted" not in lines
    assert ax.get_ylim()[1] > 11.0


def test_records_have_a_panel_each_and_one_legend() -> None:
    figure = serving_figure([record(), record(transformers=True, shares=(0.33,))])
    assert len(figure.legends) == 1
    assert [ax.get_legend() for ax in figure.axes] == [None, None]
    # What only one of the panels shows is named too.
    assert "transformers, measured" in [text.get_text() for text in figure.legends[0].get_texts()]
