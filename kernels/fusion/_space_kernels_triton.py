"""Triton kernels for blocks as they are matched: turned, without means; and the sums that means are made of.

A block is ``rows`` rows of ``width`` scalars. Where keys turn, a row is the head of a token, whose channels
exchange places within a tile; elsewhere a block is a single row.
"""

from __future__ import annotations

import triton.language as tl

from ratedist.kernels._launch_triton import kernel
from ratedist.kernels._turning_triton import turned

__all__ = ["group_sums_kernel", "matched_blocks_kernel"]


@kernel("pool", "mean_pool", "cosine", "sine", "out")
def matched_blocks_kernel(
    pool: tl.tensor,  # (blocks, rows, width), blocks stride_units apart
    ids: tl.tensor,  # (chosen,) int64
    turn: tl.tensor,  # (chosen,) int32 row of the tables; 0 for a block that does not turn
    cosine: tl.tensor,  # (turns, width) float32
    sine: tl.tensor,  # (turns, width) float32
    mean_pool: tl.tensor,  # (groups, rows, width), dense
    group: tl.tensor,  # (chosen,) int64 mean of each block; -1 for none
    out: tl.tensor,  # (chosen, rows, width) float32, dense
    row_count: tl.int32,  # chosen * rows
    rows: tl.int32,
    width_units: tl.int32,
    stride_units: tl.int64,
    pair_distance: tl.int32,
    UNIT: tl.constexpr,
    TURN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    width = width_units * UNIT
    target = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    exists = target < row_count
    inside = exists[:, None] & (column < width)[None, :]
    chosen = target // rows
    row = target % rows
    block = tl.load(ids + chosen, mask=exists, other=0)
    read = (block * stride_units + row * width_units) * UNIT
    x = tl.load(pool + read[:, None] + column[None, :], mask=inside, other=0.0)
    if TURN:
        turn_of = tl.load(turn + chosen, mask=exists, other=0)
        x = turned(x, turn_of, cosine, sine, width, pair_distance, column, inside)
    mean = tl.load(group + chosen, mask=exists, other=-1)
    centred = inside & (mean >= 0)[:, None]
    mean_at = (mean * rows + row) * width_units * UNIT
    away = tl.load(mean_pool + mean_at[:, None] + column[None, :], mask=centred, other=0.0)
    written = target.to(tl.int64) * width_units * UNIT
    x = x.to(tl.float32) - away.to(tl.float32)
    tl.store(out + written[:, None] + column[None, :], x, mask=inside)


@kernel("pool", "cosine", "sine", "total")
def group_sums_kernel(
    pool: tl.tensor,  # (blocks, rows, width), blocks stride_units apart
    ids: tl.tensor,  # (chosen,) int64, group by group
    turn: tl.tensor,  # (chosen,) int32 row of the tables; 0 for a block that does not turn
    cosine: tl.tensor,  # (turns, width) float32
    sine: tl.tensor,  # (turns, width) float32
    first: tl.tensor,  # (groups + 1,) int32 position in ids at which each group begins
    total: tl.tensor,  # (splits, groups, rows, width) float64, dense
    rows: tl.int32,
    width_units: tl.int32,
    stride_units: tl.int64,
    pair_distance: tl.int32,
    UNIT: tl.constexpr,
    TURN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Of every group, by tile of a block and by split of the group, in the order of ``ids``."""
    group = tl.program_id(0)
    split = tl.program_id(2)
    width = width_units * UNIT
    column_tiles = tl.cdiv(width, BLOCK_D)
    row = tl.program_id(1) // column_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) % column_tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    row_at = row.to(tl.int64) * width_units * UNIT
    begin = tl.load(first + group)
    end = tl.load(first + group + 1)
    share = tl.cdiv(end - begin, tl.num_programs(2))
    begin += split * share
    end = tl.minimum(begin + share, end)
    summed = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float64)
    for chosen in range(begin, end):
        read = tl.load(ids + chosen) * stride_units * UNIT + row_at
        x = tl.load(pool + read[:, None] + column[None, :], mask=inside, other=0.0)
        if TURN:
            turn_of = tl.load(turn + chosen + tl.zeros([BLOCK_M], dtype=tl.int32))
            x = turned(x, turn_of, cosine, sine, width, pair_distance, column, inside)
        summed += x.to(tl.float32).to(tl.float64)
    sum_at = (split.to(tl.int64) * tl.num_programs(0) + group) * rows * width_units * UNIT + row_at
    tl.store(total + sum_at[:, None] + column[None, :], summed, mask=inside)
