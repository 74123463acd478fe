"""Triton kernels over whole blocks: their norms, and copies of chosen ones into a new pool."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels._launch_triton import (
    DTYPES,
    INTERPRETED,
    UNIT,
    Specialisation,
    kernel,
    pool_unit,
    power_of_two,
)

__all__ = ["SPECIALISATIONS", "block_norms", "gather_blocks"]

_WORDS = {torch.int32: "i32", torch.int16: "i16"}


@kernel("pool")
def _block_norms_kernel(
    pool: tl.tensor,  # (blocks, dim) in rows of stride_units
    norm: tl.tensor,  # (blocks,) float32
    blocks: tl.int32,
    dim_units: tl.int32,
    stride_units: tl.int64,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    block = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = block.to(tl.int64) * stride_units * UNIT
    dim = dim_units * UNIT
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    for start in range(0, dim, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        inside = (block < blocks)[:, None] & (column < dim)[None, :]
        value = tl.load(pool + row[:, None] + column[None, :], mask=inside, other=0.0)
        value = value.to(tl.float32)
        total += tl.sum(value * value, axis=1)
    tl.store(norm + block, tl.sqrt_rn(total), mask=block < blocks)


@kernel("pool", "out")
def _gather_kernel(
    pool: tl.tensor,  # (blocks, dim) words in rows of stride_units
    ids: tl.tensor,  # (chosen,) int64
    out: tl.tensor,  # (chosen, dim) words, dense
    chosen: tl.int32,
    dim_units: tl.int32,
    stride_units: tl.int64,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    target = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = target < chosen
    source = tl.load(ids + target, mask=exists, other=0)
    dim = dim_units * UNIT
    column = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = exists[:, None] & (column < dim)[None, :]
    read = (source * stride_units * UNIT)[:, None] + column[None, :]
    written = (target.to(tl.int64) * dim_units * UNIT)[:, None] + column[None, :]
    value = tl.load(pool + read, mask=inside)
    tl.store(out + written, value, mask=inside)


@functools.cache
def _norms_specialisation(dtype: torch.dtype) -> Specialisation:
    return Specialisation(
        kernel=_block_norms_kernel,
        name="block_norms",
        dtype=dtype,
        types={
            "pool": f"*{DTYPES[dtype]}",
            "norm": "*fp32",
            "blocks": "i32",
            "dim_units": "i32",
            "stride_units": "i64",
        },
        aligned=("pool",),
        constexprs={"UNIT": UNIT, "BLOCK_M": 4, "BLOCK_K": 1024},
        has_product=False,
    )


@functools.cache
def _gather_specialisation(word: torch.dtype) -> Specialisation:
    return Specialisation(
        kernel=_gather_kernel,
        name="gather_blocks",
        dtype=word,
        types={
            "pool": f"*{_WORDS[word]}",
            "ids": "*i64",
            "out": f"*{_WORDS[word]}",
            "chosen": "i32",
            "dim_units": "i32",
            "stride_units": "i64",
        },
        aligned=("pool", "out"),
        constexprs={"UNIT": UNIT, "BLOCK_M": 4, "BLOCK_K": 1024},
        has_product=False,
    )


SPECIALISATIONS = (
    *(_norms_specialisation(dtype) for dtype in DTYPES),
    *(_gather_specialisation(word) for word in _WORDS),
)
"""Everything that the launchers below can pick."""


def block_norms(pool: Tensor) -> Tensor:
    """(blocks,) float32 Euclidean norms; see ``Matcher.block_norms`` in ``ratedist.kernels.fusion.matching``.

    Args:
        pool: (blocks, block_size, kv_heads, head_dim), each block dense in memory.

    Raises:
        InputError: a pool that the kernels cannot read.
    """
    rows = block_rows("pool", pool)
    blocks, dim = rows.shape
    norm = torch.empty(blocks, dtype=torch.float32, device=pool.device)
    unit = pool_unit("pool", rows, rows.stride(0), dim)
    specialisation = _norms_specialisation(pool.dtype)
    if INTERPRETED:
        specialisation = specialisation.with_constexprs(UNIT=unit, **_interpreter_tile(blocks, dim))
    specialisation.launch(
        (triton.cdiv(blocks, specialisation.constexprs["BLOCK_M"]),),
        pool=rows,
        norm=norm,
        blocks=blocks,
        dim_units=dim // unit,
        stride_units=rows.stride(0) // unit,
    )
    return norm


def gather_blocks(pool: Tensor, ids: Tensor) -> Tensor:
    """Copies of the blocks ``ids`` in a new, dense pool; see ``Matcher.gather_blocks``.

    Args:
        pool: (blocks, block_size, kv_heads, head_dim), each block dense in memory.
        ids: (chosen,) int64 physical ids within the pool, not checked.

    Raises:
        InputError: a pool that the kernels cannot read.
    """
    rows = block_rows("pool", pool)
    chosen, dim = ids.shape[0], rows.shape[1]
    out = torch.empty((chosen, *pool.shape[1:]), dtype=pool.dtype, device=pool.device)
    unit = pool_unit("pool", rows, rows.stride(0), dim)
    # Copied as integers: one kernel serves every dtype of a size, and every bit stays as it is.
    word = torch.int32 if pool.element_size() == 4 else torch.int16
    specialisation = _gather_specialisation(word)
    if INTERPRETED:
        specialisation = specialisation.with_constexprs(UNIT=unit, **_interpreter_tile(chosen, dim))
    tile = specialisation.constexprs
    specialisation.launch(
        (triton.cdiv(chosen, tile["BLOCK_M"]), triton.cdiv(dim, tile["BLOCK_K"])),
        pool=rows.view(word),
        ids=ids.contiguous(),
        out=out.view(word),
        chosen=chosen,
        dim_units=dim // unit,
        stride_units=rows.stride(0) // unit,
    )
    return out


def block_rows(argument: str, pool: Tensor) -> Tensor:
    """``pool`` viewed as (blocks, scalars per block).

    Raises:
        InputError: a block is not dense in memory, or its dtype is not one of ``DTYPES``.
    """
    if pool.dtype not in DTYPES:
        raise InputError(argument, str(pool.dtype), "must be float32, float16 or bfloat16")
    # As the pool of a single block: how far apart blocks lie does not matter.
    if not pool[:1].is_contiguous():
        raise InputError(
            argument,
            f"strides {pool.stride()} of shape {tuple(pool.shape)}",
            "must hold the scalars of each block densely, as (block_size, kv_heads, head_dim)",
        )
    return pool.as_strided((pool.shape[0], pool[:1].numel()), (pool.stride(0), 1))


def _interpreter_tile(rows: int, dim: int) -> dict[str, int]:
    # The interpreter costs per operation, so tiles are as large as the data, up to 2^19 elements.
    block_k = power_of_two(dim, 1, 4096)
    return {"BLOCK_M": power_of_two(rows, 1, 2**19 // block_k), "BLOCK_K": block_k}
