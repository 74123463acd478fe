"""Launching the Triton kernels of attention: which form of a kernel, which tiles, how many splits."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels._attention_kernel_triton import attention_kernel, merge_kernel
from ratedist.kernels._launch_triton import (
    DTYPES,
    INTERPRETED,
    POOL_ALIGNMENT,
    UNIT,
    Specialisation,
    pool_unit,
    power_of_two,
)
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.reading import NO_MEAN
from ratedist.kernels.turns import pair_distance, turn_tables

__all__ = ["LARGEST_HEAD_DIM", "SPECIALISATIONS", "attend"]

LARGEST_HEAD_DIM = 256

_BLOCKS_D = (64, 128, LARGEST_HEAD_DIM)
"""Head dimensions are rounded up to one of these; the lanes beyond are masked."""

_FEW_ROWS, _MANY_ROWS = 16, 64
"""Rows per program: the least that matrix instructions take, for decoding, and a tile for prefill."""

_READING_ROWS = 32
"""The same where blocks are turned or centred, which is done anew in every program: one form for both."""

_TILES_OF_DATA = INTERPRETED
"""Interpreted, time goes by operations, so that tiles are as large as the data. Tests switch it off."""

_SHORTEST_SPLIT = 256
"""Tokens below which a sequence is not split further: merging would cost more than it saves."""

_MOST_SPLITS = 64

_READING_TYPES = {
    "turn": "*i32",
    "cosine": "*fp32",
    "sine": "*fp32",
    "mean_add": "*i32",
    "mean_subtract": "*i32",
}
"""Arguments that a layer without a reading does not have; with the two pools of means."""

_TYPES = {
    "k_scale": "*fp32",
    "v_scale": "*fp32",
    "table": "*i32",
    "lengths": "*i64",
    "first_query": "*i64",
    "tile_request": "*i32",
    "first_tile": "*i64",
    "sinks": "*fp32",
    "partial": "*fp32",
    "lse": "*fp32",
    "softmax_scale": "fp32",
    "softcap": "fp32",
    "window": "i32",
    "group": "i32",
    "head_units": "i32",
    "pair_distance": "i32",
    "row_count": "i64",
    "q_row_units": "i64",
    "q_head_units": "i64",
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
}


def _block_m(dtype: torch.dtype, head_dim: int, most_rows: int, reading: bool) -> int:
    """Rows per program, where a request has ``most_rows``."""
    if dtype == torch.float32:
        # Its products have no matrix instructions that taller tiles would feed.
        return _FEW_ROWS
    if reading:
        return _READING_ROWS
    if most_rows <= _FEW_ROWS:
        return _FEW_ROWS
    # The sums of a tile of 64 rows by 256 channels leave no registers for anything else.
    return _MANY_ROWS if head_dim <= _BLOCKS_D[1] else _MANY_ROWS // 2


def _block_n(dtype: torch.dtype, block_m: int, block_d: int, reading: bool) -> int:
    """Tokens per tile: no fewer than a product takes."""
    if reading:
        return 16
    # 8 KiB of keys and as much of values; twice that for taller tiles, which have more to do with them.
    room = 16384 if block_m == _MANY_ROWS else 8192
    return max(16, min(64, room // (block_d * dtype.itemsize)))


def _block_d(head_dim: int) -> int:
    return power_of_two(head_dim, _BLOCKS_D[0], LARGEST_HEAD_DIM)


@functools.cache
def _specialisation(dtype: torch.dtype, block_m: int, block_d: int, reading: bool) -> Specialisation:
    data = f"*{DTYPES[dtype]}"
    low = dtype != torch.float32
    # The interpreter would cut float32 off to bfloat16 where a GPU rounds.
    types = _TYPES | {"q": data, "k_pool": data, "v_pool": data, "out": "*fp32" if INTERPRETED else data}
    aligned = ["q", "k_pool", "v_pool", "out", "partial"]
    absent: dict[str, int | bool | None] = {}
    if reading:
        types |= _READING_TYPES | {"k_mean_pool": data, "v_mean_pool": data}
        aligned += ["k_mean_pool", "v_mean_pool", "cosine", "sine"]
    else:
        absent = dict.fromkeys([*_READING_TYPES, "k_mean_pool", "v_mean_pool"])
    return Specialisation(
        kernel=attention_kernel,
        name=f"attention{'_reading' if reading else ''}[{block_m}x{block_d}]",
        dtype=dtype,
        types=types,
        aligned=tuple(aligned),
        constexprs={
            "UNIT": UNIT,
            "UPCAST": False,
            "FLOAT16": dtype == torch.float16,
            "READING": reading,
            "BLOCK_M": block_m,
            "BLOCK_N": _block_n(dtype, block_m, block_d, reading),
            "BLOCK_D": block_d,
            **absent,
        },
        has_product=True,
        num_warps=8 if block_d == LARGEST_HEAD_DIM and (reading or not low) else 4,
        # Three fetch the table one tile ahead of the keys and values, where registers suffice.
        num_stages=3 if low and block_m == _FEW_ROWS else 2,
    )


@functools.cache
def _merging(dtype: torch.dtype) -> Specialisation:
    return Specialisation(
        kernel=merge_kernel,
        name="attention_merge",
        dtype=dtype,
        types={
            "partial_pool": "*fp32",
            "partial_lse": "*fp32",
            "out": "*fp32" if INTERPRETED else f"*{DTYPES[dtype]}",
            "lse": "*fp32",
            "row_count": "i64",
            "splits": "i32",
            "head_units": "i32",
        },
        aligned=("partial_pool", "out"),
        constexprs={"UNIT": UNIT, "BLOCK_M": 4, "BLOCK_D": LARGEST_HEAD_DIM},
        has_product=False,
        num_warps=4,
    )


SPECIALISATIONS = (
    *(
        _specialisation(dtype, block_m, block_d, reading)
        for reading in (False, True)
        for dtype in DTYPES
        for block_d in _BLOCKS_D
        for block_m in dict.fromkeys(_block_m(dtype, block_d, rows, reading) for rows in (1, _MANY_ROWS))
    ),
    *(_merging(dtype) for dtype in DTYPES),
)
"""Everything that the launcher below can pick."""


_NO_WINDOW = 2**31 - 1


def attend(
    q: Tensor,
    layer: PagedLayer | FusedLayer,
    query_lengths: Tensor,
    softmax_scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention with arguments checked by ``paged_attention``, which see.

    Requests none of whose blocks are turned or centred run the kernel that knows of neither, and tiles
    and splits follow from lengths alone: such requests get the bits of an unfused cache.

    Args:
        q: (queries, query_heads, head_dim), dtype and device of the layer.
        layer: the cache.
        query_lengths: (requests,) int64; 1 for an empty request that is decoded.

    Returns:
        out: as q.
        lse: (queries, query_heads) float32.

    Raises:
        InputError: a head dimension or a layout of the pool that the kernel cannot read.
    """
    queries, query_heads, head_dim = q.shape
    block_size, kv_heads = layer.k.shape[1:3]
    unit = _unit(layer)
    group = query_heads // kv_heads
    lengths = layer.table.lengths.contiguous()
    window = min(_NO_WINDOW if window is None else window, _NO_WINDOW)
    most_queries = int(query_lengths.max()) if len(lengths) else 0
    most_rows = most_queries * group
    # No query reads further back than its window, so no tile than the window and its own queries.
    longest = min(int(lengths.max()), window + min(most_queries, _MANY_ROWS)) if len(lengths) else 0

    def form(reading: bool) -> Specialisation:
        chosen = _specialisation(
            q.dtype, _block_m(q.dtype, head_dim, most_rows, reading), _block_d(head_dim), reading
        )
        if INTERPRETED:
            chosen = chosen.with_constexprs(UNIT=unit, UPCAST=q.dtype == torch.bfloat16)
        if _TILES_OF_DATA:
            chosen = chosen.with_constexprs(
                BLOCK_M=power_of_two(most_rows, 1, 64),
                BLOCK_N=power_of_two(longest, 16, 512),
                BLOCK_D=power_of_two(head_dim, 1, LARGEST_HEAD_DIM),
            )
        return chosen

    rows = query_lengths * group
    splits = choose_splits(int(_tiles(rows, form(False)).sum()) * kv_heads, longest, processors(q.device))

    if q.stride(2) != 1 or q.data_ptr() % POOL_ALIGNMENT or any(stride % UNIT for stride in q.stride()[:2]):
        q = q.clone(memory_format=torch.contiguous_format)
    out = torch.empty(q.shape, dtype=torch.float32 if INTERPRETED else q.dtype, device=q.device)
    lse = torch.empty((splits, queries, query_heads), dtype=torch.float32, device=q.device)
    partial = torch.empty((splits, *q.shape) if splits > 1 else 1, dtype=torch.float32, device=q.device)
    if sinks is None:
        sinks = torch.full((query_heads,), -math.inf, dtype=torch.float32, device=q.device)
    # An unfused cache has the scale 1 everywhere and runs the same code, so that a request that took
    # part in no fusion gets the same bits either way.
    scale_strides = (0, 0)
    k_scale = v_scale = torch.ones(1, dtype=torch.float32, device=q.device)
    if isinstance(layer, FusedLayer):
        k_scale, v_scale = layer.k_scale.contiguous(), layer.v_scale.contiguous()
        scale_strides = (k_scale.shape[1], 1)
    arguments = {
        "q": q,
        "k_pool": layer.k,
        "v_pool": layer.v,
        "k_scale": k_scale,
        "v_scale": v_scale,
        "table": layer.table.entries.contiguous(),
        "lengths": lengths,
        "first_query": torch.nn.functional.pad(query_lengths.cumsum(0), (1, 0)),
        "sinks": sinks.float().contiguous(),
        "out": out,
        "partial": partial,
        "lse": lse,
        "softmax_scale": softmax_scale,
        "softcap": softcap or 0.0,
        "window": window,
        "group": group,
        "head_units": head_dim // unit,
        "pair_distance": 1,
        "row_count": queries * query_heads,
        "q_row_units": q.stride(0) // unit,
        "q_head_units": q.stride(1) // unit,
        "block_size": block_size,
        "k_block_units": layer.k.stride(0) // unit,
        "k_token_units": layer.k.stride(1) // unit,
        "k_head_units": layer.k.stride(2) // unit,
        "v_block_units": layer.v.stride(0) // unit,
        "v_token_units": layer.v.stride(1) // unit,
        "v_head_units": layer.v.stride(2) // unit,
        "table_stride": layer.table.entries.shape[1],
        "scale_request_stride": scale_strides[0],
        "scale_block_stride": scale_strides[1],
    }
    for requests, of_reading in _parts(layer):
        chosen = form("turn" in of_reading)
        tiles = _tiles(rows * requests, chosen)
        tile_request = torch.repeat_interleave(tiles).int()
        chosen.launch(
            (len(tile_request), kv_heads, splits),
            **(arguments | of_reading),
            tile_request=tile_request,
            first_tile=tiles.cumsum(0) - tiles,
        )
    if splits == 1:
        return out.to(q.dtype), lse[0]
    merged = torch.empty((queries, query_heads), dtype=torch.float32, device=q.device)
    merging = _merging(q.dtype)
    if INTERPRETED:
        merging = merging.with_constexprs(UNIT=unit, BLOCK_M=power_of_two(queries * query_heads, 1, 512))
    merging.launch(
        (triton.cdiv(queries * query_heads, merging.constexprs["BLOCK_M"]),),
        partial_pool=partial,
        partial_lse=lse,
        out=out,
        lse=merged,
        row_count=queries * query_heads,
        splits=splits,
        head_units=head_dim // unit,
    )
    return out.to(q.dtype), merged


