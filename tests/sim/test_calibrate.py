"""Round trips: generate from known parameters, calibrate, generate again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ratedist.errors import InputError
from ratedist.sim.blocks import SyntheticLayer, generate, synthesise
from ratedist.sim.calibrate import Calibration, calibrate
from ratedist.sim.distance import law_distance, pair_scores
from ratedist.sim.parameters import BlockParameters
from ratedist.sim.rotary import Rotary

SMALL: dict[str, Any] = {"block_size": 4, "kv_heads": 2, "head_dim": 32, "rotary_base": 500.0}
REQUESTS, BLOCKS = 16, 10

WORLDS: dict[str, dict[str, Any]] = {
    "unrelated": {"common_k": 0.6, "common_v": 0.2, "dimension_k": 60, "dimension_v": 80, "spread_k": 0.02},
    "prefix": {"common_k": 0.6, "dimension_k": 60, "prefix_blocks": 4, "prefix_groups": 2},
    "edits": {
        "common_k": 0.6,
        "dimension_k": 60,
        "edit_sources": 3,
        "edit_share": 0.6,
        "edit_similarity": 0.93,
    },
    "positions": {"common_k": 0.4, "position_k": 0.2, "dimension_k": 60, "rotary_base": None},
    "chunks": {
        "common_k": 0.6,
        "dimension_k": 60,
        "chunks": 6,
        "chunk_blocks": 5,
        "chunk_share": 1.0,
        "chunk_reuse": "recompute",
        "edit_similarity": 0.94,
    },
}


def world(name: str, requests: int, seed: int) -> SyntheticLayer:
    return synthesise(BlockParameters(**{**SMALL, **WORLDS[name]}), requests, BLOCKS, seed=seed)


def halves(name: str, requests: int, seed: int) -> tuple[Calibration, SyntheticLayer, SyntheticLayer]:
    """Calibrated on the first requests of a world; what it generates, and the world's other requests."""
    layer = world(name, REQUESTS + requests, seed)
    base = WORLDS[name].get("rotary_base", SMALL["rotary_base"])
    rotary = None if base is None else Rotary(base)
    calibration = calibrate(layer.k[:REQUESTS], layer.v[:REQUESTS], rotary=rotary, seed=seed)
    return calibration, generate(calibration.model, requests, BLOCKS, seed=seed), rest(layer, REQUESTS)


def rest(layer: SyntheticLayer, first: int) -> SyntheticLayer:
    return SyntheticLayer(
        *(getattr(layer, f)[first:] for f in ("k", "v", "full_blocks", "domains", "identity"))
    )


def kept(layer: SyntheticLayer, thresholds: list[float]) -> np.ndarray:
    """Leader on a similarity matrix, the definition itself; byte-equal blocks score 1."""
    requests, blocks = layer.identity.shape
    flat = layer.k.flatten(0, 1).flatten(1).double()
    flat = flat / flat.norm(dim=1, keepdim=True)
    scores = (flat @ flat.T).numpy()
    result = []
    for threshold in thresholds:
        stays = np.ones(requests * blocks, dtype=bool)
        for start in range(blocks, requests * blocks, blocks):
            seen = scores[start : start + blocks, :start][:, stays[:start]]
            stays[start : start + blocks] = seen.max(axis=1) <= threshold
        result.append(stays.sum())
    return np.array(result, dtype=float)


@pytest.mark.parametrize("name", WORLDS)
def test_round_trip_reproduces_the_law_of_similarity(name: str) -> None:
    """Distances of the laws of S stated: Wasserstein below 0.02, and 0.04 by position difference.

    Which chunks meet is a matter of 48 draws: 0.03 and 0.1 there. How often versions of one template meet
    is harder to tell from 16 requests: 0.06.
    """
    overall, by_difference = {"chunks": (0.03, 0.1), "edits": (0.02, 0.06)}.get(name, (0.02, 0.04))
    _, made, held = halves(name, 24, 1)
    for side in ("k", "v"):
        one, other = (
            pair_scores(getattr(layer, side).numpy(), layer.full_blocks.numpy()) for layer in (made, held)
        )
        assert law_distance(one.scores, other.scores).wasserstein < overall
        for difference in (0, 1, 5):
            a, b = (pairs.scores[pairs.difference == difference] for pairs in (one, other))
            assert law_distance(a, b).wasserstein < by_difference, (side, difference)


@pytest.mark.parametrize("name", WORLDS)
def test_round_trip_reproduces_kept_blocks(name: str) -> None:
    """Mean over worlds of ln(kept, generated over held out) within 4 standard errors plus what is stated.

    Contents that recur are harder: from 16 requests the process of contents cannot tell that the edited
    templates stand in no order, nor exactly how many chunks there are.
    """
    stated = {"edits": 0.2, "chunks": 0.2}.get(name, 0.05)
    thresholds = [0.55, 0.65, 0.75, 0.85, 0.95]
    logs = []
    for seed in range(5):
        _, made, held = halves(name, 24, seed)
        logs.append(np.log(kept(made, thresholds) / kept(held, thresholds)))
    mean, error = np.mean(logs, axis=0), np.std(logs, axis=0, ddof=1) / np.sqrt(len(logs))
    assert np.all(np.abs(mean) < stated + 4 * error), (mean, error)
    # The bound must have teeth: compression differs by factors of 2 and more between these thresholds.
    assert np.all(4 * error < 0.6), error


