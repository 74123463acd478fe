"""Synthetic blocks against what their parameters say, with z-scores; seeds, bytes and identities."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from ratedist.errors import InputError
from ratedist.sim.blocks import SyntheticLayer, synthesise
from ratedist.sim.parameters import BlockParameters
from ratedist.sim.rotary import Rotary
from ratedist.similarity import Spherical

SMALL: dict[str, Any] = {"block_size": 4, "kv_heads": 2, "head_dim": 32}


def made(requests: int, blocks: int, seed: int = 0, **parameters: Any) -> SyntheticLayer:
    return synthesise(BlockParameters(**{**SMALL, **parameters}), requests, blocks, seed=seed)


def scores(blocks: torch.Tensor) -> np.ndarray:
    """(requests, blocks, requests, blocks) cosines, NaN between blocks of one request."""
    requests, count = blocks.shape[:2]
    flat = blocks.flatten(2).flatten(0, 1).double()
    flat = flat / flat.norm(dim=1, keepdim=True)
    table = (flat @ flat.T).numpy().reshape(requests, count, requests, count)
    table[np.arange(requests), :, np.arange(requests)] = np.nan
    return table


def aligned(table: np.ndarray, difference: int = 0) -> np.ndarray:
    """(requests, requests, pairs) scores of blocks whose positions differ by so much."""
    pairs = np.arange(table.shape[1] - difference)
    return np.stack([table[:, p, :, p + difference] for p in pairs], axis=-1)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean over pairs of requests, and its standard error by leaving requests out one by one."""
    requests = len(values)
    total, count = np.nansum(values), np.isfinite(values).sum()
    out = []
    for i in range(requests):
        own = np.concatenate([values[i].ravel(), np.delete(values[:, i], i, axis=0).ravel()])
        out.append((total - np.nansum(own)) / (count - np.isfinite(own).sum()))
    spread = (requests - 1) / requests * np.square(np.array(out) - np.mean(out)).sum()
    return float(total / count), float(np.sqrt(spread))


def assert_mean(values: np.ndarray, expected: float, *, least: float = 1e-5) -> None:
    mean, error = mean_and_error(values)
    assert abs(mean - expected) < 4 * max(error, least), f"{mean} ± {error}, expected {expected}"


@pytest.mark.parametrize(
    "parameters",
    [
        {"common_k": 0.7, "common_v": 0.2, "rotary_base": None},
        {"common_k": 0.7, "rotary_base": 500.0, "dimension_k": 40, "dimension_v": 25},
        {"common_k": 0.4, "position_k": 0.25, "dimension_k": 60},
        {"common_k": 0.6, "spread_k": 0.05, "dimension_k": 50},
        {"common_k": 0.0, "common_v": 0.0, "dimension_k": 10},
    ],
    ids=["full", "rotary", "position", "spread", "no-mean"],
)
def test_moments_of_the_score(parameters: dict[str, Any]) -> None:
    """E S = common + position and Var S = (1 − E S)²/dimension, for keys and values."""
    layer = made(60, 6, seed=1, **parameters)
    p = BlockParameters(**{**SMALL, **parameters})
    for blocks, mean, dimension, common in (
        (layer.k, p.common_k + p.position_k, p.dimension_k, p.common_k),
        (layer.v, p.common_v, p.dimension_v, p.common_v),
    ):
        values = aligned(scores(blocks))
        assert_mean(values, mean)
        if blocks is layer.v or p.spread_k == 0:
            # In all dimensions the residual loses the one of the mean.
            effective = dimension or p.block_dim - (common > 0)
            squares = np.square(values - mean)
            assert_mean(squares, (1 - mean) ** 2 / effective)


