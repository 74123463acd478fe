"""Triton kernel for matching: the best match of every row block, without a matrix of scores.

A tile of similarity products is formed, compared with the running best of its rows, and forgotten. This
module is a ``Matcher`` (``ratedist.kernels.matching``).
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels._blocks_triton import block_norms, block_rows, gather_blocks
from ratedist.kernels._launch_triton import (
    DTYPES,
    INTERPRETED,
    UNIT,
    Specialisation,
    kernel,
    pool_unit,
    power_of_two,
)
from ratedist.kernels.matching import CRITERIA

__all__ = ["SPECIALISATIONS", "best_match", "block_norms", "gather_blocks"]

_BEYOND = tl.constexpr(2**31 - 1)


@triton.jit
def _scores(
    pool: tl.tensor,
    norm: tl.tensor,
    row_id: tl.tensor,  # (BLOCK_M,) int64
    col_id: tl.tensor,  # (BLOCK_N,) int64
    dim_units: tl.tensor,
    stride_units: tl.tensor,
    UNIT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """(BLOCK_M, BLOCK_N) float32 cosine similarities, 0 where a norm is 0."""
    row = row_id * stride_units * UNIT
    col = col_id * stride_units * UNIT
    dim = dim_units * UNIT
    product = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
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
    return product * row_inverse[:, None] * col_inverse[None, :]


@kernel("k_pool", "v_pool")
def _best_match_kernel(
    k_pool: tl.tensor,  # (blocks, dim) in rows of k_stride_units
    v_pool: tl.tensor,  # (blocks, dim) in rows of v_stride_units; not read unless BOTH
    k_norm: tl.tensor,  # (blocks,) float32
    v_norm: tl.tensor,  # (blocks,) float32; not read unless BOTH
    rows: tl.tensor,  # (row_count,) int64 physical ids
    cols: tl.tensor,  # (col_count,) int64 physical ids
    score: tl.tensor,  # (splits, row_count) float32
    position: tl.tensor,  # (splits, row_count) int32
    row_count: tl.int32,
    col_count: tl.int32,
    cols_per_split: tl.int32,
    dim_units: tl.int32,
    k_stride_units: tl.int64,
    v_stride_units: tl.int64,
    BOTH: tl.constexpr,
    UNIT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
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
            k_pool, k_norm, row_id, col_id, dim_units, k_stride_units, UNIT, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K
        )
        if BOTH:
            values = _scores(
                v_pool,
                v_norm,
                row_id,
                col_id,
                dim_units,
                v_stride_units,
                UNIT,
                UPCAST,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
            )
            tile = tl.minimum(tile, values)
        # Capped before it is compared, so that scores that only rounding tells from 1 tie.
        tile = tl.where((col < last)[None, :], tl.minimum(tile, 1.0), float("-inf"))
        tile_best = tl.max(tile, axis=1)
        tile_at = tl.min(tl.where(tile == tile_best[:, None], col[None, :], _BEYOND), axis=1)
        # Strictly greater: of equal scores the lowest column stays.
        better = tile_best > best
        best = tl.where(better, tile_best, best)
        best_at = tl.where(better, tile_at, best_at)
    out = tl.program_id(1).to(tl.int64) * row_count + row
    tl.store(score + out, best, mask=row < row_count)
    tl.store(position + out, best_at, mask=row < row_count)


@functools.cache
def _specialisation(dtype: torch.dtype, criterion: str) -> Specialisation:
    pool, norm, ids = f"*{DTYPES[dtype]}", "*fp32", "*i64"
    low = dtype != torch.float32
    return Specialisation(
        kernel=_best_match_kernel,
        name=f"best_match[{criterion}]",
        dtype=dtype,
        types={
            "k_pool": pool,
            "v_pool": pool,
            "k_norm": norm,
            "v_norm": norm,
            "rows": ids,
            "cols": ids,
            "score": "*fp32",
            "position": "*i32",
            "row_count": "i32",
            "col_count": "i32",
            "cols_per_split": "i32",
            "dim_units": "i32",
            "k_stride_units": "i64",
            "v_stride_units": "i64",
        },
        aligned=("k_pool", "v_pool"),
        constexprs={
            "BOTH": criterion == "both",
            "UNIT": UNIT,
            "UPCAST": False,
            # float32 is multiplied on ordinary cores; a wider tile spills registers there.
            "BLOCK_M": 64,
            "BLOCK_N": 128 if low else 64,
            "BLOCK_K": 64 if low else 32,
        },
        has_product=True,
        num_warps=8,
        num_stages=3 if low else 2,
    )


SPECIALISATIONS = tuple(_specialisation(dtype, criterion) for dtype in DTYPES for criterion in CRITERIA)
"""Everything that the launcher below can pick."""


def best_match(
    k: Tensor, v: Tensor, k_norm: Tensor, v_norm: Tensor, rows: Tensor, cols: Tensor, criterion: str
) -> tuple[Tensor, Tensor]:
    """Best match of every row block among the column blocks; see ``Matcher.best_match``.

    Args:
        k: (blocks, block_size, kv_heads, head_dim) pool of keys, each block dense in memory.
        v: pool of values, of the same shape and dtype; may be spaced differently.
        k_norm: (blocks,) float32.
        v_norm: (blocks,) float32.
        rows: (n_rows,) int64 physical ids, not checked.
        cols: (n_cols,) int64 physical ids, not checked.
        criterion: "keys" or "both".

    Returns:
        score: (n_rows,) float32; -inf where ``cols`` is empty.
        position: (n_rows,) int64, the lowest position in ``cols`` with that score; -1 where empty.

    Raises:
        InputError: an unknown criterion, or a pool that the kernels cannot read.
    """
    if criterion not in CRITERIA:
        raise InputError("criterion", criterion, f"must be one of {', '.join(CRITERIA)}")
    k_rows, v_rows = block_rows("k", k), block_rows("v", v)
    dim = k_rows.shape[1]
    unit = min(
        pool_unit("k", k_rows, k_rows.stride(0), dim),
        pool_unit("v", v_rows, v_rows.stride(0), dim),
    )
    row_count, col_count = rows.shape[0], cols.shape[0]
    specialisation = _specialisation(k.dtype, criterion)
    if INTERPRETED:
        specialisation = specialisation.with_constexprs(
            UNIT=unit,
            UPCAST=k.dtype == torch.bfloat16,
            # As large as the data, as operations are what the interpreter takes time for; loads of 2^19.
            BLOCK_M=power_of_two(row_count, 16, 128),
            BLOCK_N=power_of_two(col_count, 16, 128),
            BLOCK_K=power_of_two(dim, 16, 4096),
        )
    tile = specialisation.constexprs
    row_tiles = triton.cdiv(row_count, tile["BLOCK_M"])
    col_tiles = triton.cdiv(col_count, tile["BLOCK_N"])
    splits = _splits(row_tiles, col_tiles, k.device)
    cols_per_split = triton.cdiv(col_tiles, splits) * tile["BLOCK_N"]
    score = torch.empty((splits, row_count), dtype=torch.float32, device=k.device)
    position = torch.empty((splits, row_count), dtype=torch.int32, device=k.device)
    specialisation.launch(
        (row_tiles, splits),
        k_pool=k_rows,
        v_pool=v_rows,
        k_norm=k_norm.contiguous(),
        v_norm=v_norm.contiguous(),
        rows=rows.contiguous(),
        cols=cols.contiguous(),
        score=score,
        position=position,
        row_count=row_count,
        col_count=col_count,
        cols_per_split=cols_per_split,
        dim_units=dim // unit,
        k_stride_units=k_rows.stride(0) // unit,
        v_stride_units=v_rows.stride(0) // unit,
    )
    if splits == 1:
        return score[0], position[0].long()
    # Splits hold ascending columns and a tie goes to the lowest, so the lowest position that attains it.
    best = score.amax(dim=0)
    beyond = torch.iinfo(torch.int32).max
    return best, position.masked_fill(score < best, beyond).amin(dim=0).long()


def _splits(row_tiles: int, col_tiles: int, device: torch.device) -> int:
    """Programs per row tile: few rows against many columns would leave most of a GPU idle."""
    if row_tiles == 0 or col_tiles == 0 or device.type != "cuda" or INTERPRETED:
        return 1
    wanted = 4 * torch.cuda.get_device_properties(device).multi_processor_count
    splits = max(1, min(col_tiles, wanted // row_tiles))
    # No empty ones: with 5 tiles, 4 splits would take 2 each and leave one with none.
    return triton.cdiv(col_tiles, triton.cdiv(col_tiles, splits))
