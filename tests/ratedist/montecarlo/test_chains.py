"""ratedist/montecarlo: the simulators against hand-made answers and each other."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from ratedist.errors import InputError
from ratedist.fusion import HardCore
from ratedist.montecarlo.chains import simulate_centroid, simulate_leader, simulate_tree
from ratedist.montecarlo.directions import simulate_directions
from ratedist.montecarlo.graph import simulate_components, simulate_matern
from ratedist.montecarlo.marked import simulate_marked
from ratedist.montecarlo.sample import Estimate, RunSample
from ratedist.montecarlo.scores import TailScores
from ratedist.similarity import Gaussian, SimilarityLaw, Spherical

LAW = Spherical(12)


@pytest.mark.parametrize("law", [Spherical(3), Spherical(64), Gaussian(0.5, 0.08)], ids=repr)
def test_best_match_follows_its_law(law: SimilarityLaw) -> None:
    """Kolmogorov's distance of 20,000 draws of the best of n scores above τ."""
    tau, count = float(law.isf(0.05)), 30
    tail = TailScores(law, tau)
    rng = np.random.default_rng(0)
    void = np.exp(-count * tail.exponent)
    uniform = rng.uniform(void, 1, 20_000)
    drawn = tail.best_of(np.log(uniform), np.full(20_000, count))
    assert drawn.min() >= tau

    def cdf(s: np.ndarray) -> np.ndarray:
        return ((1 - law.sf(s)) ** count - void) / (1 - void)

    assert scipy.stats.kstest(drawn, cdf).pvalue > 1e-3


@pytest.mark.parametrize("simulate", [simulate_leader, simulate_tree])
def test_counts_and_scores_are_the_same_process(simulate) -> None:
    """The quick simulation, which draws no scores, has the law of kept blocks of the full one."""
    units = [7, 3, 9, 9, 1]
    tau = float(LAW.isf(0.05))
    full = simulate(LAW, units, tau, runs=4000, rng=np.random.default_rng(1))
    quick = simulate(LAW, units, tau, runs=4000, rng=np.random.default_rng(2), scores=False)
    assert scipy.stats.ks_2samp(full.kept, quick.kept).pvalue > 1e-3
    assert quick.direct_error2 is None
    assert full.merges == pytest.approx(quick.merges, rel=0.02)


@pytest.mark.parametrize("simulate", [simulate_leader, simulate_tree])
def test_hard_core_of_nothing_is_no_hard_core(simulate) -> None:
    units, tau = [6] * 9, float(LAW.isf(0.08))
    plain = simulate(LAW, units, tau, runs=3000, rng=np.random.default_rng(3), scores=False)
    none = simulate(
        LAW, units, tau, runs=3000, rng=np.random.default_rng(4), scores=False, hard_core=HardCore.none(1)
    )
    assert scipy.stats.ks_2samp(plain.kept, none.kept).pvalue > 1e-3


