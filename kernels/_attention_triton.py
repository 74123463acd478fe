"""Triton kernel for decoding: one query token per request over a paged, possibly fused, cache."""

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
from ratedist.kernels.layout import FusedLayer, PagedLayer

__all__ = ["LARGEST_HEAD_DIM", "SPECIALISATIONS", "decode"]

LARGEST_HEAD_DIM = 256

_BLOCK_G = 16
"""Query heads per program: the least that matrix instructions take; groups beyond it take several."""


@kernel("k_pool", "v_pool")
def _decode_kernel(
    q: tl.tensor,  # (requests, kv_heads * group, head_dim), dense
    k_pool: tl.tensor,  # (blocks, block_size, kv_heads, head_dim), dense in head_dim
    v_pool: tl.tensor,  # as k_pool, with its own strides
    k_scale: tl.tensor,  # (requests, max_blocks) float32
    v_scale: tl.tensor,  # (requests, max_blocks) float32
    table: tl.tensor,  # (requests, max_blocks) int32
    lengths: tl.tensor,  # (requests,) int64
    out: tl.tensor,  # (requests, kv_heads * group, head_dim), dense
    lse: tl.tensor,  # (requests, kv_heads * group) float32, dense
    softmax_scale: tl.float32,
    group: tl.int32,
    head_units: tl.int32,
    block_size: tl.int32,
    k_block_units: tl.int64,
    k_token_units: tl.int64,
    k_head_units: tl.int64,
    v_block_units: tl.int64,
    v_token_units: tl.int64,
    v_head_units: tl.int64,
    table_stride: tl.int64,
    scale_request_stride: tl.int64,
    scale_block_stride: tl.int64,
    UNIT: tl.constexpr,
    UPCAST: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    request = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    head_dim = head_units * UNIT
    member = tl.program_id(2) * BLOCK_G + tl.arange(0, BLOCK_G)
    scalar = tl.arange(0, BLOCK_D)
    in_head = scalar < head_dim
    in_query = (member < group)[:, None] & in_head[None, :]
    query_head = (request * tl.num_programs(1) + kv_head) * group + member
    query_at = query_head[:, None] * head_dim + scalar[None, :]
    query = tl.load(q + query_at, mask=in_query, other=0.0)
    if UPCAST:
        query = query.to(tl.float32)

    length = tl.load(lengths + request).to(tl.int32)
    greatest = tl.full([BLOCK_G], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_G], dtype=tl.float32)
    weighted = tl.zeros([BLOCK_G, BLOCK_D], dtype=tl.float32)
    for start in range(0, length, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        exists = token < length
        logical = token // block_size
        slot = (token % block_size).to(tl.int64)
        physical = tl.load(table + request * table_stride + logical, mask=exists, other=0).to(tl.int64)
        scale_at = request * scale_request_stride + logical * scale_block_stride
        of_key = tl.load(k_scale + scale_at, mask=exists, other=0.0)
        of_value = tl.load(v_scale + scale_at, mask=exists, other=0.0)

        # Masked by token too: what lies in a block beyond the length may be anything, NaN included.
        k_token = (physical * k_block_units + slot * k_token_units + kv_head * k_head_units) * UNIT
        k_inside = in_head[:, None] & exists[None, :]
        key = tl.load(k_pool + k_token[None, :] + scalar[:, None], mask=k_inside, other=0.0)
        if UPCAST:
            key = key.to(tl.float32)
        score = tl.dot(query, key, input_precision="ieee")
        score = tl.where(exists[None, :], score * (softmax_scale * of_key)[None, :], float("-inf"))

        new_greatest = tl.maximum(greatest, tl.max(score, axis=1))
        faded = tl.exp(greatest - new_greatest)
        weight = tl.exp(score - new_greatest[:, None])
        greatest = new_greatest
        total = total * faded + tl.sum(weight, axis=1)

        v_token = (physical * v_block_units + slot * v_token_units + kv_head * v_head_units) * UNIT
        v_inside = exists[:, None] & in_head[None, :]
        value = tl.load(v_pool + v_token[:, None] + scalar[None, :], mask=v_inside, other=0.0)
        if UPCAST:
            value = value.to(tl.float32)
        weight = weight * of_value[None, :]
        weighted = weighted * faded[:, None]
        if NORMALISE:
            # A scale is any number and float16 ends at 65504: keep the weights within 1.
            largest = tl.max(tl.abs(weight), axis=1)
            largest = tl.where(largest > 0, largest, 1.0)
            weight = (weight / largest[:, None]).to(value.dtype)
            weighted += tl.dot(weight, value, input_precision="ieee") * largest[:, None]
        else:
            weighted = tl.dot(weight.to(value.dtype), value, weighted, input_precision="ieee")

    attended = total > 0
    total = tl.where(attended, total, 1.0)
    tl.store(out + query_at, weighted / total[:, None], mask=in_query)
    log_sum = tl.where(attended, greatest + tl.log(total), float("-inf"))
    tl.store(lse + query_head, log_sum, mask=member < group)


@functools.cache
def _specialisation(dtype: torch.dtype, block_d: int) -> Specialisation:
    data = f"*{DTYPES[dtype]}"
    return Specialisation(
        kernel=_decode_kernel,
        name=f"paged_decode[{block_d}]",
        dtype=dtype,
        types={
            "q": data,
            "k_pool": data,
            "v_pool": data,
            "k_scale": "*fp32",
            "v_scale": "*fp32",
            "table": "*i32",
            "lengths": "*i64",
            # The interpreter would cut float32 off to bfloat16 where a GPU rounds.
            "out": "*fp32" if INTERPRETED else data,
            "lse": "*fp32",
            "softmax_scale": "fp32",
            "group": "i32",
            "head_units": "i32",
            "block_size": "i32",
            "k_block_units": "i64",
            "k_token_units": "i64",
            "k_head_units": "i64",
            "v_block_units": "i64",
            "v_token_units": "i64",
            "v_head_units": "i64",
            "table_stride": "i64",
            "scale_request_stride": "i64",
            "scale_block_stride": "i64",
        },
        aligned=("k_pool", "v_pool"),
        constexprs={
            "UNIT": UNIT,
            "UPCAST": False,
            "NORMALISE": dtype == torch.float16,
            "BLOCK_G": _BLOCK_G,
            # 8 KiB of keys and as much of values per tile, and no fewer tokens than a product takes.
            "BLOCK_N": max(16, 8192 // (block_d * dtype.itemsize)),
            "BLOCK_D": block_d,
        },
        has_product=True,
        num_warps=4,
        # Three fetch the table one tile ahead of the keys and values; float32 has no registers left for it.
        num_stages=2 if dtype == torch.float32 else 3,
    )


_BLOCKS_D = (64, 128, LARGEST_HEAD_DIM)
"""Head dimensions are rounded up to one of these; the lanes beyond are masked."""

SPECIALISATIONS = tuple(_specialisation(dtype, block_d) for dtype in DTYPES for block_d in _BLOCKS_D)
"""Everything that the launcher below can pick."""


def decode(q: Tensor, layer: PagedLayer | FusedLayer, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """One decoding step; the arguments are checked by ``paged_decode_attention``, which see.

    Args:
        q: (requests, query_heads, head_dim), dtype and device of the layer.
        layer: the cache.
        softmax_scale: factor of the scores.

    Returns:
        out: (requests, query_heads, head_dim) in q's dtype.
        lse: (requests, query_heads) float32.

    Raises:
        InputError: a head dimension or a layout of the pool that the kernel cannot read.
    """
    requests, query_heads, head_dim = q.shape
    block_size, kv_heads = layer.k.shape[1:3]
    if head_dim > LARGEST_HEAD_DIM:
        raise InputError(
            "head_dim", head_dim, f"the kernel takes up to {LARGEST_HEAD_DIM}; backend 'cpu' takes any"
        )
    unit = UNIT
    for name, pool in (("k", layer.k), ("v", layer.v)):
        if pool.stride(3) != 1 and head_dim > 1:
            raise InputError(name, pool.stride(), "must be dense in head_dim (a last stride of 1)")
        unit = min(unit, pool_unit(name, pool, *pool.stride()[:3], head_dim))
    group = query_heads // kv_heads
    specialisation = _specialisation(q.dtype, power_of_two(head_dim, _BLOCKS_D[0], _BLOCKS_D[-1]))
    if INTERPRETED:
        longest = int(layer.table.lengths.max()) if requests else 0
        specialisation = specialisation.with_constexprs(
            UNIT=unit,
            UPCAST=q.dtype == torch.bfloat16,
            BLOCK_G=power_of_two(group, 1, 64),
            BLOCK_N=power_of_two(longest, 16, 512),
            BLOCK_D=power_of_two(head_dim, 1, LARGEST_HEAD_DIM),
        )
    q = q.contiguous()
    out = torch.empty(q.shape, dtype=torch.float32 if INTERPRETED else q.dtype, device=q.device)
    lse = torch.empty((requests, query_heads), dtype=torch.float32, device=q.device)
    table = layer.table.entries.contiguous()
    # An unfused cache has the scale 1 everywhere and runs the same code, so that a request that took
    # part in no fusion decodes to the same bits either way.
    if isinstance(layer, FusedLayer):
        k_scale, v_scale = layer.k_scale.contiguous(), layer.v_scale.contiguous()
        scale_strides = (table.shape[1], 1)
    else:
        k_scale = v_scale = torch.ones(1, dtype=torch.float32, device=q.device)
        scale_strides = (0, 0)
    specialisation.launch(
        (requests, kv_heads, triton.cdiv(group, specialisation.constexprs["BLOCK_G"])),
        q=q,
        k_pool=layer.k,
        v_pool=layer.v,
        k_scale=k_scale,
        v_scale=v_scale,
        table=table,
        lengths=layer.table.lengths.contiguous(),
        out=out,
        lse=lse,
        softmax_scale=softmax_scale,
        group=group,
        head_units=head_dim // unit,
        block_size=block_size,
        k_block_units=layer.k.stride(0) // unit,
        k_token_units=layer.k.stride(1) // unit,
        k_head_units=layer.k.stride(2) // unit,
        v_block_units=layer.v.stride(0) // unit,
        v_token_units=layer.v.stride(1) // unit,
        v_head_units=layer.v.stride(2) // unit,
        table_stride=table.shape[1],
        scale_request_stride=scale_strides[0],
        scale_block_stride=scale_strides[1],
    )
    return out.to(q.dtype), lse
