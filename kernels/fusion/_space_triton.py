"""Launching Triton's kernels for blocks as they are matched, and for the means that are taken from them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels._launch_triton import (
    DTYPES,
    INTERPRETED,
    UNIT,
    Specialisation,
    pool_unit,
    power_of_two,
)
from ratedist.kernels.fusion._blocks_triton import block_rows
from ratedist.kernels.fusion._space_kernels_triton import group_sums_kernel, matched_blocks_kernel
from ratedist.kernels.fusion.matching import Centring, Turns
from ratedist.kernels.reading import NO_MEAN
from ratedist.kernels.rotary import turn_rows

__all__ = ["SPECIALISATIONS", "group_means", "matched_blocks"]

_HEADS = (64, 128, 256)
"""Channels of a head that turns are rounded up to one of these; the lanes beyond are masked."""

_FLAT = 0
"""In their place, for blocks that do not turn."""

_SHORTEST_SPLIT = 16
"""Blocks of a group below which their sum is not split further."""

_TURN_TYPES = {"turn": "*i32", "cosine": "*fp32", "sine": "*fp32"}
"""Arguments that a form without turns does not have."""

_TYPES = {
    "ids": "*i64",
    "rows": "i32",
    "width_units": "i32",
    "stride_units": "i64",
    "pair_distance": "i32",
}


def _specialise(
    kernel: Any,
    name: str,
    dtype: torch.dtype,
    head: int,
    types: dict[str, str],
    aligned: tuple[str, ...],
    scalars: int,
) -> Specialisation:
    tables = ("cosine", "sine") if head else ()
    return Specialisation(
        kernel=kernel,
        name=f"{name}[{f'turned {head}' if head else 'flat'}]",
        dtype=dtype,
        types={"pool": f"*{DTYPES[dtype]}", **_TYPES, **types, **(_TURN_TYPES if head else {})},
        aligned=("pool", *aligned, *tables),
        constexprs={
            "UNIT": UNIT,
            "TURN": head != _FLAT,
            **({} if head else dict.fromkeys(_TURN_TYPES)),
            "BLOCK_M": scalars // head if head else 1,
            "BLOCK_D": head or scalars,
        },
        has_product=False,
    )


@functools.cache
def _blocks_specialisation(dtype: torch.dtype, head: int) -> Specialisation:
    types = {"mean_pool": f"*{DTYPES[dtype]}", "group": "*i64", "out": "*fp32", "row_count": "i32"}
    return _specialise(
        matched_blocks_kernel, "matched_blocks", dtype, head, types, ("mean_pool", "out"), 2048
    )


@functools.cache
def _sums_specialisation(dtype: torch.dtype, head: int) -> Specialisation:
    types = {"first": "*i32", "total": "*fp64"}
    # No more than 16 bytes for each of the 256 threads on AMD: a sum takes two registers per scalar.
    scalars = 4096 // dtype.itemsize
    return _specialise(group_sums_kernel, "group_sums", dtype, head, types, ("total",), scalars)


SPECIALISATIONS = tuple(
    specialise(dtype, head)
    for specialise in (_blocks_specialisation, _sums_specialisation)
    for dtype in DTYPES
    for head in (_FLAT, *_HEADS)
)
"""Everything that the launchers below can pick."""


def matched_blocks(pool: Tensor, ids: Tensor, turns: Turns | None, centring: Centring | None) -> Tensor:
    """Float32 copies of blocks, turned and without means; see ``Matcher.matched_blocks``.

    Raises:
        InputError: a pool that the kernels cannot read.
    """
    layout = _layout(pool, turns)
    row_count = len(ids) * layout.rows
    specialisation = _tiled(_blocks_specialisation(pool.dtype, layout.head), layout, row_count)
    tile = specialisation.constexprs
    out = torch.empty((len(ids), *pool.shape[1:]), dtype=torch.float32, device=pool.device)
    specialisation.launch(
        (triton.cdiv(row_count, tile["BLOCK_M"]), triton.cdiv(layout.width, tile["BLOCK_D"])),
        **layout.arguments,
        ids=ids.contiguous(),
        # Not read where no block has a mean.
        mean_pool=layout.arguments["pool"] if centring is None else centring.means.contiguous(),
        group=torch.full_like(ids, NO_MEAN) if centring is None else centring.group.contiguous(),
        out=out,
        row_count=row_count,
    )
    return out


def group_means(pool: Tensor, ids: Tensor, turns: Turns | None, group: Tensor, groups: int) -> Tensor:
    """Means of groups of blocks that were turned; see ``Matcher.group_means``.

    Raises:
        InputError: a pool that the kernels cannot read.
    """
    order = torch.argsort(group, stable=True)
    if turns is not None:
        turns = Turns(turns.rotary, turns.tokens[order])
    layout = _layout(pool, turns)
    specialisation = _tiled(_sums_specialisation(pool.dtype, layout.head), layout, layout.rows)
    tile = specialisation.constexprs
    tiles = triton.cdiv(layout.rows, tile["BLOCK_M"]) * triton.cdiv(layout.width, tile["BLOCK_D"])
    splits = _splits(groups * tiles, len(ids) // max(1, groups), pool.device)
    count = torch.bincount(group, minlength=groups)
    total = torch.empty((splits, groups, *pool.shape[1:]), dtype=torch.float64, device=pool.device)
    specialisation.launch(
        (groups, tiles, splits),
        **layout.arguments,
        ids=ids[order],
        first=torch.nn.functional.pad(count.cumsum(0), (1, 0)).int(),
        total=total,
    )
    return total.sum(0).div_(count[:, None, None, None]).to(pool.dtype)


@dataclass(frozen=True)
class _Layout:
    """A pool as the kernels see it.

    Attributes:
        head: one of ``_HEADS``, or ``_FLAT``.
        rows: of a block.
        width: scalars of a row.
        unit: elements in which widths and strides are counted.
        arguments: what both kernels take.
    """

    head: int
    rows: int
    width: int
    unit: int
    arguments: dict[str, Tensor | int]


def _layout(pool: Tensor, turns: Turns | None) -> _Layout:
    """Raises InputError where the kernels cannot read the pool or turn its heads."""
    blocks = block_rows("pool", pool)
    head, rows, width = _FLAT, 1, blocks.shape[1]
    arguments: dict[str, Tensor | int] = {"pair_distance": 1}
    if turns is not None:
        rows, width = pool.shape[1] * pool.shape[2], pool.shape[3]
        head = next((head for head in _HEADS if width <= head), _FLAT)
        if not head:
            raise InputError(
                "head_dim", width, f"the kernels turn heads of up to {_HEADS[-1]}; backend 'cpu' takes any"
            )
        turn, cosine, sine = turn_rows(turns.tokens, turns.rotary, width)
        arguments = {
            "turn": turn,
            "cosine": cosine,
            "sine": sine,
            "pair_distance": turns.rotary.pair_distance,
        }
    unit = pool_unit("pool", blocks, blocks.stride(0), width)
    arguments |= {
        "pool": blocks,
        "rows": rows,
        "width_units": width // unit,
        "stride_units": blocks.stride(0) // unit,
    }
    return _Layout(head, rows, width, unit, arguments)


def _tiled(specialisation: Specialisation, layout: _Layout, row_count: int) -> Specialisation:
    if not INTERPRETED:
        return specialisation
    # The interpreter costs per operation, so tiles are as large as the data, up to 2^19 elements.
    block_d = power_of_two(layout.width, 2, 4096)
    return specialisation.with_constexprs(
        UNIT=layout.unit,
        BLOCK_M=power_of_two(row_count, 1, 2**19 // block_d),
        BLOCK_D=block_d,
    )


def _splits(programs: int, members: int, device: torch.device) -> int:
    """Programs that share the sum of a group of ``members`` blocks: few groups would leave a GPU idle."""
    if device.type != "cuda" or INTERPRETED:
        return 1
    wanted = 4 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(wanted // max(1, programs), members // _SHORTEST_SPLIT))
