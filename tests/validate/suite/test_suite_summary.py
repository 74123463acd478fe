"""validate.suite.summary on rows made by hand: quantiles, noise, coverage, goals, words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratedist.suite_record import Columns, as_column
from ratedist.validate.suite.rows import Choice
from ratedist.validate.suite.summary import goals_of, summarise_suite
from ratedist.validate.suite.words import describe, transferred


def columns(*rows: dict[str, object]) -> Columns:
    common = {
        "workload": "w",
        "calibrated_on": None,
        "n": 16,
        "m": 16,
        "mode": "bff",
        "variant": "leader",
        "criterion": "keys",
        "predictor": "p",
        "seed": 0,
        "noise_draw": 0.01,
        "sample_draw": 0.02,
        "compression_measured": 2.0,
        "compression_predicted_low": None,
        "compression_predicted_high": None,
        "calibration_seconds": 0.5,
        "counts": 1,
    }
    full = [common | row for row in rows]
    full = [row | {"calibrated_on": row["calibrated_on"] or row["workload"]} for row in full]
    found = {name: as_column([row[name] for row in full]) for name in common}
    found["abs_log_ratio"] = as_column([row["error"] for row in full])
    return found


def entry(summary: list[dict[str, object]], **wanted: object) -> dict[str, object]:
    wanted = {"mode": None, "variant": None, "workload": "all", "predictor": "p", "n": 16, "m": 16} | wanted
    (found,) = [e for e in summary if all(e[name] == value for name, value in wanted.items())]
    return found


def test_quantiles_of_errors_and_of_noise_over_rows_that_count() -> None:
    errors = [0.1, 0.3, 0.2]
    rows = [{"error": e, "noise_draw": e / 4, "sample_draw": e / 2} for e in errors]
    rows += [{"error": 9.0, "noise_draw": 9.0, "counts": 0}]
    rows += [{"error": 0.9, "workload": "v"}, {"error": 0.4, "m": 64}, {"error": 0.0, "predictor": "q"}]
    summary = summarise_suite(columns(*rows), Choice("p", {"p": 0.07, "q": 0.2}, 1.0))
    own = entry(summary, workload="w")
    assert own["median_abs_log_ratio"] == pytest.approx(0.2)
    assert own["p90_abs_log_ratio"] == pytest.approx(0.2 + 0.8 * 0.1)
    assert own["noise_median"] == pytest.approx(0.05)
    assert own["noise_p90"] == pytest.approx(0.07)
    assert own["sample_median"] == pytest.approx(0.1)
    assert own["sample_p90"] == pytest.approx(0.14)
    assert own["median_over_noise"] == pytest.approx(4)
    assert own["p90_over_noise"] == pytest.approx(4)
    assert (own["rows"], own["refused"]) == (3, 0)
    assert own["calibration_seconds"] == 0.5
    assert "chosen" not in own
    assert "held_out_error" not in own
    everywhere = entry(summary)
    assert everywhere["rows"] == 4
    assert everywhere["median_abs_log_ratio"] == pytest.approx(0.25)
    assert everywhere["chosen"] is True
    assert everywhere["held_out_error"] == 0.07
    assert entry(summary, predictor="q")["chosen"] is False
    assert entry(summary, m=64)["median_abs_log_ratio"] == pytest.approx(0.4)


def test_variants_and_criteria_stand_apart_over_all_workloads() -> None:
    summary = summarise_suite(
        columns({"error": 0.1}, {"error": 0.3, "variant": "tree"}, {"error": 0.5, "criterion": "both"})
    )
    found = {(e["variant"], e["criterion"]): e["median_abs_log_ratio"] for e in summary if e["variant"]}
    assert found == {("leader", "keys"): 0.1, ("tree", "keys"): 0.3, ("leader", "both"): 0.5}


def test_modes_stand_apart_by_workload_and_the_whole_holds_both() -> None:
    rows = [{"error": 0.1}, {"error": 0.5, "mode": "cff"}, {"error": 0.9, "mode": "cff", "workload": "v"}]
    summary = summarise_suite(columns(*rows), Choice("p", {"p": 0.1}, 1.0))
    assert entry(summary, workload="w")["median_abs_log_ratio"] == pytest.approx(0.3)
    assert entry(summary, workload="w", mode="cff")["median_abs_log_ratio"] == 0.5
    assert entry(summary, mode="cff")["median_abs_log_ratio"] == pytest.approx(0.7)
    assert entry(summary)["rows"] == 3
    # Goals are about all of it, once.
    assert len(goals_of(summary)) == 3
    assert {e["mode"] for e in summarise_suite(columns({"error": 0.1}))} == {None}


def test_a_refusal_counts_as_infinitely_wrong() -> None:
    rows = [{"error": 0.1}] * 8 + [{"error": None}] * 2
    found = entry(summarise_suite(columns(*rows)))
    assert found["median_abs_log_ratio"] == pytest.approx(0.1)
    assert found["p90_abs_log_ratio"] is None
    assert (found["rows"], found["refused"]) == (10, 2)
    rows = [{"error": e} for e in (0.1, 0.2, 0.3, 0.4)] + [{"error": None}]
    found = entry(summarise_suite(columns(*rows)))
    assert found["median_abs_log_ratio"] == pytest.approx(0.3)


def test_nothing_in_range_gives_none() -> None:
    found = entry(summarise_suite(columns({"error": 0.1, "counts": 0})))
    assert found["rows"] == 0
    assert found["median_abs_log_ratio"] is found["noise_p90"] is found["band_coverage"] is None


def test_coverage_is_over_rows_with_a_band() -> None:
    def band(low: float | None, high: float | None, **more: object) -> dict[str, object]:
        return {"error": 0.0, "compression_predicted_low": low, "compression_predicted_high": high, **more}

    rows = [band(1.5, 2.5), band(2.0, 2.5), band(1.5, 2.0), band(2.1, 2.5), band(1.2, 1.9)]
    rows += [band(None, None), band(2.1, 2.5, counts=0)]
    assert entry(summarise_suite(columns(*rows)))["band_coverage"] == pytest.approx(3 / 5)


def test_intervals_are_those_of_splits() -> None:
    """Rows of a split go together: the interval of the median reaches from one split's to another's."""

    def row(seed: int, error: float, held: bool) -> dict[str, object]:
        low, high = (1.9, 2.1) if held else (2.1, 2.2)
        ends = {"compression_predicted_low": low, "compression_predicted_high": high}
        return {"seed": seed, "error": error, **ends}

    rows = [row(seed, error, error < 0.3) for seed, error in enumerate((0.1, 0.2, 0.3)) for _ in range(20)]
    found = entry(summarise_suite(columns(*rows)))["over_splits"]
    assert found == {"median": [0.1, 0.3], "p90": [0.1, 0.3], "coverage": [0.0, 1.0]}
    alone = entry(summarise_suite(columns(*rows[:20])))["over_splits"]
    assert alone == {"median": None, "p90": None, "coverage": None}


def make_summary(**changes: object) -> list[dict[str, object]]:
    base = {
        "workload": "all",
        "n": 16,
        "m": 16,
        "variant": None,
        "criterion": None,
        "predictor": "p",
        "rows": 100,
        "refused": 0,
        "median_abs_log_ratio": 0.04,
        "p90_abs_log_ratio": 0.14,
        "noise_median": 0.01,
        "noise_p90": 0.02,
        "sample_median": None,
        "sample_p90": None,
        "over_splits": {"median": None, "p90": None, "coverage": None},
        "band_coverage": 0.9,
        "chosen": True,
    }
    return [base | changes]


@pytest.mark.parametrize(
    ("changes", "goal", "met", "limit", "missed_by"),
    [
        ({}, "median", True, 0.05, 0),
        ({"median_abs_log_ratio": 0.05}, "median", True, 0.05, 0),
        ({"median_abs_log_ratio": 0.06}, "median", False, 0.05, 0.01),
        ({"median_abs_log_ratio": 0.06, "noise_median": 0.05}, "median", True, 0.0625, 0),
        ({"median_abs_log_ratio": 0.07, "noise_median": 0.05}, "median", False, 0.0625, 0.0075),
        ({"noise_median": None, "noise_p90": None}, "p90", True, 0.15, 0),
        ({"p90_abs_log_ratio": 0.2}, "p90", False, 0.15, 0.05),
        ({"p90_abs_log_ratio": 0.2, "noise_p90": 0.16}, "p90", True, 0.2, 0),
        ({"p90_abs_log_ratio": None}, "p90", False, 0.15, None),
        ({"band_coverage": 0.85}, "coverage", True, [0.85, 0.95], 0),
        ({"band_coverage": 0.8}, "coverage", False, [0.85, 0.95], 0.05),
        ({"band_coverage": 0.97}, "coverage", False, [0.85, 0.95], 0.02),
        ({"band_coverage": None}, "coverage", False, [0.85, 0.95], None),
    ],
)
def test_goals(changes: dict[str, object], goal: str, met: bool, limit: object, missed_by: object) -> None:
    (found,) = [g for g in goals_of(make_summary(**changes)) if g["goal"] == goal]
    assert found["met"] is met
    assert found["limit"] == pytest.approx(limit)
    assert found["missed_by"] == (None if missed_by is None else pytest.approx(missed_by))


def test_goals_name_the_limit_by_two_halves_too() -> None:
    """Two disjoint halves differ by √2 times the noise of one."""
    (found,) = [
        goal
        for goal in goals_of(make_summary(median_abs_log_ratio=0.08, noise_median=0.05))
        if goal["goal"] == "median"
    ]
    assert not found["met"]
    assert found["split_half_limit"] == pytest.approx(1.25 * 2**0.5 * 0.05)
    assert found["met_against_split_half"] is True
    words = describe(make_summary(), [found], "p", "")
    assert "(two halves of the data differ so much that 0.088 would be met)" in words[1]
    far = goals_of(make_summary(median_abs_log_ratio=0.09, noise_median=0.05))
    assert far[0]["met_against_split_half"] is False
    assert goals_of(make_summary(median_abs_log_ratio=None))[0]["met_against_split_half"] is False


def test_goals_are_about_their_splits_and_all_workloads() -> None:
    assert goals_of(make_summary(m=256)) == []
    assert goals_of(make_summary(workload="w")) == []
    assert goals_of(make_summary(variant="tree")) == []
    assert len(goals_of(make_summary(m=64))) == 3


def test_words_lead_with_what_fails() -> None:
    summary = make_summary(median_abs_log_ratio=0.08, band_coverage=0.7)
    for workload, median in (("easy", 0.01), ("hard", 0.2), ("middle", 0.09), ("harder", 0.3)):
        summary += make_summary(workload=workload, median_abs_log_ratio=median)
    words = describe(summary, goals_of(summary), "p", "Covered: little.")
    assert words[0] == "2 of 3 goals are missed by p, which was chosen on calibration requests alone."
    assert words[1] == (
        "Missed: the median error at 16 → 16 is 0.080, 1.6 times the limit of 0.050, over 100 rows; worst: "
        "harder 0.300, hard 0.200, middle 0.090."
    )
    assert words[2] == "Missed: coverage at 16 → 16 is 70%, not 85% to 95%, over 100 rows."
    known = {"median": [0.06, 0.1], "p90": None, "coverage": [0.6, 0.81]}
    surer = make_summary(median_abs_log_ratio=0.08, band_coverage=0.7, over_splits=known, sample_median=0.07)
    words = describe(surer, goals_of(surer), "p", "")
    assert "is 0.080 (0.060 to 0.100 over other splits), 1.6 times" in words[1]
    assert "; the best that 16 requests can tell would show 0.070; worst:" in words[1]
    assert "coverage at 16 → 16 is 70% (60% to 81% over other splits), not" in words[2]
    words = describe(summary, goals_of(summary), "p", "Covered: little.")
    assert words[3].startswith("Met: the 90 % quantile")
    assert words[-1] == "Covered: little."
    assert describe(make_summary(), goals_of(make_summary()), "p", "")[0].startswith("All goals are met by p")
    assert describe(make_summary(), goals_of(make_summary()), None, "")[0].startswith(
        "No predictor was chosen"
    )
    far = make_summary(m=256)
    assert "which this suite does not hold" in describe(far, goals_of(far), "p", "")[0]
    refused = make_summary(refused=7)
    assert "p predicted nothing in 7 of 100 rows at 16 → 16." in describe(refused, [], "p", "")


def test_columns_keep_what_is_not_known() -> None:
    column = as_column([1.5, None])
    assert math.isnan(column[1])
    assert as_column([1, 2]).dtype == np.int64
    assert as_column(["a", "b"]).tolist() == ["a", "b"]


def test_transfer_in_words() -> None:
    def pair(source: str, target: str, error: float, predictor: str = "p") -> dict[str, object]:
        return {
            "calibrated_on": source,
            "workload": target,
            "predictor": predictor,
            "median_abs_log_ratio": error,
        }

    entries = [pair("a", "a", 0.1), pair("b", "b", 0.3), pair("a", "b", 0.4), pair("b", "a", 0.8)]
    entries += [pair("a", "b", 9.0, "other"), pair("a", "c", 7.0, "other")]
    assert transferred(entries, "p") == [
        "Calibrated on another workload, p is off by 0.60 in the median of 2 pairs (on its own by 0.20), at "
        "worst by 0.80, from b to a."
    ]
    assert transferred(entries, None) == transferred(entries, "p")
    assert transferred([], "p") == transferred(entries[:2], "p") == []