def test_some_blocks_are_more_typical_than_others() -> None:
    """A block's mean score over many others is α·E[α]: its spread is that of α times E[α]."""
    layer = made(400, 1, common_k=0.6, spread_k=0.05, dimension_k=120, rotary_base=None)
    typical = np.nanmean(scores(layer.k)[:, 0, :, 0], axis=1)
    # Of 400 means, less what the residuals leave in a mean of 399 scores.
    noise = 0.4**2 / 120 / 399
    spread = np.sqrt(typical.var(ddof=1) - noise) / np.sqrt(0.6)
    assert abs(spread - 0.05) < 4 * 0.05 / np.sqrt(2 * 400)


def test_similarity_falls_with_distance_as_the_rotation_says() -> None:
    """Blocks Δ apart: E S = common · mean cosine of a turn by Δ blocks, over common directions."""
    theta, common, block = 300.0, 0.8, 4
    parameters = BlockParameters(
        block_size=block, kv_heads=8, head_dim=64, common_k=common, common_v=0.5, rotary_base=theta
    )
    means: dict[int, list[float]] = {0: [], 1: [], 3: [], 6: []}
    flat = []
    for seed in range(12):
        layer = synthesise(parameters, 4, 8, seed=seed)
        for difference, found in means.items():
            found.append(float(np.nanmean(aligned(scores(layer.k), difference))))
        flat.append(float(np.nanmean(aligned(scores(layer.v), 3))))
    for difference, found in means.items():
        expected = common * float(Rotary(theta).mean_cosine(64, difference * block))
        error = np.std(found, ddof=1) / np.sqrt(len(found))
        assert abs(np.mean(found) - expected) < 4.5 * error + 1e-4, difference
    assert means[0][0] > means[1][0] > means[3][0]
    assert np.mean(flat) == pytest.approx(0.5, abs=0.01)  # values show no position


def test_positions_of_their_own_are_alike_at_the_same_position_only() -> None:
    table = scores(made(40, 5, common_k=0.5, position_k=0.2, rotary_base=None, dimension_k=80).k)
    assert_mean(aligned(table), 0.7)
    for difference in (1, 4):
        assert_mean(aligned(table, difference), 0.5)


def test_blocks_of_a_topic_are_alike() -> None:
    layer = made(
        60,
        6,
        topics=3,
        topics_per_request=1,
        topic_k=0.3,
        topic_v=0.5,
        common_k=0.5,
        common_v=0.1,
        rotary_base=None,
    )
    table = scores(layer.k)
    values = aligned(table).mean(axis=-1)
    # One topic per request: pairs of requests fall into two clusters.
    same = values > 0.5 + 0.5 * 0.3 / 2
    assert same[~np.eye(60, dtype=bool)].mean() == pytest.approx(1 / 3, abs=0.15)
    assert_mean(np.where(same[..., None], aligned(table), np.nan), 0.5 + 0.5 * 0.3)
    in_values = aligned(scores(layer.v))
    assert_mean(np.where(same[..., None], in_values, np.nan), 0.1 + 0.9 * 0.5)


def test_uniform_blocks_follow_the_spherical_law() -> None:
    """Kolmogorov-Smirnov against the law, on pairs that share no block."""
    for dimension in (3, 16):
        layer = synthesise(BlockParameters.uniform(dimension), 2, 3000, seed=4)
        table = np.einsum("pd,pd->p", *(x.reshape(3000, -1).numpy() for x in layer.k))
        grid = np.sort(table)
        cdf = Spherical(dimension).cdf(grid)
        steps = np.arange(3001) / 3000
        distance = max(np.abs(cdf - steps[1:]).max(), np.abs(cdf - steps[:-1]).max())
        assert distance < 1.95 / np.sqrt(3000)  # the 0.1 % quantile
        v = np.einsum("pd,pd->p", *(x.reshape(3000, -1).numpy() for x in layer.v))
        assert abs(np.corrcoef(table, v)[0, 1]) < 4 / np.sqrt(3000)


def test_the_gaussian_preset_has_its_two_moments() -> None:
    parameters = BlockParameters.gaussian(0.6, 0.06)
    values = aligned(scores(synthesise(parameters, 50, 10, seed=5).k))
    assert_mean(values, 0.6)
    assert_mean(np.square(values - 0.6), 0.06**2, least=1e-6)


