"""ratedist/fusion/marked.py against the sampled process, the homogeneous recursion, and quadrature."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.fusion import leader, leader_marked, tree, tree_marked
from ratedist.montecarlo.marked import simulate_marked
from ratedist.similarity import Gaussian

RECURSIONS = {"leader": leader_marked, "tree": tree_marked}


def near_the_diagonal(positions: int, peak: float, reach: float) -> np.ndarray:
    distance = np.abs(np.subtract.outer(np.arange(positions), np.arange(positions)))
    return peak * np.exp(-distance / reach)


def falling(chance: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Exceedance over a grid of scores: chance at the first one, 0 at score 1."""
    return chance * ((1 - grid) / (1 - grid[0]))[:, None, None] ** 2


def check(variant: str, exceedance: np.ndarray, lengths: list[int], grid: np.ndarray) -> None:
    runs = 1500
    result = RECURSIONS[variant](exceedance, lengths, thresholds=grid[:1], scores=grid, spread=True)
    sample = simulate_marked(
        exceedance, lengths, scores=grid, variant=variant, runs=runs, rng=np.random.default_rng(len(lengths))
    )
    kept, error2 = sample.mean_kept(), sample.mean_error2("direct")
    assert abs(kept.z_score(result.total_kept[0])) < 4
    assert abs(error2.z_score(result.mean_over_matches(lambda s: 2 - 2 * s)[0])) < 4
    low, high = result.band()
    assert result.kept_std is not None
    assert result.kept_std[0] == pytest.approx(sample.std_kept(), rel=0.12)
    assert sample.coverage(low[0], high[0]) >= 0.85


PROBLEMS = [
    (near_the_diagonal(6, 0.3, 1.0), [6] * 25),
    (near_the_diagonal(5, 0.6, 0.5), [5, 2, 3, 5, 1, 4, 5, 5, 2, 3, 1, 5, 5]),
    (np.array([[0.0, 0.3, 0.0], [0.02, 0.0, 0.1], [0.4, 0.0, 0.05]]), [3] * 30),
]


@pytest.mark.parametrize(("chance", "lengths"), PROBLEMS)
def test_leader_agrees_with_simulation(chance: np.ndarray, lengths: list[int]) -> None:
    grid = np.linspace(0.5, 0.95, 6)
    check("leader", falling(chance, grid), lengths, grid)


@pytest.mark.parametrize(("chance", "lengths"), PROBLEMS)
def test_tree_agrees_with_simulation(chance: np.ndarray, lengths: list[int]) -> None:
    grid = np.linspace(0.5, 0.95, 6)
    check("tree", falling(chance, grid), lengths, grid)


@pytest.mark.parametrize("variant", ["leader", "tree"])
def test_equal_positions_are_the_homogeneous_recursion(variant: str) -> None:
    law = Gaussian(0.4, 0.1)
    tau = np.linspace(0.5, 0.8, 7)
    units = [6] * 40
    plain = {"leader": leader, "tree": tree}[variant](law, units, tau)
    marked = RECURSIONS[variant](
        lambda s: np.full((6, 6), float(law.sf(s))), units, thresholds=tau, spread=True
    )
    np.testing.assert_allclose(marked.total_kept, plain.kept, rtol=0.003)
    np.testing.assert_allclose(marked.kept_std, plain.kept_std, rtol=0.05)
    # Each position keeps the same.
    np.testing.assert_allclose(marked.kept, marked.kept[:, :1] * np.ones(6))


def test_match_sums_agree_with_quadrature() -> None:
    law = Gaussian(0.4, 0.1)
    grid = np.linspace(0.5, 0.999, 400)
    plain = leader(law, [6] * 20, [0.6])
    marked = leader_marked(
        lambda s: np.full((6, 6), float(law.sf(s))), [6] * 20, thresholds=[0.6], scores=grid
    )
    assert marked.mean_over_matches(lambda s: 2 - 2 * s)[0] == pytest.approx(plain.direct_error2[0], rel=1e-3)
    assert marked.mean_over_matches(marked.scores**2)[0] == pytest.approx(
        plain.direct_similarity2[0], rel=1e-3
    )
    by_position = np.repeat(marked.scores[:, None], 6, axis=1)
    np.testing.assert_allclose(
        marked.sum_over_matches(by_position), marked.sum_over_matches(lambda s: s), rtol=1e-12
    )
    np.testing.assert_allclose(marked.sum_over_matches(np.ones_like).sum(axis=1), marked.absorbed, rtol=1e-4)


@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 5), min_size=1, max_size=12),
    st.floats(0.0, 1.0),
    st.sampled_from(["leader", "tree"]),
    st.booleans(),
)
def test_bounds_and_monotony(
    positions: int, lengths: list[int], peak: float, variant: str, spread: bool
) -> None:
    lengths = [min(length, positions) for length in lengths]
    tau = np.linspace(0.3, 0.95, 5)
    result = RECURSIONS[variant](
        falling(near_the_diagonal(positions, peak, 1.0), tau), lengths, thresholds=tau, spread=spread
    )
    assert (result.total_kept >= lengths[0] - 1e-9).all()
    assert (result.kept <= result.blocks + 1e-9).all()
    assert (result.kept >= -1e-12).all()
    assert (np.diff(result.total_kept) >= -1e-6).all()
    assert result.blocks.sum() == sum(lengths)
    assert result.matched is not None
    assert (np.diff(result.matched, axis=1) <= 1e-9).all()
    np.testing.assert_allclose(result.matched[:, 0].sum(axis=1), result.absorbed, rtol=0.02, atol=1e-6)


