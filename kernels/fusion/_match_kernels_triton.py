"""Triton kernels for matching: best matches, and labels of neighbours, without a matrix of scores.

A tile of scores is formed, reduced over its columns, and forgotten. Pools beyond the first of a term are
told by how far they lie from it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ratedist.kernels._launch_triton import kernel

__all__ = ["best_match_kernel", "lowest_label_kernel"]

_BEYOND = tl.constexpr(2**31 - 1)


@triton.jit
def _part_scores(
    pool: tl.tensor,
    norm: tl.tensor,
    stride_units: tl.tensor,
    dim_units: tl.tensor,
    row_id: tl.tensor,  # (rows,) int64
    col_id: tl.tensor,  # (columns,) int64
    DISTANCE: tl.constexpr,
    UNIT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """(rows, columns) float32 cosine similarities, or what is left of 1 by half the squared distance."""
    row = row_id * stride_units * UNIT
    col = col_id * stride_units * UNIT
    dim = dim_units * UNIT
    product = tl.zeros([row_id.shape[0], col_id.shape[0]], dtype=tl.float32)
    for start in range(0, dim, BLOCK_K):
        scalar = start + tl.arange(0, BLOCK_K)
        inside = scalar < dim
        a = tl.load(pool + row[:, None] + scalar[None, :], mask=inside[None, :], other=0.0)
        b = tl.load(pool + col[None, :] + scalar[:, None], mask=inside[:, None], other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        # Products of two float16 or bfloat16 numbers are exact in float32, in which they are summed.
        product = tl.dot(a, b, product, input_precision="ieee")
    row_norm = tl.load(norm + row_id)
    col_norm = tl.load(norm + col_id)
    row_inverse = tl.where(row_norm > 0, 1.0 / tl.where(row_norm > 0, row_norm, 1.0), 0.0)
    col_inverse = tl.where(col_norm > 0, 1.0 / tl.where(col_norm > 0, col_norm, 1.0), 0.0)
    similarity = product * row_inverse[:, None] * col_inverse[None, :]
    if DISTANCE:
        # s ρ + (1 - ρ²) / 2 in a form that cannot become infinity minus infinity.
        ratio = row_inverse[:, None] * col_norm[None, :]
        similarity = ratio * (similarity - 0.5 * ratio) + tl.where(row_norm > 0, 0.5, 0.0)[:, None]
    return similarity


@triton.jit
def _term_scores(
    pool: tl.tensor,  # of the first part
    parts: tl.tuple,  # as of _scores, from the term's first part on
    row_id: tl.tensor,
    col_id: tl.tensor,
    MANY: tl.constexpr,
    DISTANCE: tl.constexpr,
    UNIT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """(rows, columns) float32 mean over the parts of a term."""
    norms, offset_units, stride_units, count, norm_stride, dim_units = parts
    stride = tl.load(stride_units)
    score = _part_scores(pool, norms, stride, dim_units, row_id, col_id, DISTANCE, UNIT, UPCAST, BLOCK_K)
    if MANY:
        for part in range(1, count):
            part_pool = pool + tl.load(offset_units + part) * UNIT
            norm = norms + part * norm_stride
            stride = tl.load(stride_units + part)
            score += _part_scores(
                part_pool, norm, stride, dim_units, row_id, col_id, DISTANCE, UNIT, UPCAST, BLOCK_K
            )
        score = score / count
    return score


@triton.jit
def _scores(
    first_pool: tl.tensor,
    second_pool: tl.tensor,
    parts: tl.tuple,  # norms, offset_units, stride_units, parts, norm_stride and dim_units of a kernel
    row_id: tl.tensor,
    col_id: tl.tensor,
    TWO_TERMS: tl.constexpr,
    MANY: tl.constexpr,
    DISTANCE: tl.constexpr,
    UNIT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """(rows, columns) float32: the least of the terms, at most 1."""
    score = _term_scores(first_pool, parts, row_id, col_id, MANY, DISTANCE, UNIT, UPCAST, BLOCK_K)
    if TWO_TERMS:
        norms, offset_units, stride_units, count, norm_stride, dim_units = parts
        norms += count * norm_stride
        others = (norms, offset_units + count, stride_units + count, count, norm_stride, dim_units)
        second = _term_scores(second_pool, others, row_id, col_id, MANY, DISTANCE, UNIT, UPCAST, BLOCK_K)
        score = tl.minimum(score, second)
    return tl.minimum(score, 1.0)


@kernel("first_pool", "second_pool")
def best_match_kernel(
    first_pool: tl.tensor,  # first part of the first term
    second_pool: tl.tensor,  # first part of the second term; not read where there is none
    norms: tl.tensor,  # (terms * parts, norm_stride) float32
    offset_units: tl.tensor,  # (terms * parts,) int64 from the first part of the term
    stride_units: tl.tensor,  # (terms * parts,) int64
    rows: tl.tensor,  # (row_count,) int64 physical ids
    cols: tl.tensor,  # (col_count,) int64 physical ids
    score: tl.tensor,  # (splits, row_count) float32
    position: tl.tensor,  # (splits, row_count) int32
    parts: tl.int32,
    norm_stride: tl.int64,
    row_count: tl.int32,
    col_count: tl.int32,
    cols_per_split: tl.int32,
    dim_units: tl.int32,
    TWO_TERMS: tl.constexpr,
    MANY: tl.constexpr,
    DISTANCE: tl.constexpr,
    UNIT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    about = (norms, offset_units, stride_units, parts, norm_stride, dim_units)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_id = tl.load(rows + row, mask=row < row_count, other=0)
    first = tl.program_id(1) * cols_per_split
    last = tl.minimum(first + cols_per_split, col_count)
    best = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    best_at = tl.full([BLOCK_M], -1, dtype=tl.int32)
    for start in range(first, last, BLOCK_N):
        col = start + tl.arange(0, BLOCK_N)
        col_id = tl.load(cols + col, mask=col < last, other=0)
        tile = _scores(
            first_pool, second_pool, about, row_id, col_id, TWO_TERMS, MANY, DISTANCE, UNIT, UPCAST, BLOCK_K
        )
        # Capped at 1 before it is compared, so that scores that only rounding tells from 1 tie.
        tile = tl.where((col < last)[None, :], tile, float("-inf"))
        tile_best = tl.max(tile, axis=1)
        tile_at = tl.min(tl.where(tile == tile_best[:, None], col[None, :], _BEYOND), axis=1)
        # Strictly greater: of equal scores the lowest column stays.
        better = tile_best > best
        best = tl.where(better, tile_best, best)
        best_at = tl.where(better, tile_at, best_at)
    out = tl.program_id(1).to(tl.int64) * row_count + row
    tl.store(score + out, best, mask=row < row_count)
    tl.store(position + out, best_at, mask=row < row_count)


@kernel("first_pool", "second_pool")
def lowest_label_kernel(
    first_pool: tl.tensor,  # first part of the first term
    second_pool: tl.tensor,  # first part of the second term; not read where there is none
    norms: tl.tensor,  # (terms * parts, norm_stride) float32
    offset_units: tl.tensor,  # (terms * parts,) int64 from the first part of the term
    stride_units: tl.tensor,  # (terms * parts,) int64
    ids: tl.tensor,  # (count,) int64 physical ids
    units: tl.tensor,  # (count,) int32
    labels: tl.tensor,  # (count,) int32
    lowest: tl.tensor,  # (splits, count) int32
    limit: tl.float32,
    parts: tl.int32,
    norm_stride: tl.int64,
    count: tl.int32,
    cols_per_split: tl.int32,
    dim_units: tl.int32,
    TWO_TERMS: tl.constexpr,
    MANY: tl.constexpr,
    DISTANCE: tl.constexpr,
    UNIT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    about = (norms, offset_units, stride_units, parts, norm_stride, dim_units)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_id = tl.load(ids + row, mask=row < count, other=0)
    row_unit = tl.load(units + row, mask=row < count, other=0)
    first = tl.program_id(1) * cols_per_split
    last = tl.minimum(first + cols_per_split, count)
    found = tl.full([BLOCK_M], _BEYOND, dtype=tl.int32)
    for start in range(first, last, BLOCK_N):
        col = start + tl.arange(0, BLOCK_N)
        col_id = tl.load(ids + col, mask=col < last, other=0)
        col_unit = tl.load(units + col, mask=col < last, other=0)
        label = tl.load(labels + col, mask=col < last, other=_BEYOND)
        tile = _scores(
            first_pool, second_pool, about, row_id, col_id, TWO_TERMS, MANY, DISTANCE, UNIT, UPCAST, BLOCK_K
        )
        joined = (tile > limit) & (row_unit[:, None] != col_unit[None, :])
        found = tl.minimum(found, tl.min(tl.where(joined, label[None, :], _BEYOND), axis=1))
    out = tl.program_id(1).to(tl.int64) * count + row
    tl.store(lowest + out, found, mask=row < count)
