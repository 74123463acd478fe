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
from ratedist.kernels._launch_triton import (
    DTYPES,
    INTERPRETED,
    POOL_ALIGNMENT,
    UNIT,
    Specialisation,
    pool_unit,
    power_of_two,
)
from ratedist.kernels.attention._attention_kernel_triton import attention_kernel, merge_kernel
from ratedist.kernels.attention.turns import pair_distance, turn_tables
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.quantised import Layer, QuantisedLayer
from ratedist.kernels.reading import NO_MEAN, Reading

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
"""Arguments that a layer without a reading does not have, beside the two pools of means."""

_CODED_TYPES = {
    "k_low": "*fp16",
    "k_step": "*fp16",
    "v_low": "*fp16",
    "v_step": "*fp16",
}
"""Arguments that a layer that is not quantised does not have, beside the two pools of tails."""

_POOLS_OF_READING = ("k_mean_pool", "v_mean_pool")
_POOLS_OF_CODED = ("k_tail_pool", "v_tail_pool")

_FORMS = {"": 0, "_reading": 0, "_int8": 8, "_int4": 4}
"""Forms of the kernel, and the bits of a code. All but the plain one read with shifts and means."""

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
    "coded_blocks": "i64",
    "row_units": "i32",
}


def _block_m(dtype: torch.dtype, head_dim: int, most_rows: int, form: str) -> int:
    """Rows per program, where a request has ``most_rows``."""
    if dtype == torch.float32 or _FORMS[form]:
        # float32 products have no matrix instructions that taller tiles would feed; and dequantising
        # leaves them no registers.
        return _FEW_ROWS
    if form:
        return _READING_ROWS
    if most_rows <= _FEW_ROWS:
        return _FEW_ROWS
    # The sums of a tile of 64 rows by 256 channels leave no registers for anything else.
    return _MANY_ROWS if head_dim <= _BLOCKS_D[1] else _MANY_ROWS // 2