@pytest.mark.parametrize("reuse", ["copy", "recompute"])
def test_duplicates_are_byte_equal_and_edits_are_not(reuse: str) -> None:
    layer = made(
        12, 12, seed=2, prefix_blocks=3, prefix_groups=2, chunks=3, chunk_blocks=2, chunk_share=0.6,
        chunk_reuse=reuse, edit_sources=2, edit_share=0.5, edit_similarity=0.95, norm_spread_k=0.2,
    )  # fmt: skip
    identity = layer.identity.flatten()
    data = torch.cat([layer.k.flatten(2), layer.v.flatten(2)], dim=2).flatten(0, 1)
    rows = [row.numpy().tobytes() for row in data]
    equal = np.array([[a == b for b in rows] for a in rows])
    assert np.array_equal(equal, (identity[:, None] == identity).numpy())
    prefixes = {row[:3] and b"".join(row) for row in (rows[i * 12 : i * 12 + 3] for i in range(12))}
    assert len(prefixes) == 2
    repeats = len(rows) - len(set(rows))
    inside = 12 * 3 - 2 * 3
    assert repeats == inside if reuse == "recompute" else repeats > inside + 20
    # No two blocks of one prefix are equal.
    assert len(set(rows[:3])) == 3


def test_edited_versions_have_the_similarity_asked_for() -> None:
    layer = made(
        60,
        4,
        edit_sources=1,
        edit_share=1.0,
        edit_similarity=0.9,
        common_k=0.6,
        dimension_k=60,
        rotary_base=200.0,
    )
    assert len(torch.unique(layer.identity)) == 240
    assert_mean(aligned(scores(layer.k)), 0.9)


def test_recomputed_chunks_turn_with_their_place_and_copies_do_not() -> None:
    both = {
        reuse: made(
            20, 8, seed=3, chunks=1, chunk_blocks=2, chunk_share=1.0, chunk_reuse=reuse, edit_similarity=0.99,
            common_k=0.6, rotary_base=50.0,
        )
        for reuse in ("copy", "recompute")
    }  # fmt: skip
    copied, computed = (scores(both[reuse].k) for reuse in ("copy", "recompute"))
    assert np.nanmin(aligned(copied, 2)[..., ::2]) > 1 - 1e-6
    assert_mean(aligned(computed), 0.99)
    assert np.nanmax(aligned(computed, 2)[..., ::2]) < 0.9


def test_share_of_chunks_and_edits() -> None:
    layer = made(200, 10, chunks=4, chunk_blocks=5, chunk_share=0.3, chunk_skew=1.0)
    first = layer.identity[:, ::5].numpy().ravel()
    counts = np.unique(first, return_counts=True)[1]
    library = np.sort(counts[counts > 1])[::-1]
    assert abs(library.sum() / 400 - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)
    weights = 1 / np.arange(1, 5)
    expected = library.sum() * weights / weights.sum()
    assert np.all(np.abs(library - expected) < 4 * np.sqrt(expected))


def test_norms_have_their_law_position_and_coupling() -> None:
    layer = made(
        300, 4, norm_k=5.0, norm_v=2.0, norm_spread_k=0.2, norm_spread_v=0.1, norm_slope=0.3, norm_first=0.5,
        norm_coupling=0.6,
    )  # fmt: skip
    k, v = (x.flatten(2).double().norm(dim=2).log().numpy() for x in (layer.k, layer.v))
    slope = 0.3 * np.arange(4) + np.array([np.log(0.5), 0, 0, 0])
    for values, mean, spread in ((k, np.log(5.0), 0.2), (v, np.log(2.0), 0.1)):
        assert np.all(np.abs(values.mean(axis=0) - mean - slope) < 4 * spread / np.sqrt(300))
        residual = values - slope
        assert abs(residual.std() - spread) < 4 * spread / np.sqrt(2 * residual.size)
    correlation = np.corrcoef((k - slope).ravel(), (v - slope).ravel())[0, 1]
    assert abs(correlation - 0.6) < 4 * (1 - 0.36) / np.sqrt(1200)


