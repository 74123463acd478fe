"""The verdict: what it says on captures whose answer is known, and how often it errs."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.exceedances import Exceedances
from ratedist.exceedances.scatter import scatter
from ratedist.poisson_check import NEEDED, PoissonCheck, _triangles, poisson_check
from ratedist.similarity import Spherical


def directions(
    requests: int, blocks: int, dim: int, rng: np.random.Generator, *, prefix: int = 0
) -> np.ndarray:
    """Uniform unit vectors (requests, blocks, dim); the first ``prefix`` blocks of all requests are equal."""
    x = rng.standard_normal((requests, blocks, dim))
    x[:, :prefix] = x[0, :prefix]
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def exceedances_of(x: np.ndarray, threshold: float) -> Exceedances:
    n, p, dim = x.shape
    flat = x.reshape(n * p, dim)
    return Exceedances.from_scores((flat @ flat.T).reshape(n, p, n, p), threshold)


def threshold_at(intensity: float, requests: int, blocks: int, dim: int) -> float:
    return float(Spherical(dim).isf(intensity / ((requests - 1) * blocks)))


def uniform(intensity: float, seed: int, n: int = 64, p: int = 32, dim: int = 64) -> Exceedances:
    x = directions(n, p, dim, np.random.default_rng(seed))
    return exceedances_of(x, threshold_at(intensity, n, p, dim))


@pytest.mark.parametrize(
    ("intensity", "requests", "blocks"), [(0.01, 64, 40), (0.01, 100, 32), (0.005, 96, 48)]
)
def test_uniform_directions_are_poisson(intensity: float, requests: int, blocks: int) -> None:
    """Independent uniform directions at Λ <= 0.01: "Poisson", with a Chen-Stein bound that says something."""
    for seed in range(2):
        check = poisson_check(uniform(intensity, seed, requests, blocks, 48))
        assert check.verdict == "Poisson", str(check)
        assert check.by_block.bound < 0.1
        assert "total variation distance at most" in str(check)
        assert check.clusters.extremal_index > 0.8
        assert abs(check.void_share - check.void_expected) < 5 * check.void_error + 1e-9


def test_uniform_directions_at_a_high_intensity() -> None:
    """At Λ = 1 the bound is vacuous and says so; the counts are still Poisson."""
    check = poisson_check(uniform(1.0, 0, 48, 24, 64))
    assert check.verdict == "Poisson"
    assert check.by_block.bound == 1
    assert "the Chen-Stein bound says nothing" in str(check)
    assert check.by_block.ratio == pytest.approx(1, abs=0.15)
    assert check.dispersion is not None
    assert check.dispersion.per_block == pytest.approx(1, abs=4 * math.sqrt(2 / check.blocks))
    assert check.block_counts is not None
    assert check.block_counts.poisson_p > 1e-3


def test_dense_fusion_is_not_poisson() -> None:
    """Few dimensions and a wide cap: two directions in one cap exceed each other, triangles close."""
    n, p, dim = 32, 16, 8
    check = poisson_check(exceedances_of(directions(n, p, dim, np.random.default_rng(0)), 0.7))
    assert check.verdict == "not Poisson"
    assert "close a triangle" in str(check)


@pytest.mark.parametrize("prefix", [2, 8])
def test_shared_prefix_is_not_poisson(prefix: int) -> None:
    """One prompt in front of every request: few blocks meet everyone, the others nobody."""
    n, p, dim = 24, 20, 64
    x = directions(n, p, dim, np.random.default_rng(1), prefix=prefix)
    made = exceedances_of(x, threshold_at(0.01, n, p, dim))
    check = poisson_check(made)
    assert check.verdict == "not Poisson", str(check)
    assert "share a block" in str(check)
    assert check.clumping[0].ratio > 0.8 * p / prefix
    assert check.by_block.ratio > 0.8 * p / prefix
    # exp(−Λ) promises that hardly a block is left over; most of them are.
    assert check.void_share > 1 - prefix / p - 0.05
    assert check.void_expected < 0.2
    # Knowing the positions explains where, but a pair that always exceeds is not rare.
    marked = poisson_check(made, null="positions")
    assert marked.verdict == "not Poisson"
    assert "they are not rare" in str(marked)


def test_prefix_shared_by_some_is_not_poisson() -> None:
    """A passage of ten blocks that three of 48 requests copied."""
    n, p, dim = 48, 24, 64
    rng = np.random.default_rng(2)
    x = directions(n, p, dim, rng)
    x[[5, 9], :10] = x[3, :10]
    check = poisson_check(exceedances_of(x, threshold_at(0.01, n, p, dim)))
    assert check.verdict == "not Poisson"
    assert "join the same two requests" in str(check)
    assert check.dispersion is not None
    assert check.dispersion.total > 5
    assert check.clusters.sizes[0] == 30
    assert check.clusters.extremal_index < 0.5 * check.extremal_index_by_chance


def test_positions_explain_a_position_effect() -> None:
    """Pairs at equal positions exceed more often, independently: not homogeneous, yet Poisson by position."""
    rng = np.random.default_rng(3)
    n, p = 40, 16
    rates = np.where(np.eye(p, dtype=bool), 0.02 * (np.arange(p) < 4)[:, None], 1e-4)
    mask = {(a, b): rng.random((p, p)) < rates for a in range(n) for b in range(a + 1, n)}
    made = Exceedances.from_scores(mask)
    assert poisson_check(made).verdict == "not Poisson"
    assert poisson_check(made, null="positions").verdict == "Poisson"


def test_false_alarms() -> None:
    """Scattered pairs, 60 times: "not Poisson" at most at its level of 1 %, give or take 4 errors."""
    base = uniform(0.1, 0, 24, 20, 48)
    rng = np.random.default_rng(4)
    checks = [poisson_check(made, draws=799, rng=rng) for made in scatter(base, 60, rng)]
    verdicts = [check.verdict for check in checks]
    # Its p-values are two-sided and uniform, but for the ties of counts.
    small = np.mean([check.clumping[2].p_value < 0.3 for check in checks])
    assert 0.1 < small < 0.3 + 4 * math.sqrt(0.3 * 0.7 / 60)
    assert verdicts.count("not Poisson") / 60 <= 0.01 + 4 * math.sqrt(0.01 * 0.99 / 60)
    assert verdicts.count("Poisson") >= 56


@pytest.mark.parametrize(("null", "bias"), [("homogeneous", 0.0), ("positions", 0.1)])
def test_triangles_by_chance(null: str, bias: float) -> None:
    """Among scattered pairs as many triangles close as their wedges give by chance (z-score of 100 draws).

    By position the two sides of a wedge are missing from their cells, which the expectation leaves out: with
    some 15 exceedances in a cell it is a tenth too high at most, on the safe side.
    """
    rng = np.random.default_rng(6)
    n, p = 16, 8
    rates = 0.02 * (1 + 4 * np.eye(p))
    mask = {(a, b): rng.random((p, p)) < rates for a in range(n) for b in range(a + 1, n)}
    closed = np.array(
        [_triangles(made, null) for made in scatter(Exceedances.from_scores(mask), 100, rng, null)]
    )
    observed, expected = closed.T
    assert expected.mean() > 5
    gap = (observed - expected).mean()
    error = (observed - expected).std() / math.sqrt(100)
    assert -4 * error - bias * expected.mean() < gap < 4 * error


def test_triangles_against_loops() -> None:
    rng = np.random.default_rng(7)
    made = Exceedances.from_scores(rng.random((5, 4, 5, 4)) < 0.15)
    pairs = set(zip(made.first.tolist(), made.second.tolist(), strict=True))
    triples = [
        t for t in itertools.combinations(range(20), 3) if {(t[0], t[1]), (t[0], t[2]), (t[1], t[2])} <= pairs
    ]
    assert _triangles(made, "homogeneous")[0] == len(triples) > 0


def in_twos(
    kind: str, count: int, rng: np.random.Generator, requests: int = 64, blocks: int = 32
) -> Exceedances:
    """``count`` exceedances of which every two share a block, or the same two requests."""
    pairs: list[tuple[int, int, int, int]] = []
    while len(pairs) < count:
        a, b, c = rng.choice(requests, 3, replace=False)
        i, j, k, m = rng.choice(blocks, 4, replace=False)
        pairs += [(a, i, b, j), (a, i, c, k) if kind == "block" else (a, k, b, m)]
    return Exceedances.from_pairs(*np.array(pairs).T, blocks=[blocks] * requests)


@pytest.mark.parametrize("kind", ["block", "requests"])
@pytest.mark.parametrize("count", [NEEDED, 20, 100])
def test_power_at_the_smallest_count(kind: str, count: int) -> None:
    """Exceedances that come in twos: "Poisson" in less than 5 % (here never, of 12 each)."""
    rng = np.random.default_rng(5)
    verdicts = [poisson_check(in_twos(kind, count, rng), rng=rng).verdict for _ in range(12)]
    assert verdicts.count("Poisson") == 0
    assert verdicts.count("not Poisson") >= 11


def test_undecided_where_little_is_seen() -> None:
    none = poisson_check(Exceedances.from_scores(np.zeros((6, 4, 6, 4), dtype=bool)))
    assert none.verdict == "undecided"
    assert "lower the threshold or give more requests" in str(none)
    few = Exceedances.from_pairs([0, 2, 4], [0, 1, 2], [1, 3, 5], [3, 0, 1], blocks=[8] * 60)
    check = poisson_check(few)
    assert check.verdict == "undecided"
    assert "at least 6 exceedances are needed" in str(check)
    rng = np.random.default_rng(0)
    two = poisson_check({(0, 1): rng.random((200, 200)) < 2e-4})
    assert two.verdict == "undecided"
    assert "2 requests; at least 5 are needed" in str(two)
    assert two.dispersion is None


def test_undecided_where_clumps_would_not_show() -> None:
    """Seven exceedances among five requests: some join the same two by chance, companions would not show."""
    made = Exceedances.from_pairs(
        [0, 0, 0, 1, 1, 2, 3],
        [0, 1, 2, 3, 4, 5, 6],
        [1, 2, 3, 2, 4, 4, 4],
        [7, 8, 9, 10, 11, 12, 13],
        blocks=[40] * 5,
    )
    check = poisson_check(made)
    assert check.verdict == "undecided"
    assert "a companion for every exceedance would not show among 5 requests (kind " in str(check)


def test_common_pairs_are_not_poisson() -> None:
    rng = np.random.default_rng(0)
    check = poisson_check(rng.random((8, 6, 8, 6)), 0.7)
    assert check.verdict == "not Poisson"
    assert "mean probability 0.31: they are not rare" in str(check)


def test_many_exceedances_are_thinned_for_the_test() -> None:
    """More than 4,000: the companions per exceedance are those of the whole set all the same."""
    rng = np.random.default_rng(1)
    n, p = 30, 30
    popularity = rng.gamma(2.0, 0.5, (n, p))
    mask = {
        (a, b): rng.random((p, p)) < 0.03 * np.outer(popularity[a], popularity[b])
        for a in range(n)
        for b in range(a + 1, n)
    }
    made = Exceedances.from_scores(mask)
    assert made.count > 10_000
    check = poisson_check(made)
    block = check.clumping[0]
    exact = np.sum(made.per_block * (made.per_block - 1)) / 2
    chance = [np.sum(m.per_block * (m.per_block - 1)) / 2 for m in scatter(made, 10, rng)]
    assert block.observed == pytest.approx(exact, rel=0.06)
    assert block.expected == pytest.approx(np.mean(chance), rel=0.02)
    assert block.excess == pytest.approx(2 * (exact - np.mean(chance)) / made.count, rel=0.15)
    assert check.verdict == "not Poisson"
    # Gamma-distributed popularity of blocks makes their counts negative binomial.
    assert check.block_counts is not None
    assert check.block_counts.size == pytest.approx(2.0, rel=0.2)
    assert check.block_counts.compound_p > 1e-3 > check.block_counts.poisson_p


def test_same_seed_same_verdict() -> None:
    made = uniform(0.02, 1)
    first, again = poisson_check(made, rng=7), poisson_check(made, rng=7)
    assert first.to_dict() == again.to_dict()


def test_json() -> None:
    check = poisson_check(uniform(0.02, 2, 40, 20))
    data = json.loads(json.dumps(check.to_dict(), allow_nan=False))
    assert data["verdict"] == check.verdict
    assert data["by_block"]["ratio"] == pytest.approx(check.by_block.ratio)
    assert data["clusters"]["extremal_index"] == pytest.approx(check.clusters.extremal_index)
    assert isinstance(check, PoissonCheck)
    assert str(check).startswith(f"{check.verdict}: ")


def test_bad_input() -> None:
    made = uniform(0.02, 0, 10, 5)
    with pytest.raises(
        InputError, match=r"threshold = 0\.5: the exceedances are given already; leave it out"
    ):
        poisson_check(made, 0.5)
    with pytest.raises(InputError, match=r"null = 'marked': must be one of homogeneous, positions"):
        poisson_check(made, null="marked")
    with pytest.raises(InputError, match=r"level = 0: must lie in \(0, 1\)"):
        poisson_check(made, level=0)
    with pytest.raises(InputError, match=r"draws = 99: at least 799 are needed for p-values of 0\.01"):
        poisson_check(made, draws=99)
    scores = np.zeros((3, 2, 3, 2))
    scores[0, 0, 1, 1] = np.nan
    with pytest.raises(
        InputError, match=r"scores = nan: must be numbers; request 0 block 0, request 1 block 1"
    ):
        poisson_check(scores, 0.5)
