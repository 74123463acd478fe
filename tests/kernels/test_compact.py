"""Compacting realises the saving that a fusion claims, to the byte; and restoring reads it back."""

from __future__ import annotations

import pytest
import torch
from caches import generator, make_layer

from ratedist.errors import InputError
from ratedist.kernels.bench.fusion import DATASETS, synthetic_layer
from ratedist.kernels.compact import compact, pool_bytes
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.restore import block_errors, restore_blocks


def test_bytes_of_the_dense_pool_are_the_kept_blocks() -> None:
    layer = synthetic_layer(12, 10, cosines=DATASETS["fusing"], seed=1, block_size=4, kv_heads=2, head_dim=8)
    fusion = fuse(layer, threshold=0.5)
    assert 1.2 < fusion.compression < 10
    dense = compact(fusion.layer)
    block_bytes = 2 * 4 * 2 * 8 * 4
    assert (
        dense.k.untyped_storage().nbytes() + dense.v.untyped_storage().nbytes() == fusion.kept * block_bytes
    )
    # 120 entries of 4 bytes and two scales of 4 bytes beside them.
    assert pool_bytes(dense) == fusion.kept * block_bytes + 120 * 12
    assert pool_bytes(fusion.layer) == 120 * block_bytes + 120 * 12
    # The old pool may go.
    assert dense.k.untyped_storage().data_ptr() != layer.k.untyped_storage().data_ptr()
    for old, new in zip(block_errors(layer, fusion.layer), block_errors(layer, dense), strict=True):
        assert torch.equal(old, new)


def test_compacting_twice_and_compacting_nothing() -> None:
    layer = make_layer([9, 0, 4])
    assert isinstance(layer, FusedLayer)
    once = compact(layer)
    twice = compact(once)
    assert torch.equal(once.table.entries, twice.table.entries)
    assert torch.equal(once.k.nan_to_num(), twice.k.nan_to_num())
    empty = make_layer([0, 0])
    assert isinstance(empty, FusedLayer)
    assert compact(empty).k.shape == (0, *layer.k.shape[1:])


def test_restored_blocks_are_the_scaled_representatives() -> None:
    pool = torch.randn(5, 2, 1, 3, generator=generator(0)).bfloat16()
    back = restore_blocks(pool, torch.tensor([3, 3, 0], dtype=torch.int32), torch.tensor([1.0, 0.5, 3.0]))
    assert back.dtype == torch.float32
    assert torch.equal(back, torch.stack([pool[3].float(), 0.5 * pool[3].float(), 3.0 * pool[0].float()]))


def test_errors_of_zeros_and_of_what_lies_beyond_the_length() -> None:
    k = torch.zeros(3, 2, 1, 2)
    k[1] = 1.0
    k[2, 0], k[2, 1] = 2.0, float("nan")
    lengths, domains = torch.tensor([2, 3]), torch.tensor([0, 0])
    before = PagedLayer(k, k, BlockTable(torch.tensor([[0, -1], [1, 2]]).int(), lengths, domains, 2))
    ones = torch.ones(2, 2)
    after = BlockTable(torch.tensor([[1, -1], [0, 2]]).int(), lengths, domains, 2)
    for error in block_errors(before, FusedLayer(k, k, after, ones, ones)):
        # Ones for zeros; zeros for ones; a partly filled block, unchanged up to its length.
        assert error.tolist() == [[float("inf"), 0.0], [1.0, 0.0]]
    for error in block_errors(before, FusedLayer(k, k, before.table, ones, ones)):
        assert error.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    # What cannot be read back is no perfect copy.
    broken = torch.tensor([[1.0, 1.0], [float("nan"), 1.0]])
    for error in block_errors(before, FusedLayer(k, k, before.table, broken, broken)):
        assert error.isnan().tolist() == [[False, False], [True, False]]


def test_errors_of_layers_that_do_not_belong_together() -> None:
    layer = make_layer([9, 4], fused=False)
    assert isinstance(layer, PagedLayer)
    for other, message in (
        (make_layer([9, 4, 1]), r"fused = 'table \(3, 5\), blocks .*must be the fused form of original"),
        (make_layer([9, 4], head_dim=8), "must be the fused form of original"),
        (make_layer([9, 5]), "fused = 'other lengths': must be the fused form of original, with its lengths"),
    ):
        assert isinstance(other, FusedLayer)
        with pytest.raises(InputError, match=message):
            block_errors(layer, other)
