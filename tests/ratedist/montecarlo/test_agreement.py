"""Every recursion beside its Monte Carlo: a quick part of the table in docs/theory.md, by fixed seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.montecarlo.__main__ import main
from ratedist.montecarlo.agreement import agreement_rows, random_settings, summarise, vector_rows

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def process() -> Rows:
    return agreement_rows(settings=8, runs=1000, seed=20)


@pytest.fixture(scope="module")
def vectors() -> Rows:
    return vector_rows(settings=5, runs=100, seed=3)


def test_every_recursion_is_there(process: Rows) -> None:
    found = {(row["recursion"], row["quantity"]) for row in process}
    plain = {("leader", "kept"), ("leader", "direct_error2"), ("one block at a time", "kept")}
    tree = {("tree", quantity) for quantity in ("kept", "direct_error2", "final_error2")}
    more = {("centroid", "kept"), ("centroid", "final_error2"), ("components", "kept")}
    core = {("leader, hard core", "kept"), ("tree, hard core", "kept")}
    marked = {
        (f"position-marked {variant}", quantity)
        for variant in ("leader", "tree")
        for quantity in ("kept", "direct_error2")
    }
    assert found >= plain | tree | more | core | marked


def test_means_agree_within_four_standard_errors(process: Rows) -> None:
    """About 90 comparisons at 4 standard errors: one false alarm in 150 changes of the seed."""
    compared = [row for row in process if row["z"] is not None]
    assert len(compared) >= 80
    far = [row for row in compared if abs(row["z"]) > 4]
    assert not far, far
    # Nor do small gaps add up: the z-scores spread like those of correct answers.
    assert np.sqrt(np.mean([row["z"] ** 2 for row in compared])) < 1.35


def test_band_covers_the_runs(process: Rows) -> None:
    """85 to 95 %, give or take three standard errors of a share over these few runs."""
    covered = [row["coverage"] for row in process if row.get("coverage") is not None]
    assert len(covered) >= 10
    slack = 3 * np.sqrt(0.09 / 1000)
    assert all(0.85 - slack <= share <= 0.95 + slack for share in covered), covered


def test_spread_agrees(process: Rows) -> None:
    for row in process:
        if row["quantity"] == "kept" and row["std_simulated"] >= 2:
            assert row["std_predicted"] == pytest.approx(row["std_simulated"], rel=0.13), row


def test_centroid_is_a_model_within_five_per_cent(process: Rows) -> None:
    gaps = [row["gap_percent"] for row in process if row["recursion"] == "centroid" and row["z"] is None]
    assert gaps
    assert max(np.abs(gaps)) < 5


def test_hard_core_closes_the_gap_to_vectors(vectors: Rows) -> None:
    """With the hard core kept blocks of leader and tree are right to 1 % beyond their error; errors too."""
    for row in vectors:
        if row["recursion"] in ("leader", "tree"):
            sampling = 100 * row["standard_error"] / row["simulated"]
            assert abs(row["gap_percent"]) < 1 + 4 * sampling, row

    def worst(recursion: str) -> float:
        return max(
            abs(row["gap_percent"])
            for row in vectors
            if row["recursion"] == recursion and row["quantity"] == "kept"
        )

    for variant in ("leader", "tree"):
        assert worst(variant) < worst(f"{variant}, no hard core")


def test_rows_are_reproducible_and_plain() -> None:
    first, again = (agreement_rows(settings=1, runs=20, seed=5) for _ in range(2))
    assert first == again
    for row in first:
        assert all(isinstance(value, str | int | float | None) for value in row.values())


def test_summary_and_command(process: Rows, capsys: pytest.CaptureFixture[str]) -> None:
    summary = summarise(process)
    assert sum(row["settings"] for row in summary) == len(process)
    tree = next(row for row in summary if row["recursion"] == "tree" and row["quantity"] == "kept")
    z = [abs(row["z"]) for row in process if row["recursion"] == "tree" and row["quantity"] == "kept"]
    assert tree["worst_z"] == max(z)
    small = ["--settings", "1", "--runs", "10", "--vector-settings", "1", "--vector-runs", "5"]
    assert main(small) == 0
    out, err = capsys.readouterr()
    assert out.count("\n|---") == 2
    assert "| tree | final_error2 |" in out
    assert "1 of 1 settings" in err
    assert main([*small[:2], "--runs", "1"]) == 2
    assert "runs = 1" in capsys.readouterr().err


def test_progress_counts_settings() -> None:
    seen: list[tuple[int, int]] = []
    agreement_rows(settings=2, runs=5, seed=1, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]


def test_settings_are_varied() -> None:
    settings = list(random_settings(40, np.random.default_rng(0)))
    assert any(np.unique(setting.units).size > 1 for setting in settings)
    assert any(setting.units.size % 2 for setting in settings)
    chances = np.array([setting.chance for setting in settings])
    assert chances.min() < 0.01 < 0.2 < chances.max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: agreement_rows(settings=0), r"count = 0|settings = 0"),
        (lambda: agreement_rows(runs=1), r"runs = 1: .*at least 2"),
        (lambda: vector_rows(settings=0), r"settings = 0"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