@pytest.mark.parametrize("simulate", [simulate_leader, simulate_tree, simulate_centroid])
def test_seed_decides_everything(simulate) -> None:
    first, again = (simulate(LAW, [4, 5, 6], 0.3, runs=50, rng=np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(first.kept, again.kept)
    np.testing.assert_array_equal(first.final_error2, again.final_error2)


@pytest.mark.parametrize("simulate", [simulate_leader, simulate_tree, simulate_centroid])
def test_runs_in_batches_are_runs(simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratedist.montecarlo.chains._BATCH", 40)
    sample = simulate(LAW, [4, 5, 6], 0.3, runs=101, rng=np.random.default_rng(9))
    assert sample.kept.shape == (101,)
    assert ((sample.kept >= 4) & (sample.kept <= 15)).all()
    assert np.unique(sample.kept).size > 2


def test_tree_of_two_levels_by_hand() -> None:
    """Four units of one block: chances of every outcome, and the product of similarities of a chain."""
    q = 0.3
    tau = float(LAW.isf(q))
    sample = simulate_tree(LAW, [1, 1, 1, 1], tau, runs=40_000, rng=np.random.default_rng(5))
    # The left pair fuses, and its block absorbs all of the right side: one representative, or both blocks.
    chain, star = q * q * q, q * (1 - q) * q**2
    one = chain + star
    assert sample.coverage(1, 1) == pytest.approx(one, abs=4 * np.sqrt(one / 40_000))
    assert sample.coverage(4, 4) == pytest.approx((1 - q) ** 2 * (1 - q) ** 4, abs=0.01)
    # Three independent scores above τ; in the chain the last member stands at the product of two.
    mean = LAW.expect(lambda s: s, above=tau) / q
    found = sample.final_error2[sample.kept == 1]
    expected = 2 * (3 - (chain * (2 * mean + mean**2) + star * 3 * mean) / one)
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(found.size)


def test_centroid_of_a_pair_by_hand() -> None:
    tau = float(LAW.isf(0.2))
    sample = simulate_centroid(LAW, [1, 1], tau, runs=20_000, rng=np.random.default_rng(6))
    fused = sample.final_error2[sample.kept == 1]
    expected = LAW.expect(lambda s: 4 - 2 * np.sqrt(2 + 2 * s), above=tau) / 0.2
    assert abs(fused.mean() - expected) < 4 * fused.std() / np.sqrt(fused.size)
    assert not sample.final_error2[sample.kept == 2].any()


def test_components_of_certain_and_impossible_edges() -> None:
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(simulate_components(LAW, [3, 4], -1.0, runs=5, rng=rng).kept, np.ones(5))
    np.testing.assert_array_equal(
        simulate_components(LAW, [3, 4], 1.0, runs=5, rng=rng).kept, np.full(5, 7.0)
    )
    # Within a unit there are no edges, however low the threshold.
    np.testing.assert_array_equal(simulate_components(LAW, [5], -1.0, runs=5, rng=rng).kept, np.full(5, 5.0))


def test_components_have_every_pair_with_the_right_chance() -> None:
    """Two units of two blocks: the distribution over all 16 graphs on a 4-cycle."""
    q = 0.4
    sample = simulate_components(LAW, [2, 2], float(LAW.isf(q)), runs=20_000, rng=np.random.default_rng(8))
    p = 1 - q
    exact = {4: p**4, 3: 4 * q * p**3, 2: 6 * q**2 * p**2, 1: 4 * q**3 * p + q**4}
    for kept, chance in exact.items():
        assert abs(sample.coverage(kept, kept) - chance) < 4 * np.sqrt(chance * (1 - chance) / 20_000)


def test_marked_with_one_position_is_the_plain_process() -> None:
    q = 0.15
    units = [1] * 12
    for variant, simulate in (("leader", simulate_leader), ("tree", simulate_tree)):
        marked = simulate_marked(
            [[[q]]], units, scores=[0.4], variant=variant, runs=4000, rng=np.random.default_rng(1)
        )
        plain = simulate(LAW, units, LAW.isf(q), runs=4000, rng=np.random.default_rng(2), scores=False)
        assert scipy.stats.ks_2samp(marked.kept, plain.kept).pvalue > 1e-3


@pytest.mark.parametrize("variant", ["leader", "tree", "centroid"])
def test_directions_in_high_dimension_are_the_process(variant: str) -> None:
    """With 300 dimensions transitivity is negligible, and vectors follow the process in every respect."""
    dim, units, tau = 300, [8] * 8, 0.12
    law = Spherical(dim)
    simulate = {"leader": simulate_leader, "tree": simulate_tree, "centroid": simulate_centroid}[variant]
    process = simulate(law, units, tau, runs=2000, rng=np.random.default_rng(1))
    vectors = simulate_directions(dim, units, tau, variant=variant, runs=300, rng=np.random.default_rng(2))
    for a, b in ((process.mean_kept(), vectors.mean_kept()), (process.mean_error2(), vectors.mean_error2())):
        assert abs(a.mean - b.mean) < 4 * np.hypot(a.standard_error, b.standard_error) + 0.004 * a.mean


def test_sample_statistics() -> None:
    sample = RunSample(10, np.array([4.0, 6.0, 5.0, 5.0]), None, np.array([6.0, 4.0, 5.0, 5.0]))
    assert sample.mean_kept().mean == 5
    assert sample.std_kept() == pytest.approx(np.sqrt(2 / 3))
    assert sample.coverage(5, 6) == 0.75
    # Σ e² is exactly one for each absorbed block, so the ratio has no error at all.
    assert sample.mean_error2().mean == 1
    assert sample.mean_error2().standard_error == 0
    assert np.isnan(sample.mean_error2("direct").mean)
    assert RunSample(3, np.array([3.0, 3.0])).mean_kept() == Estimate(3.0, 0.5)
    assert Estimate(1.0, 0.5).z_score(2.0) == 2.0


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate_leader(LAW, [2], 0.5, runs=1, rng=RNG), r"runs = 1: .*at least 2"),
        (lambda: simulate_tree(LAW, [0], 0.5, runs=2, rng=RNG), r"units = 0"),
        (lambda: simulate_tree(LAW, [2], 1.5, runs=2, rng=RNG), r"threshold = 1.5"),
        (
            lambda: simulate_tree(LAW, [2], 0.5, runs=2, rng=RNG, hard_core=HardCore.none(1)),
            r"scores = True: .*pass scores=False",
        ),
        (
            lambda: simulate_tree(LAW, [2], 0.5, runs=2, rng=RNG, scores=False, hard_core=HardCore.none(2)),
            r"hard_core = '2 thresholds': must be made for one",
        ),
        (
            lambda: simulate_directions(8, [2], 0.5, variant="star", runs=2, rng=RNG),
            r"variant = 'star': must be one of leader, tree, centroid",
        ),
        (lambda: simulate_directions(1, [2], 0.5, variant="tree", runs=2, rng=RNG), r"dim = 1"),
        (
            lambda: simulate_marked([[[0.1]]], [1], scores=[0.5], variant="star", runs=2, rng=RNG),
            r"variant = 'star': must be leader or tree",
        ),
        (
            lambda: simulate_marked([[[0.1]]], [1], scores=[0.5, 0.6], variant="tree", runs=2, rng=RNG),
            r"exceedance = 'shape \(1, 1, 1\)'",
        ),
        (lambda: simulate_matern(0.1, 0, runs=2, rng=RNG), r"blocks = 0"),
        (lambda: simulate_components(LAW, [2], 0.5, runs=0, rng=RNG), r"runs = 0"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