def _tile(dtype: torch.dtype, block_m: int, block_d: int, form: str) -> tuple[int, int, int]:
    """(tokens per tile, warps, stages) that compile without spills, with 16-byte loads on NVIDIA."""
    low = dtype != torch.float32
    large = block_d == LARGEST_HEAD_DIM
    if form == "_int4":
        # 16 bytes are 32 channels: fewer tokens would leave threads without a load of their own.
        return 32, 8 if large else 4, 2
    if form == "_int8":
        return 16, 8 if large else 4, 1
    if form == "_reading":
        few = block_d == _BLOCKS_D[0]
        return 32 if low and few else 16, 8 if large or not (low or few) else 4, 2
    # 8 KiB of keys and as much of values, and no fewer tokens than a product takes.
    tokens = max(16, 8192 // (block_d * dtype.itemsize))
    wide = block_m * block_d >= _MANY_ROWS * _BLOCKS_D[1]
    # Three stages fetch the table one tile ahead of the keys and values, where registers suffice.
    stages = 3 if low and block_m == _FEW_ROWS and not large else 2
    return tokens, 8 if wide or (large and not low) else 4, stages


@functools.cache
def _specialisation(dtype: torch.dtype, block_m: int, block_d: int, form: str) -> Specialisation:
    data = f"*{DTYPES[dtype]}"
    bits = _FORMS[form]
    block_n, num_warps, num_stages = _tile(dtype, block_m, block_d, form)
    pool = "*u8" if bits else data
    # The interpreter would cut float32 off to bfloat16 where a GPU rounds.
    types = _TYPES | {"q": data, "k_pool": pool, "v_pool": pool, "out": "*fp32" if INTERPRETED else data}
    aligned = ["q", "k_pool", "v_pool", "out", "partial"]
    absent: list[str] = []
    if form:
        types |= _READING_TYPES | dict.fromkeys(_POOLS_OF_READING, data)
        aligned += [*_POOLS_OF_READING, "cosine", "sine"]
    else:
        absent += [*_READING_TYPES, *_POOLS_OF_READING]
    if bits:
        types |= _CODED_TYPES | dict.fromkeys(_POOLS_OF_CODED, data)
        aligned += [*_POOLS_OF_CODED, "k_low", "k_step"]
    else:
        absent += [*_CODED_TYPES, *_POOLS_OF_CODED]
    return Specialisation(
        kernel=attention_kernel,
        name=f"attention{form}[{block_m}x{block_d}]",
        dtype=dtype,
        types=types,
        aligned=tuple(aligned),
        constexprs={
            "UNIT": UNIT,
            "POOL_UNIT": POOL_ALIGNMENT if bits else UNIT,
            "BITS": bits,
            "UPCAST": False,
            "FLOAT16": dtype == torch.float16,
            "READING": form != "",
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_D": block_d,
            **dict.fromkeys(absent),
        },
        has_product=True,
        num_warps=num_warps,
        num_stages=num_stages,
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


def _blocks_d(dtype: torch.dtype, form: str) -> tuple[int, ...]:
    """What head dimensions are rounded up to in a compiled form: what has registers enough."""
    if form == "_int4":
        # Codes are unpacked lane by lane, which leaves little to gain from a form for 64 alone.
        return () if dtype == torch.float32 else _BLOCKS_D[1:2]
    if form == "_int8":
        return () if dtype == torch.float32 else _BLOCKS_D[1:]
    return _BLOCKS_D[:2] if form and dtype == torch.float32 else _BLOCKS_D


SPECIALISATIONS = (
    *(
        _specialisation(dtype, block_m, block_d, form)
        for form in _FORMS
        for dtype in DTYPES
        for block_d in _blocks_d(dtype, form)
        for block_m in dict.fromkeys(_block_m(dtype, block_d, rows, form) for rows in (1, _MANY_ROWS))
    ),
    *(_merging(dtype) for dtype in DTYPES),
)
"""Everything that the launcher below can pick."""


_NO_WINDOW = 2**31 - 1


def attend(
    q: Tensor,
    layer: Layer,
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

    def specialised(form: str) -> Specialisation:
        block_d = _padded(head_dim, q.dtype, form)
        chosen = _specialisation(q.dtype, _block_m(q.dtype, head_dim, most_rows, form), block_d, form)
        if INTERPRETED:
            chosen = chosen.with_constexprs(
                UNIT=unit,
                POOL_UNIT=POOL_ALIGNMENT if isinstance(layer, QuantisedLayer) else unit,
                UPCAST=q.dtype == torch.bfloat16,
            )
        if _TILES_OF_DATA:
            chosen = chosen.with_constexprs(
                BLOCK_M=power_of_two(most_rows, 1, 64),
                BLOCK_N=power_of_two(longest, 16, 512),
                BLOCK_D=power_of_two(head_dim, 2, LARGEST_HEAD_DIM),
            )
        return chosen

    rows = query_lengths * group
    parts = list(_parts(layer))
    # By the first form, which is the plain one wherever there may be one.
    programs = int(_tiles(rows, specialised(parts[0][0])).sum()) * kv_heads
    splits = choose_splits(programs, longest, processors(q.device))

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
    if not isinstance(layer, PagedLayer):
        k_scale, v_scale = layer.k_scale.contiguous(), layer.v_scale.contiguous()
        scale_strides = (k_scale.shape[1], 1)
    if isinstance(layer, QuantisedLayer):
        k_pool, v_pool = _aligned(layer.k.codes), _aligned(layer.v.codes)
        of_pool = POOL_ALIGNMENT
    else:
        k_pool, v_pool, of_pool = layer.k, layer.v, unit
    arguments = {
        "q": q,
        "k_pool": k_pool,
        "v_pool": v_pool,
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
        "k_block_units": k_pool.stride(0) // of_pool,
        "k_token_units": k_pool.stride(1) // of_pool,
        "k_head_units": k_pool.stride(2) // of_pool,
        "v_block_units": v_pool.stride(0) // of_pool,
        "v_token_units": v_pool.stride(1) // of_pool,
        "v_head_units": v_pool.stride(2) // of_pool,
        "table_stride": layer.table.entries.shape[1],
        "scale_request_stride": scale_strides[0],
        "scale_block_stride": scale_strides[1],
        "coded_blocks": len(k_pool),
        "row_units": k_pool.shape[3] // of_pool,
    }
    for form, requests, more in parts:
        chosen = specialised(form)
        tiles = _tiles(rows * requests, chosen)
        tile_request = torch.repeat_interleave(tiles).int()
        chosen.launch(
            (len(tile_request), kv_heads, splits),
            **(arguments | more),
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

    Test: tests/kernels/attention/test_attention_forms.py::test_choice_of_splits.
    """
    wanted = 2 * processors // max(1, programs)
    return max(1, min(wanted, tokens // _SHORTEST_SPLIT, _MOST_SPLITS))


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 elsewhere, where programs run one after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _unit(layer: Layer) -> int:
    """Elements in which to count strides; raises InputError for what the kernel cannot read."""
    head_dim = layer.k.shape[3]
    if head_dim > LARGEST_HEAD_DIM:
        raise InputError(
            "head_dim",
            head_dim,
            f"the kernel takes multiples of {UNIT} up to {LARGEST_HEAD_DIM}; backend 'cpu' takes any",
        )
    if isinstance(layer, QuantisedLayer):
        return pool_unit("k", _aligned(layer.k_tail), head_dim)
    units = []
    for name, pool in (("k", layer.k), ("v", layer.v)):
        if pool.stride(3) != 1 and head_dim > 1:
            raise InputError(name, pool.stride(), "must be dense in head_dim (a last stride of 1)")
        units.append(pool_unit(name, pool, *pool.stride()[:3], head_dim))
    return min(units)


def _padded(head_dim: int, dtype: torch.dtype, form: str) -> int:
    """The block that holds ``head_dim`` channels in this form; raises InputError where there is none."""
    # The interpreter knows of no registers.
    blocks = _BLOCKS_D if INTERPRETED else _blocks_d(dtype, form)
    for block in blocks:
        if head_dim <= block:
            return block
    raise InputError(
        "layer",
        f"{form.removeprefix('_')} in {dtype} with head_dim {head_dim}",
        "compiled, blocks are turned and centred in float32 up to 128 channels, codes of 8 bits read in "
        "float16 and bfloat16 up to 256, of 4 bits up to 128; backend 'cpu' takes any",
    )


def _tiles(rows: Tensor, chosen: Specialisation) -> Tensor:
    """(requests,) tiles that hold the rows of each request."""
    block_m = int(chosen.constexprs["BLOCK_M"] or 1)
    return (rows + block_m - 1) // block_m


def _parts(layer: Layer) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """By form of the kernel: (requests,) whether each is read in it, and the arguments that it has more."""
    if isinstance(layer, QuantisedLayer):
        of_codes = {
            "k_low": _aligned(layer.k.low),
            "k_step": _aligned(layer.k.step),
            "v_low": layer.v.low.contiguous(),
            "v_step": layer.v.step.contiguous(),
            "k_tail_pool": _aligned(layer.k_tail),
            "v_tail_pool": _aligned(layer.v_tail),
        }
        everything = torch.ones_like(layer.table.lengths)
        yield f"_int{layer.k.bits}", everything, _reading_arguments(layer) | of_codes
        return
    if isinstance(layer, PagedLayer) or layer.reading is None:
        yield "", torch.ones_like(layer.table.lengths), {}
        return
    table = layer.table
    used = torch.arange(table.entries.shape[1], device=layer.k.device) < table.used_blocks[:, None]
    more = _reading_arguments(layer)
    involved = (used & ((more["turn"] > 0) | (more["mean_add"] >= 0))).any(1)
    yield "", ~involved, {}
    yield "_reading", involved, more


def _reading_arguments(layer: FusedLayer | QuantisedLayer) -> dict[str, Any]:
    """Shifts and means as the kernel takes them; of neither where the layer has no reading."""
    entries, head_dim = layer.table.entries, layer.k.shape[3]
    none = torch.full(entries.shape, NO_MEAN, dtype=torch.int32, device=entries.device)
    reading = layer.reading or Reading()
    turn, cosine, sine = turn_tables(reading, head_dim, none)
    means = reading.means
    # Never read where nothing is centred.
    no_pool = torch.empty(0, dtype=layer.k.dtype, device=entries.device)
    return {
        "turn": turn,
        "cosine": cosine,
        "sine": sine,
        "k_mean_pool": no_pool if means is None else _aligned(means.k),
        "v_mean_pool": no_pool if means is None else _aligned(means.v),
        "mean_add": none if means is None else means.add.contiguous(),
        "mean_subtract": none if means is None else means.subtract.contiguous(),
        "pair_distance": pair_distance(reading),
    }


def _aligned(pool: Tensor) -> Tensor:
    """``pool`` dense, at an address that wide loads take."""
    pool = pool.contiguous()
    return pool.clone() if pool.data_ptr() % POOL_ALIGNMENT else pool
