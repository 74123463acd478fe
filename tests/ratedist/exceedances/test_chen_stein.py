"""Chen-Stein terms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.exceedances import Exceedances, chen_stein


@pytest.mark.parametrize("neighbourhood", ["block", "request"])
@pytest.mark.parametrize("null", ["homogeneous", "positions"])
def test_terms_against_enumeration(ragged: Exceedances, neighbourhood: str, null: str) -> None:
    """b₁ and b₂ of ``chen_stein`` against the double sum over pairs and their neighbours."""
    names = [(a, i) for a, size in enumerate(ragged.blocks) for i in range(size)]
    numbers = {name: number for number, name in enumerate(names)}
    alphas = [c for c in itertools.combinations(names, 2) if c[0][0] != c[1][0]]
    exceeds = set(zip(ragged.first.tolist(), ragged.second.tolist(), strict=True))
    rates = ragged.position_rates()

    def p(alpha: tuple) -> float:
        return ragged.rate if null == "homogeneous" else rates[alpha[0][1], alpha[1][1]]

    def marks(alpha: tuple) -> set:
        return set(alpha) if neighbourhood == "block" else {name[0] for name in alpha}

    def seen(alpha: tuple) -> bool:
        return (numbers[alpha[0]], numbers[alpha[1]]) in exceeds

    b1 = b2 = 0.0
    for alpha in alphas:
        for beta in alphas:
            if marks(alpha) & marks(beta):
                b1 += p(alpha) * p(beta)
                b2 += seen(alpha) * seen(beta) * (alpha != beta)
    found = chen_stein(ragged, neighbourhood, null)
    assert found.b1 == pytest.approx(b1)
    assert found.b2 == pytest.approx(b2)
    assert found.mean == ragged.count
    assert found.ratio == pytest.approx(b2 / b1)
    factor = (1 - math.exp(-ragged.count)) / ragged.count
    assert found.bound == pytest.approx(min(1, factor * (b1 + b2)))


def test_bound_of_a_few_pairs() -> None:
    """Three pairs among 2 × 50 × 50 blocks, two of which share one: (1 − e^{−3})/3·(b₁ + b₂)."""
    few = Exceedances.from_pairs([0, 0, 0], [1, 1, 2], [1, 1, 1], [4, 5, 6], blocks=[50, 50])
    found = chen_stein(few, "block")
    rate = 3 / 2500
    assert found.b1 == pytest.approx(2500 * 99 * rate**2)
    assert found.b2 == 2
    alone = Exceedances.from_pairs([0, 0], [1, 2], [1, 1], [4, 6], blocks=[500, 500])
    found = chen_stein(alone, "block")
    assert found.b2 == 0
    assert found.bound == pytest.approx((1 - math.exp(-2)) / 2 * 250_000 * 999 * (2 / 250_000) ** 2)


def test_size_on_independent_pairs() -> None:
    """On independent pairs b₂/λ is 2Λ by block and 2Λ·p by request, b₁/λ the same and 1/λ more."""
    rng = np.random.default_rng(0)
    n, p, intensity = 20, 25, 0.05
    q = intensity / ((n - 1) * p)
    mean = q * p * p * n * (n - 1) / 2
    # A pair's neighbours by block are 2(n − 1)p − 2 other pairs, by request (2n − 3)p² − 1.
    neighbours = {"block": 2 * (n - 1) * p - 2, "request": (2 * n - 3) * p * p - 1}
    terms: dict[str, list[tuple[float, float]]] = {"block": [], "request": []}
    for _ in range(300):
        mask = {(a, b): rng.random((p, p)) < q for a in range(n) for b in range(a + 1, n)}
        made = Exceedances.from_scores(mask)
        for neighbourhood, into in terms.items():
            found = chen_stein(made, neighbourhood)
            into.append((found.b1, found.b2))
    for neighbourhood, values in terms.items():
        b1, b2 = np.array(values).T
        expected = mean * neighbours[neighbourhood] * q
        assert abs(b2.mean() - expected) < 4 * b2.std() / math.sqrt(300)
        own = (neighbours[neighbourhood] + 1) / neighbours[neighbourhood]
        assert abs(b1.mean() - expected * own * (1 + 1 / mean)) < 4 * b1.std() / math.sqrt(300)
        size = 2 * intensity * (1 if neighbourhood == "block" else p)
        assert expected / mean == pytest.approx(size, rel=0.05)


def test_without_exceedances_the_bound_is_zero() -> None:
    empty = Exceedances.from_scores(np.zeros((3, 2, 3, 2), dtype=bool))
    for neighbourhood in ("block", "request"):
        found = chen_stein(empty, neighbourhood)
        assert found.bound == 0
        assert math.isnan(found.ratio)


def test_unknown_neighbourhood(ragged: Exceedances) -> None:
    with pytest.raises(InputError, match=r"neighbourhood = 'layer': must be 'block' or 'request'"):
        chen_stein(ragged, "layer")
    with pytest.raises(InputError, match=r"null = 'marked': must be one of homogeneous, positions"):
        chen_stein(ragged, "block", "marked")