def test_finds_what_was_put_in() -> None:
    calibration, made, _ = halves("prefix", 24, 3)
    model = calibration.model
    # 16 requests share 2 prefixes of 4 blocks.
    assert calibration.distinct == REQUESTS * (BLOCKS - 4) + 8
    assert calibration.requests == REQUESTS
    assert calibration.blocks == REQUESTS * BLOCKS
    np.testing.assert_allclose(np.square(model.keys.alignment), 0.6, atol=0.02)
    assert model.keys.effective_dimension == pytest.approx(60, rel=0.15)
    identity = made.identity.numpy()
    assert np.unique(identity[:, :4], axis=0).shape[0] in (2, 3)
    assert np.unique(identity[:, 4:]).size > 0.95 * 24 * (BLOCKS - 4)


def test_spread_norms_and_couplings_come_back() -> None:
    parameters = BlockParameters(
        **SMALL,
        spread_k=0.04,
        norm_k=7.0,
        norm_spread_k=0.2,
        norm_spread_v=0.1,
        norm_coupling=0.7,
        coupling=0.8,
        dimension_k=50,
        dimension_v=50,
    )
    layer = synthesise(parameters, 30, 10, seed=5)
    model = calibrate(layer.k, layer.v, rotary=Rotary(500.0)).model
    assert model.keys.alignment_spread == pytest.approx(0.04, rel=0.25)
    assert model.values.alignment_spread < 0.03
    assert np.exp(model.keys.log_norm).mean() == pytest.approx(7.0, rel=0.1)
    assert model.keys.log_norm_spread == pytest.approx(0.2, rel=0.2)
    assert model.norm_coupling == pytest.approx(0.7, abs=0.1)
    one, other = (pair_scores(x.numpy(), layer.full_blocks) for x in (layer.k, layer.v))
    made = generate(model, 30, 10, seed=1)
    again = [pair_scores(x.numpy(), made.full_blocks) for x in (made.k, made.v)]
    same = one.difference == 0
    there = again[0].difference == 0
    expected = np.corrcoef(one.scores[same], other.scores[same])[0, 1]
    assert np.corrcoef(again[0].scores[there], again[1].scores[there])[0, 1] == pytest.approx(
        expected, abs=0.12
    )


def test_no_block_of_the_sample_comes_back() -> None:
    calibration, made, _ = halves("prefix", 12, 6)
    layer = world("prefix", REQUESTS + 12, 6)
    flat = [x.flatten(0, 1).flatten(1).double() for x in (made.k, layer.k[:REQUESTS])]
    unit = [x / x.norm(dim=1, keepdim=True) for x in flat]
    assert float((unit[0] @ unit[1].T).max()) < 0.99
    assert calibration.model.shape == (4, 2, 32)


def test_unequal_lengths_and_more_positions_than_the_sample_has() -> None:
    layer = synthesise(
        BlockParameters(**SMALL, prefix_blocks=2), 6, [5, 2, 5, 1, 4, 3], seed=7, dtype=torch.float16
    )
    model = calibrate(layer.k, layer.v, full_blocks=layer.full_blocks, rotary=Rotary(500.0)).model
    made = generate(model, 3, [9, 1, 7], seed=0, dtype=torch.float16)
    assert made.full_blocks.tolist() == [9, 1, 7]
    assert bool(torch.isfinite(made.k).all())


def test_seeds_reproduce_bytes() -> None:
    one, again = (halves("edits", 4, 8)[1] for _ in range(2))
    assert torch.equal(one.k, again.k)
    assert torch.equal(one.v, again.v)


def test_blocks_that_are_all_equal() -> None:
    block = torch.ones(3, 2, 4, 2, 32)
    made = generate(calibrate(block, block).model, 3, 2, seed=0)
    assert bool(torch.isfinite(made.k).all())
    assert len(torch.unique(made.identity)) <= 2


def test_bad_input() -> None:
    layer = world("unrelated", 3, 0)
    k, v = layer.k, layer.v
    with pytest.raises(InputError, match=r"k = \(4, 2, 32\): must have shape \(requests, max_blocks"):
        calibrate(k[0, 0], v[0, 0])
    with pytest.raises(InputError, match=r"v = .* must have the shape of k"):
        calibrate(k, v[:2])
    with pytest.raises(InputError, match=r"k = 1: must hold at least two requests"):
        calibrate(k[:1], v[:1])
    with pytest.raises(InputError, match=r"full_blocks = 2: must hold one count for each of 3 requests"):
        calibrate(k, v, full_blocks=[1, 2])
    with pytest.raises(InputError, match=r"full_blocks = \(1, 0, 2\): must lie in 1 … 10"):
        calibrate(k, v, full_blocks=[1, 0, 2])
    bad = k.clone()
    bad[1, 4, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"k = 'request 1, block 4': holds NaN or infinity"):
        calibrate(bad, v)
    zero = v.clone()
    zero[2, 3] = 0
    with pytest.raises(InputError, match=r"v = 'request 2, block 3': has norm zero"):
        calibrate(k, zero)
