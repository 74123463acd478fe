"""Exceedances are read from scores as written, and what does not fit is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.exceedances import Exceedances


def blocks_of(exceedances: Exceedances) -> list[tuple[int, int]]:
    return [(a, i) for a, size in enumerate(exceedances.blocks) for i in range(size)]


def test_counts_against_loops(ragged: Exceedances) -> None:
    """Every aggregate against a plain loop over the pairs."""
    names = blocks_of(ragged)
    pairs = [(names[x], names[y]) for x, y in zip(ragged.first, ragged.second, strict=True)]
    assert ragged.count == len(pairs) > 4
    assert ragged.candidate_pairs == sum(1 for x, y in itertools.combinations(names, 2) if x[0] != y[0])
    for number, name in enumerate(names):
        assert ragged.per_block[number] == sum(name in pair for pair in pairs)
        assert (ragged.request_of[number], ragged.position_of[number]) == name
    for a in range(4):
        for b in range(4):
            seen = sum({x[0], y[0]} == {a, b} for x, y in pairs) if a != b else 0
            assert ragged.between_requests[a, b] == seen
    assert ragged.void_share == np.mean(ragged.per_block == 0)
    assert ragged.rate == ragged.count / ragged.candidate_pairs
    assert ragged.intensity == pytest.approx(ragged.per_block.mean())


def test_expectations_against_loops(ragged: Exceedances) -> None:
    """Rates by position, expected counts per block and between requests, and Σ p², for both nulls."""
    names = blocks_of(ragged)
    pairs = {frozenset((names[x], names[y])) for x, y in zip(ragged.first, ragged.second, strict=True)}
    candidates = [frozenset(c) for c in itertools.combinations(names, 2) if c[0][0] != c[1][0]]

    def cell(pair: frozenset) -> tuple[int, ...]:
        return tuple(sorted(position for _, position in pair))

    rates: dict[tuple[int, ...], float] = {}
    for key in {cell(c) for c in candidates}:
        mine = [c for c in candidates if cell(c) == key]
        rates[key] = sum(c in pairs for c in mine) / len(mine)
        i, j = key if len(key) == 2 else (key[0], key[0])
        assert ragged.position_rates()[i, j] == pytest.approx(rates[key])
        assert ragged.position_rates()[j, i] == pytest.approx(rates[key])
    for null, rate in (("positions", lambda c: rates[cell(c)]), ("homogeneous", lambda c: ragged.rate)):
        for number, name in enumerate(names):
            expected = sum(rate(c) for c in candidates if name in c)
            assert ragged.expected_per_block(null)[number] == pytest.approx(expected)
        for a, b in itertools.combinations(range(4), 2):
            expected = sum(rate(c) for c in candidates if {x[0] for x in c} == {a, b})
            assert ragged.expected_between_requests(null)[a, b] == pytest.approx(expected)
            assert ragged.expected_between_requests(null)[b, a] == pytest.approx(expected)
        assert ragged.sum_of_squared_rates(null) == pytest.approx(sum(rate(c) ** 2 for c in candidates))
        assert ragged.expected_per_block(null).sum() == pytest.approx(2 * ragged.count)


def test_commonness_is_unbiased() -> None:
    """``commonness`` times W averages Σ p² over draws, also by position where cells hold ten pairs."""
    rng = np.random.default_rng(0)
    rates = np.array([[0.3, 0.05], [0.05, 0.1]])
    made = []
    for _ in range(2000):
        mask = {(a, b): rng.random((2, 2)) < rates for a in range(5) for b in range(a + 1, 5)}
        made.append(Exceedances.from_scores(mask))
    values = np.array([each.commonness("positions") * each.count for each in made])
    assert abs(values.mean() - 10 * np.sum(rates**2)) < 4 * values.std() / math.sqrt(2000)
    mean = rates.mean()
    values = np.array([each.commonness() * each.count for each in made])
    # Homogeneous: the exceedances of independent, unequal pairs, W(W − 1)/(M − 1) in the mean.
    expected = ((40 * mean) ** 2 - 10 * np.sum(rates**2)) / 39
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(2000)
    assert Exceedances.from_scores(np.zeros((3, 2, 3, 2), dtype=bool)).commonness("positions") == 0


def test_array_and_mapping_agree() -> None:
    rng = np.random.default_rng(1)
    scores = rng.uniform(-1, 1, (4, 3, 4, 3))
    whole = Exceedances.from_scores(scores, 0.6)
    parts = Exceedances.from_scores(
        {(a, b): scores[a, :, b, :] for a in range(4) for b in range(a + 1, 4)}, 0.6
    )
    truth = Exceedances.from_scores(scores > 0.6)
    for other in (parts, truth):
        np.testing.assert_array_equal(whole.first, other.first)
        np.testing.assert_array_equal(whole.second, other.second)
        np.testing.assert_array_equal(whole.blocks, other.blocks)


def test_within_a_request_nothing_is_read() -> None:
    scores = np.full((2, 2, 2, 2), np.nan)
    scores[0, :, 1, :] = 0.5
    assert Exceedances.from_scores(scores, 0.4).count == 4
    # Strictly greater.
    assert Exceedances.from_scores(scores, 0.5).count == 0


def test_from_pairs_in_either_order() -> None:
    made = Exceedances.from_pairs([0, 2], [1, 0], [1, 0], [2, 1], blocks=[2, 3, 1])
    np.testing.assert_array_equal(made.first, [1, 1])
    np.testing.assert_array_equal(made.second, [4, 5])


def test_thinning_keeps_a_part() -> None:
    scores = np.random.default_rng(0).random((5, 4, 5, 4))
    whole = Exceedances.from_scores(scores, 0.5)
    part = whole.thin(10, np.random.default_rng(0))
    assert part.count == 10
    pairs = set(zip(whole.first, whole.second, strict=True))
    assert set(zip(part.first, part.second, strict=True)) <= pairs
    assert whole.thin(10_000, np.random.default_rng(0)) is whole


def test_bad_scores() -> None:
    scores = np.zeros((3, 2, 3, 2))
    with pytest.raises(
        InputError, match=r"scores = 'shape \(3, 2\)': must be \(requests, blocks, requests, blocks\)"
    ):
        Exceedances.from_scores(np.zeros((3, 2)), 0.5)
    with pytest.raises(InputError, match=r"scores = 'shape \(3, 2, 2, 3\)'"):
        Exceedances.from_scores(np.zeros((3, 2, 2, 3)), 0.5)
    with pytest.raises(InputError, match=r"threshold = None: is needed where scores are not boolean"):
        Exceedances.from_scores(scores)
    with pytest.raises(InputError, match=r"threshold = nan: must be a number"):
        Exceedances.from_scores(scores, np.nan)
    scores[0, 1, 2, 0] = np.nan
    with pytest.raises(
        InputError, match=r"scores = nan: must be numbers; request 0 block 1, request 2 block 0 is not"
    ):
        Exceedances.from_scores(scores, 0.5)
    with pytest.raises(InputError, match=r"scores = '0 matrices': must hold scores of two or more"):
        Exceedances.from_scores({}, 0.5)
    with pytest.raises(InputError, match=r"scores = '0 matrices'"):
        Exceedances.from_scores(np.zeros((1, 4, 1, 4)), 0.5)
    with pytest.raises(
        InputError, match=r"scores = '2 matrices for 3 requests': must hold one matrix for each of the 3"
    ):
        Exceedances.from_scores({(0, 1): np.zeros((2, 2)), (0, 2): np.zeros((2, 2))}, 0.5)
    matrices = {(0, 1): np.zeros((2, 3)), (0, 2): np.zeros((2, 1)), (1, 2): np.zeros((2, 1))}
    with pytest.raises(
        InputError, match=r"scores\[1, 2\] = 'shape \(2, 1\)': must be \(3, 1\) like the others"
    ):
        Exceedances.from_scores(matrices, 0.5)
    with pytest.raises(InputError, match=r"blocks = 0: every request must have at least one block"):
        Exceedances.from_scores({(0, 1): np.zeros((0, 3))}, 0.5)


def test_bad_pairs() -> None:
    with pytest.raises(InputError, match=r"first_request = 'lengths \[2, 1, 1, 1\]': must be four arrays"):
        Exceedances.from_pairs([0, 0], [0], [1], [0], blocks=[1, 1])
    with pytest.raises(InputError, match=r"second_request = '2 to 2': must lie between 0 and 1"):
        Exceedances.from_pairs([0], [0], [2], [0], blocks=[1, 1])
    with pytest.raises(InputError, match=r"second_block = 1: request 1 has 1 blocks"):
        Exceedances.from_pairs([0], [0], [1], [1], blocks=[1, 1])
    with pytest.raises(InputError, match=r"second_request = 0: must differ from the first"):
        Exceedances.from_pairs([0], [0], [0], [1], blocks=[2, 1])
    with pytest.raises(InputError, match=r"first_request = '2 pairs': must not hold the same pair twice"):
        Exceedances.from_pairs([0, 1], [0, 0], [1, 0], [0, 0], blocks=[2, 1])
    for blocks in ([3], [[1, 2]], [1.5, 2.0]):
        with pytest.raises(InputError, match=r"blocks = .*: must be whole numbers of blocks of two or more"):
            Exceedances.from_pairs([], [], [], [], blocks=blocks)
    with pytest.raises(InputError, match=r"null = 'marked': must be one of homogeneous, positions"):
        Exceedances.from_pairs([0], [0], [1], [0], blocks=[1, 1]).expected_per_block("marked")