def choose_splits(programs: int, tokens: int, processors: int) -> int:
    """Parts to split a sequence into, at least 1: enough for two programs per processor of the GPU.

    Args:
        programs: of one part: tiles of rows times KV heads.
        tokens: most that a tile reads.
        processors: streaming multiprocessors (NVIDIA) or compute units (AMD).

    Test: tests/kernels/test_attention.py::test_choice_of_splits.
    """
    wanted = 2 * processors // max(1, programs)
    return max(1, min(wanted, tokens // _SHORTEST_SPLIT, _MOST_SPLITS))


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 elsewhere, where programs run one after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _unit(layer: PagedLayer | FusedLayer) -> int:
    """Elements in which to count strides; raises InputError for what the kernel cannot read."""
    head_dim = layer.k.shape[3]
    if head_dim > LARGEST_HEAD_DIM:
        raise InputError(
            "head_dim",
            head_dim,
            f"the kernel takes multiples of {UNIT} up to {LARGEST_HEAD_DIM}; backend 'cpu' takes any",
        )
    units = []
    for name, pool in (("k", layer.k), ("v", layer.v)):
        if pool.stride(3) != 1 and head_dim > 1:
            raise InputError(name, pool.stride(), "must be dense in head_dim (a last stride of 1)")
        units.append(pool_unit(name, pool, *pool.stride()[:3], head_dim))
    return min(units)


def _tiles(rows: Tensor, chosen: Specialisation) -> Tensor:
    """(requests,) tiles that hold the rows of each request."""
    block_m = int(chosen.constexprs["BLOCK_M"] or 1)
    return (rows + block_m - 1) // block_m


def _parts(layer: PagedLayer | FusedLayer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """(requests,) whether each is of this part, and what a reading adds to the arguments; {} for none."""
    if isinstance(layer, PagedLayer) or layer.reading is None:
        yield torch.ones_like(layer.table.lengths), {}
        return
    reading, table, head_dim = layer.reading, layer.table, layer.k.shape[3]
    used = torch.arange(table.entries.shape[1], device=layer.k.device) < table.used_blocks[:, None]
    none = torch.full(table.entries.shape, NO_MEAN, dtype=torch.int32, device=layer.k.device)
    turn, cosine, sine = turn_tables(reading, head_dim)
    means = reading.means
    add, subtract = (none, none) if means is None else (means.add.contiguous(), means.subtract.contiguous())
    involved = (used & ((turn > 0) | (add >= 0))).any(1)
    yield ~involved, {}
    yield (
        involved,
        {
            "turn": turn,
            "cosine": cosine,
            "sine": sine,
            # Never read where nothing is centred.
            "k_mean_pool": layer.k if means is None else _aligned(means.k),
            "v_mean_pool": layer.v if means is None else _aligned(means.v),
            "mean_add": add,
            "mean_subtract": subtract,
            "pair_distance": pair_distance(reading),
        },
    )


def _aligned(pool: Tensor) -> Tensor:
    """``pool`` dense, at an address that wide loads take."""
    pool = pool.contiguous()
    return pool.clone() if pool.data_ptr() % POOL_ALIGNMENT else pool
