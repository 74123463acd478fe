"""validate.summary and validate.table on rows made by hand."""

from __future__ import annotations

import math

import pytest

from ratedist.validate.summary import abs_log_ratio, summarise
from ratedist.validate.table import over_layers


def row(workload: str, predictor: str, measured: float, predicted: float, requests: int = 10, **more: object):
    return {
        "workload": workload,
        "predictor": predictor,
        "requests": requests,
        "compression_measured": measured,
        "compression_predicted": predicted,
        **more,
    }


def test_ratio_counts_over_and_under_alike() -> None:
    assert abs_log_ratio(row("w", "p", 2.0, 4.0)) == pytest.approx(math.log(2))
    assert abs_log_ratio(row("w", "p", 4.0, 2.0)) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("measured", "counts"),
    [(1.0, False), (1.049, False), (1.05, True), (9.0, True), (9.01, False), (10.0, False)],
)
def test_rows_near_an_end_do_not_count(measured: float, counts: bool) -> None:
    assert (abs_log_ratio(row("w", "p", measured, 2.0)) is not None) == counts


def test_quantiles_by_workload_and_over_all() -> None:
    rows = [row("a", "x", 2.0, 2.0 * math.exp(d)) for d in (0.1, -0.2, 0.3)]
    rows += [row("a", "y", 2.0, 2.0)]
    rows += [row("b", "x", 4.0, 4.0 * math.exp(0.9)), row("b", "x", 1.0, 3.0)]
    summary = {(e["workload"], e["predictor"]): e for e in summarise(rows)}
    assert list(summary) == [("a", "x"), ("a", "y"), ("b", "x"), ("all", "x"), ("all", "y")]
    assert summary["a", "x"]["median_abs_log_ratio"] == pytest.approx(0.2)
    assert summary["a", "x"]["p90_abs_log_ratio"] == pytest.approx(0.2 + 0.8 * 0.1)
    assert summary["a", "x"]["rows"] == 3
    assert summary["b", "x"]["rows"] == 1
    assert summary["all", "x"]["median_abs_log_ratio"] == pytest.approx(0.25)
    assert summary["all", "x"]["rows"] == 4
    assert summary["all", "y"]["median_abs_log_ratio"] == 0


def test_no_row_in_range_gives_none() -> None:
    (here, over_all) = summarise([row("a", "x", 1.0, 1.0)])
    for entry in (here, over_all):
        assert entry == {
            "workload": entry["workload"],
            "predictor": "x",
            "median_abs_log_ratio": None,
            "p90_abs_log_ratio": None,
            "rows": 0,
            "band_coverage": None,
        }
    assert summarise([]) == []


def test_coverage_counts_rows_in_range_that_have_a_band() -> None:
    def banded(measured: float, low: float | None, high: float | None, predictor: str = "x"):
        band = {"compression_predicted_low": low, "compression_predicted_high": high}
        return row("a", predictor, measured, 2.0, **band)

    rows = [banded(2.0, 1.5, 2.5), banded(2.0, 2.0, 2.5), banded(2.0, 2.1, 2.5), banded(3.0, 1.5, 2.9)]
    rows += [banded(1.0, 1.5, 2.0), banded(2.0, None, None), banded(2.0, None, None, predictor="y")]
    coverage = {entry["predictor"]: entry["band_coverage"] for entry in summarise(rows)}
    assert coverage == {"x": 0.5, "y": None}


def test_the_smallest_held_out_error_is_chosen_whatever_is_measured() -> None:
    rows = [row("a", "x", 2.0, 2.0), row("a", "y", 2.0, 9.0), row("a", "z", 2.0, 3.0)]
    entries = summarise(rows, {"x": 0.3, "y": 0.1, "z": None})
    assert [("chosen" in e, e["workload"]) for e in entries] == [(False, "a")] * 3 + [(True, "all")] * 3
    assert {e["predictor"]: e["chosen"] for e in entries[3:]} == {"x": False, "y": True, "z": False}
    assert {e["predictor"]: e["held_out_error"] for e in entries[3:]} == {"x": 0.3, "y": 0.1, "z": None}
    assert not any(entry["chosen"] for entry in summarise(rows, {"x": None})[3:])
    assert all("chosen" not in entry for entry in summarise(rows))


def test_table_sums_blocks_and_squares_of_errors() -> None:
    common = {"variant": "leader", "criterion": "keys", "threshold": 0.7}
    common |= {"cache_compression_measured": 1.5, "cache_compression_predicted": 1.6}

    def layer(blocks: int, kept: int, error: float) -> dict[str, object]:
        sides = {f"kept_{side}": kept for side in ("measured", "predicted")}
        errors = {f"{w}_error_{side}": error for w in "kv" for side in ("measured", "predicted")}
        return row("a", "x", 1, 1, **common, blocks=blocks, **sides, **errors)

    (entry,) = over_layers([layer(100, 50, 0.3), layer(100, 10, 0.4)])
    assert entry["compression_measured"] == pytest.approx(200 / 60)
    assert entry["k_error_predicted"] == pytest.approx(math.sqrt((0.09 + 0.16) / 2))
    assert entry["cache_compression_predicted"] == 1.6
    assert entry["layers"] == 2