def test_coupling_correlates_scores_of_keys_and_values() -> None:
    """With equal dimensions the correlation of S_K and S_V of unrelated blocks is the coupling squared."""
    for coupling in (0.0, 0.8):
        layer = made(2, 3000, coupling=coupling, dimension_k=30, dimension_v=30, rotary_base=None)
        k, v = (aligned(scores_of_pair(x)) for x in (layer.k, layer.v))
        correlation = np.corrcoef(k.ravel(), v.ravel())[0, 1]
        assert abs(correlation - coupling**2) < 4 / np.sqrt(3000)


def scores_of_pair(blocks: torch.Tensor) -> np.ndarray:
    """Scores of equal positions of two requests, shaped as ``aligned`` takes them."""
    a, b = blocks.flatten(2).double()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).numpy()
    table = np.full((1, len(cosine), 1, len(cosine)), np.nan)
    table[0, np.arange(len(cosine)), 0, np.arange(len(cosine))] = cosine
    return table


def test_a_seed_reproduces_the_bytes() -> None:
    parameters = {"prefix_blocks": 2, "topics": 2, "topic_k": 0.2, "norm_spread_k": 0.1, "dimension_k": 50}
    one, again, other = made(5, 6, 7, **parameters), made(5, 6, 7, **parameters), made(5, 6, 8, **parameters)
    assert torch.equal(one.k, again.k)
    assert torch.equal(one.v, again.v)
    assert not torch.equal(one.k, other.k)
    longer = made(9, 6, 7, **parameters)
    assert torch.equal(longer.k[:5], one.k)


def test_layers_hold_the_same_content_under_other_directions() -> None:
    parameters = BlockParameters(**SMALL, prefix_blocks=2, common_k=0.5)
    one, two = (synthesise(parameters, 4, 5, seed=1, layer=layer) for layer in (0, 1))
    assert torch.equal(one.identity, two.identity)
    assert abs(float(scores(torch.cat([one.k[:1], two.k[:1]]))[0, :, 1].mean())) < 0.2


def test_unequal_lengths_dtypes_and_domains() -> None:
    parameters = BlockParameters(**SMALL, domains=2, prefix_blocks=3)
    layer = synthesise(parameters, 3, [4, 1, 2], seed=0, dtype=torch.bfloat16)
    assert layer.k.shape == (3, 4, 4, 2, 32)
    assert layer.k.dtype == torch.bfloat16
    assert layer.lengths.tolist() == [16, 4, 8]
    assert layer.domains.tolist() == [0, 1, 0]
    assert layer.identity[1].tolist() == [0, -1, -1, -1]
    assert not layer.k[1, 1:].any()
    k, v = layer.tokens(2)
    assert k.shape == v.shape == (8, 2, 32)
    assert torch.equal(k[4:], layer.k[2, 1])


def test_bad_input() -> None:
    parameters = BlockParameters(**SMALL)
    with pytest.raises(InputError, match=r"requests = 0: must be a whole number of at least 1"):
        synthesise(parameters, 0, 4, seed=0)
    with pytest.raises(InputError, match=r"blocks = 0: must be at least 1 in every request"):
        synthesise(parameters, 2, [3, 0], seed=0)
    with pytest.raises(InputError, match=r"blocks = 1: must be one number, or one for each of 2 requests"):
        synthesise(parameters, 2, [3], seed=0)
    with pytest.raises(InputError, match=r"dtype = 'torch.int64': must be float32, float16 or bfloat16"):
        synthesise(parameters, 2, 3, seed=0, dtype=torch.int64)
    crowded = dataclasses.replace(parameters, dimension_k=250, position_k=0.1)
    with pytest.raises(InputError, match=r"dimension_k = 250: must leave room for 10 directions"):
        synthesise(crowded, 2, 10, seed=0)
