"""Scores of pairs, by criterion."""

from __future__ import annotations

import pytest
import torch
from caches import generator
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, score_oracle

from ratedist.errors import InputError
from ratedist.kernels.fusion import _match_cpu
from ratedist.kernels.fusion.scoring import CRITERIA, Part, Pools, make_scoring


def pools(dtype: torch.dtype, seed: int, blocks: int = 9) -> Pools:
    parts = []
    for part in range(2):
        random = generator(seed + 1000 * part)
        pool = torch.randn(blocks, 3, 1, 4, generator=random) + torch.randn(3, 1, 4, generator=random)
        pool *= torch.rand(blocks, 1, 1, 1, generator=random) + 0.3
        pool[part] = 0.0
        pool[4] = pool[3]
        pool = pool.to(dtype)
        parts.append(Part(pool, _match_cpu.block_norms(pool)))
    return Pools(parts[0], parts[1])


@given(st.sampled_from(CRITERIA), st.sampled_from(DTYPES), st.integers(0, 100))
def test_scores_are_those_of_the_definition(criterion: str, dtype: torch.dtype, seed: int) -> None:
    """ratedist.kernels.fusion.scoring.CRITERIA, over pairs and over all of a matrix."""
    layer = pools(dtype, seed)
    scoring = make_scoring(criterion, [layer])
    ids = torch.arange(9)
    expected = score_oracle(layer.k.pool, layer.v.pool, ids, ids, criterion)
    rows, cols = (grid.flatten() for grid in torch.meshgrid(ids, ids, indexing="ij"))
    found = scoring.pairs(rows, cols)
    torch.testing.assert_close(found.double(), expected.flatten(), rtol=2e-6, atol=2e-6)
    for col in ids:
        score, _ = _match_cpu.best_match(scoring, ids, col[None])
        torch.testing.assert_close(score.double(), expected[:, col], rtol=2e-6, atol=2e-6)


@given(st.sampled_from(CRITERIA), st.integers(0, 100))
def test_over_layers_a_term_is_the_mean(criterion: str, seed: int) -> None:
    layers = [pools(torch.float32, seed + n) for n in range(3)]
    ids = torch.arange(9)
    keys, values = (
        sum(
            score_oracle(getattr(layer, part).pool, getattr(layer, part).pool, ids, ids, single)
            for layer in layers
        )
        / 3
        for part in ("k", "v")
        # Over one pool twice, "distance" is that pool's own part.
        for single in ["distance" if criterion == "distance" else "keys"]
    )
    expected = {
        "keys": keys,
        "both": torch.minimum(keys, values),
        "mean": (keys + values) / 2,
        "distance": (keys + values) / 2,
    }[criterion]
    rows, cols = (grid.flatten() for grid in torch.meshgrid(ids, ids, indexing="ij"))
    found = make_scoring(criterion, layers).pairs(rows, cols)
    torch.testing.assert_close(found.double(), expected.flatten(), rtol=2e-6, atol=2e-6)
    score, _ = _match_cpu.best_match(make_scoring(criterion, layers), ids, ids.flip(0))
    torch.testing.assert_close(score.double(), expected.amax(1), rtol=2e-6, atol=2e-6)


def test_distance_asks_what_the_member_loses() -> None:
    """Half of a block for its double loses a quarter of that one's squares; the double for the half, all."""
    k = torch.ones(2, 1, 1, 4)
    k[1] = 2.0
    part = Part(k, _match_cpu.block_norms(k))
    scoring = make_scoring("distance", [Pools(part, part)])
    assert scoring.pairs(torch.tensor([1, 0]), torch.tensor([0, 1])).tolist() == [1 - 0.25 / 2, 0.5]


def test_norms_far_apart_make_no_nan() -> None:
    k = torch.ones(3, 1, 1, 4)
    k[1] *= 1e-19
    k[2] *= 4e18
    part = Part(k, _match_cpu.block_norms(k))
    ids = torch.arange(3)
    for criterion in CRITERIA:
        scoring = make_scoring(criterion, [Pools(part, part)])
        for shift in range(3):
            pairs = scoring.pairs(ids, ids.roll(shift))
            assert not bool(pairs.isnan().any())
        score, position = _match_cpu.best_match(scoring, ids, ids)
        torch.testing.assert_close(score, torch.ones(3))
        assert criterion != "distance" or position.tolist() == [0, 1, 2]


def test_an_unknown_criterion() -> None:
    with pytest.raises(InputError, match="criterion = 'values': must be one of keys, both, mean, distance"):
        make_scoring("values", [pools(torch.float32, 0)])
