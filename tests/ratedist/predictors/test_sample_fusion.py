"""predictors.sample_fusion: against the reference kernels, and its counts against its own fusions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import BlockTable, PagedLayer
from ratedist.predictors.sample_fusion import (
    Exceedances,
    Units,
    cyclic_orders,
    fuse_sample,
    leader_survivors,
    tree_kept,
)
from ratedist.validate.calibrate import pair_sample

THRESHOLDS = np.array([0.1, 0.45, 0.7, 1.0])
VARIANTS = ["leader", "tree"]


def paged(lengths: list[int], rng: np.random.Generator) -> PagedLayer:
    """Requests of ``lengths`` blocks of 2 tokens near a few directions, some of them copies of others."""
    total = sum(lengths)
    centre = rng.normal(size=(4, 2, 1, 6))
    k = centre[rng.integers(0, 4, total)] + 0.5 * rng.normal(size=(total, 2, 1, 6))
    copied = rng.integers(0, total, size=(total // 3, 2))
    for target, source in copied:
        k[target] = k[source]
    v = k + 0.1
    entries = torch.full((len(lengths), max(lengths)), 0, dtype=torch.int32)
    start = 0
    for request, length in enumerate(lengths):
        entries[request, :length] = torch.arange(start, start + length, dtype=torch.int32)
        start += length
    table = BlockTable(entries, 2 * torch.tensor(lengths), torch.zeros(len(lengths), dtype=torch.int64), 2)
    return PagedLayer(torch.tensor(k, dtype=torch.float32), torch.tensor(v, dtype=torch.float32), table)


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=st.integers(0, 2**20), lengths=st.lists(st.integers(1, 5), min_size=2, max_size=6))
def test_agrees_with_the_reference_kernels(variant: str, seed: int, lengths: list[int]) -> None:
    """The same representative for every block, byte-equal ones and chains in the tree included."""
    layer = paged(lengths, np.random.default_rng(seed))
    sample = pair_sample(layer)
    units = Units.of(sample.request, sample.position, sample.duplicate, np.ones(len(sample.request), bool))
    score = sample.scores("keys")[np.ix_(units.block, units.block)]
    fused = fuse_sample(score, units, np.arange(len(lengths)), THRESHOLDS, variant)
    widest = max(lengths)
    logical = units.owner() * widest + units.position
    for index, threshold in enumerate(THRESHOLDS):
        expected = fuse(layer, threshold=float(threshold), variant=variant, backend="reference")
        found = logical[fused.representative[index]]
        assert found.tolist() == expected.representative.flatten()[logical].tolist()
        assert fused.kept[index].sum() == expected.kept


def setting(seed: int, lengths: list[int]) -> tuple[np.ndarray, Units]:
    sample = pair_sample(paged(lengths, np.random.default_rng(seed)))
    units = Units.of(sample.request, sample.position, sample.duplicate, np.ones(len(sample.request), bool))
    return sample.scores("keys")[np.ix_(units.block, units.block)], units


@given(seed=st.integers(0, 2**20), lengths=st.lists(st.integers(1, 4), min_size=3, max_size=6))
def test_counts_are_those_of_the_fusions(seed: int, lengths: list[int]) -> None:
    """Every replicate, step and position of the leader variant; the tree whole and without its last."""
    score, units = setting(seed, lengths)
    n = len(lengths)
    rng = np.random.default_rng(seed)
    orders = np.array([rng.permutation(n) for _ in range(3)])
    left_out = np.concatenate([np.zeros((1, n), bool), np.eye(n, dtype=bool)])
    exceedances = Exceedances(score, units, THRESHOLDS, left_out)
    by_position, total, by_order = leader_survivors(exceedances, orders)
    np.testing.assert_allclose(by_position.sum(axis=2), total[0])
    for order, counts in zip(orders, by_order, strict=True):
        fused = fuse_sample(score, units, order, THRESHOLDS, "leader").kept
        by_request = [fused[:, units.rows(int(request))].sum(axis=1) for request in order]
        np.testing.assert_array_equal(counts, np.stack(by_request, axis=1))
    for replicate, out in enumerate(left_out):
        steps = np.zeros((THRESHOLDS.size, n - out.sum()))
        place = np.zeros((THRESHOLDS.size, max(lengths)))
        for order in orders:
            remaining = order[~out[order]]
            fused = fuse_sample(score, units, remaining, THRESHOLDS, "leader")
            for step, request in enumerate(remaining):
                steps[:, step] += fused.kept[:, units.rows(request)].sum(axis=1) / 3
            for block in np.flatnonzero(~out[units.owner()]):
                place[:, units.position[block]] += fused.kept[:, block] / 3
        np.testing.assert_allclose(total[replicate][:, : steps.shape[1]], steps)
        assert np.isnan(total[replicate][:, steps.shape[1] :]).all()
        if replicate == 0:
            np.testing.assert_allclose(by_position.sum(axis=1), place)
    order = orders[0]
    kept = tree_kept(exceedances, order[None])
    whole = fuse_sample(score, units, order, THRESHOLDS, "tree").kept.sum(axis=1)
    np.testing.assert_array_equal(kept[0], whole)
    if n % 2:  # an odd last request passes up: without it the tree over the others has the same shape
        shorter = fuse_sample(score, units, order[:-1], THRESHOLDS, "tree").kept
        inside = units.owner() != order[-1]
        np.testing.assert_array_equal(kept[1 + order[-1]], shorter[:, inside].sum(axis=1))


def test_every_request_stands_everywhere_once_per_permutation() -> None:
    orders = cyclic_orders(6, 3, 64, np.random.default_rng(0))
    assert orders.shape == (18, 6)
    for place in range(6):
        assert np.bincount(orders[:, place]).tolist() == [3] * 6
    few = cyclic_orders(50, 4, 10, np.random.default_rng(0))
    assert few.shape == (10, 50)
    assert len(set(few[:, 0].tolist())) == 10