def test_certain_and_impossible_exceedance() -> None:
    always = leader_marked(np.ones((1, 3, 3)), [2, 3, 3], thresholds=[0.5])
    np.testing.assert_allclose(always.kept, [[1, 1, 0]], atol=1e-12)
    own = tree_marked(np.eye(3)[None], [3, 3, 1, 3], thresholds=[0.5])
    np.testing.assert_allclose(own.kept, [[1, 1, 1]], atol=1e-12)
    never = tree_marked(np.zeros((1, 3, 3)), [2, 3, 3], thresholds=[0.5])
    np.testing.assert_allclose(never.kept, [[3, 3, 2]])
    assert np.isnan(never.mean_over_matches(lambda s: s)[0])


def test_rows_are_the_new_block_and_columns_the_kept_one() -> None:
    """Position 0 of a new request matches position 1 of the first, which itself matches nothing."""
    chance = np.array([[[0.0, 1.0], [0.0, 0.0]]])
    np.testing.assert_allclose(leader_marked(chance, [2, 2], thresholds=[0.5]).kept, [[1, 2]], atol=1e-12)


def test_subtrees_of_equal_lengths_are_computed_once_and_rightly() -> None:
    """Five thousand requests of two lengths in a repeating order, against their tree taken by hand."""
    chance = near_the_diagonal(3, 0.2, 1.0)[None]
    lengths = [3, 2] * 8
    kept = [leader_marked(chance, [3, 2], thresholds=[0.5]).total_kept[0]]
    assert tree_marked(chance, [3, 2], thresholds=[0.5]).total_kept[0] == pytest.approx(kept[0])
    whole = tree_marked(chance, lengths, thresholds=[0.5]).total_kept[0]
    mixed = tree_marked(chance, [*lengths[:-1], 3], thresholds=[0.5]).total_kept[0]
    assert whole < mixed < whole + 1


def test_thresholds_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tau = np.linspace(0.3, 0.9, 9)
    exceedance = falling(near_the_diagonal(4, 0.5, 1.0), tau)
    lengths = [1, 2, 3, 4, 4, 3]
    whole = tree_marked(exceedance, lengths, thresholds=tau)
    monkeypatch.setattr("ratedist.fusion._positions._STATE_ENTRIES", 60)
    parts = tree_marked(exceedance, lengths, thresholds=tau)
    np.testing.assert_allclose(parts.kept, whole.kept)
    np.testing.assert_allclose(parts.matched, whole.matched)


ONE = np.full((1, 2, 2), 0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: leader_marked(ONE, [2, 3], thresholds=[0.5]), r"full_blocks = 3: must be at most 2"),
        (lambda: leader_marked(ONE, [2, 0], thresholds=[0.5]), r"full_blocks = 0: must be a whole number"),
        (lambda: leader_marked(ONE, [], thresholds=[0.5]), r"full_blocks = 'shape \(0,\)'"),
        (lambda: tree_marked(ONE, [2], thresholds=[0.5, 0.4]), r"thresholds = \[0.5, 0.4\]: must be sorted"),
        (lambda: tree_marked(ONE, [2], thresholds=[0.5, 0.6]), r"must hold one matrix for each of 2 scores"),
        (lambda: tree_marked(ONE[0], [2], thresholds=[0.5]), r"exceedance = 'shape \(2, 2\)'.*square"),
        (lambda: tree_marked(ONE * 4, [2], thresholds=[0.5]), r"exceedance = 1.2: must be chances"),
        (lambda: tree_marked(ONE * np.nan, [2], thresholds=[0.5]), r"exceedance = nan: must be chances"),
        (
            lambda: tree_marked(np.array([ONE[0], 2 * ONE[0]]), [2], thresholds=[0.5, 0.6]),
            r"must not rise with the score; positions \(0, 0\) do",
        ),
        (lambda: tree_marked(ONE, [2], thresholds=[1.0]), r"exceedance = 0.3: must be 0 at score 1"),
        (
            lambda: tree_marked(ONE, [2], thresholds=[0.5], scores=[0.6]),
            r"scores = \[0.6\]: .*0.5 is missing",
        ),
        (
            lambda: tree_marked(ONE, [2, 2], thresholds=[0.5]).mean_over_matches(np.ones(7)),
            r"function = 'values of shape \(7,\)'",
        ),
        (
            lambda: tree_marked(ONE, [2, 2], thresholds=[0.5]).mean_over_matches(lambda s: s * np.nan),
            r"function = 'NaN or infinity'",
        ),
        (
            lambda: tree_marked(ONE, [2], thresholds=[0.5], matches=False).mean_over_matches(lambda s: s),
            r"matches = False: was asked for; call with matches=True",
        ),
        (lambda: tree_marked(ONE, [2], thresholds=[0.5]).band(), r"spread = False: .*spread=True"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
