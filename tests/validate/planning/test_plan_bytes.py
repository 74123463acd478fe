"""Bytes of a layer counted from the blocks that it keeps, against compressing the layer."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.kernels.layout import UNUSED, BlockTable, PagedLayer
from ratedist.validate.planning.layer_bytes import LayerBytes
from ratedist.validate.quality.methods import LayerCache, Method, compress

HEADS, DIM, SIZE = 2, 8, 4
METHODS = [
    Method(),
    Method("exact"),
    Method("fusion", threshold=0.3),
    Method("fusion", threshold=0.3, variant="tree", criterion="both", scale="raw"),
    Method("fusion", threshold=0.2, mode="cff", chunk_blocks=2),
    Method("exact", "kivi", 4),
    Method("fusion", "kivi", 2, threshold=0.3),
    Method("fusion", "int8", threshold=0.3),
]


@given(
    st.lists(st.integers(0, 21), min_size=1, max_size=4).filter(any),
    st.sampled_from(METHODS),
    st.sampled_from([torch.float16, torch.float32]),
    st.integers(0, 99),
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_bytes_are_those_of_the_cache_that_was_compressed(
    lengths: list[int], method: Method, dtype: torch.dtype, seed: int
) -> None:
    blocks = -(-max(lengths) // SIZE)
    generator = torch.Generator().manual_seed(seed)
    pools = [
        torch.randn(len(lengths) * blocks, SIZE, HEADS, DIM, generator=generator).to(dtype) for _ in range(2)
    ]
    entries = torch.arange(len(lengths) * blocks, dtype=torch.int32).view(len(lengths), blocks)
    used = torch.arange(blocks) < -(-torch.tensor(lengths) // SIZE)[:, None]
    table = BlockTable(
        torch.where(used, entries, UNUSED),
        torch.tensor(lengths),
        torch.zeros(len(lengths), dtype=torch.int64),
        SIZE,
    )
    result = compress(method, LayerCache(0, PagedLayer(*pools, table), shared=True))
    count = LayerBytes(tuple(lengths), SIZE, HEADS, DIM, dtype.itemsize)
    kept = count.blocks if result.fusion is None else result.fusion.kept
    assert count.stored(method, float(kept)) == pytest.approx(float(result.bytes.sum()))
    assert count.unfused == sum(lengths) * 2 * HEADS * DIM * dtype.itemsize


def test_what_shares_nothing_is_not_counted() -> None:
    count = LayerBytes((8,), SIZE, HEADS, DIM, 2)
    with pytest.raises(InputError, match="plan = 'kivi4': shares nothing, so there is no number of blocks"):
        count.stored(Method("", "kivi", 4), 1.0)
