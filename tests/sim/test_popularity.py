"""Pitman-Yor processes and successions."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.sim.popularity import PitmanYor, Succession, fit_pitman_yor, fit_succession

LAWS = [
    PitmanYor(0.0, 2.0),
    PitmanYor(0.5, 1.0),
    PitmanYor(0.9, -0.5),
    PitmanYor(-0.5, 5.0),
    PitmanYor(0.2, 1.0, 0.4),
    PitmanYor(-1.0, 6.0, 0.3),
]


def draw(law: PitmanYor, draws: int, rng: np.random.Generator) -> list[int]:
    """Group sizes after so many draws, with unique draws known to be so."""
    process = PitmanYor(law.discount, law.strength)
    sizes: list[int] = []
    unique = 0
    for _ in range(draws):
        if rng.random() < law.unique:
            unique += 1
        elif rng.random() < process.new(sizes):
            sizes.append(1)
        else:
            weights = np.array(sizes) - law.discount
            sizes[int(rng.choice(len(sizes), p=weights / weights.sum()))] += 1
    return sizes + [1] * unique


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_likelihood_is_the_product_of_the_draws(law: PitmanYor) -> None:
    """``PitmanYor.new`` and ``weights`` multiply to ``log_likelihood``, in two orders of the same draws."""
    for order in ([0, 0, 1, 0, 2, 1], [0, 1, 2, 0, 1, 0]):
        sizes: list[int] = []
        chance = 1.0
        for kind in order:
            if kind < len(sizes):
                weights = law.weights(sizes)
                chance *= (1 - law.new(sizes)) * weights[kind] / weights.sum()
                sizes[kind] += 1
            else:
                chance *= law.new(sizes)
                sizes.append(1)
        assert law.log_likelihood([3, 2, 1]) == pytest.approx(np.log(chance))


def test_unique_draws_are_a_sum_over_which_they_are() -> None:
    """By hand: two kinds seen once are unique or not, one seen twice is not."""
    process = PitmanYor(0.3, 1.0)
    u = 0.25
    parts = [
        (1 - u) ** 4 * np.exp(process.log_likelihood([2, 1, 1])),
        2 * u * (1 - u) ** 3 * np.exp(process.log_likelihood([2, 1])),
        u**2 * (1 - u) ** 2 * np.exp(process.log_likelihood([2])),
    ]
    assert PitmanYor(0.3, 1.0, u).log_likelihood([2, 1, 1]) == pytest.approx(np.log(sum(parts)))


def test_a_finite_library_has_no_more_kinds() -> None:
    law = PitmanYor(-2.0, 6.0)
    assert law.new([4, 3, 3]) == 0
    assert law.log_likelihood([2, 2, 2, 2]) == -np.inf


def test_fit_recovers_the_growth() -> None:
    """Kinds expected at four times the sample, from the fit against simulation from the truth."""
    rng = np.random.default_rng(0)
    for law in LAWS:
        samples = [draw(law, 40, rng) for _ in range(50)]
        fit = fit_pitman_yor(samples)
        kinds = {
            name: np.array([len(draw(process, 160, rng)) for _ in range(80)])
            for name, process in (("truth", law), ("fit", fit))
        }
        assert kinds["fit"].mean() == pytest.approx(kinds["truth"].mean(), rel=0.15), (law, fit)


def test_nothing_repeated_is_taken_as_always_new() -> None:
    once = [1] * 30
    for partitions in ([], [[1], [1]], [once]):
        assert fit_pitman_yor(partitions).new(once) > 0.9


def test_succession_is_consistent() -> None:
    """Bayes' rule of ``Succession.new``: chances of a whole history multiply to its mixture likelihood."""
    for law in (PitmanYor(0.3, 1.0), PitmanYor(0.1, 0.5, 0.2)):
        succession = Succession(0.5, 0.2, law)
        same = np.prod([1 - succession.new([n]) for n in (1, 2, 3)])
        assert same == pytest.approx(0.5 + 0.3 * np.exp(law.log_likelihood([4])))
        other = np.prod([succession.new([1] * n) for n in (1, 2, 3)])
        assert other == pytest.approx(0.2 + 0.3 * np.exp(law.log_likelihood([1, 1, 1, 1])))
        assert succession.new([]) == 1
        assert succession.new([3, 2]) == law.new([3, 2])


def test_fit_tells_sure_contexts_from_free_ones() -> None:
    sure = fit_succession([[3]] * 20 + [[1, 1, 1]] * 2)
    assert sure.new([3]) < 0.05
    assert sure.new([1, 1, 1]) > 0.9
    free = fit_succession([[1, 1, 1]] * 20 + [[3]] * 2)
    assert free.new([1]) > 0.8 > sure.new([1])
