"""Launching Triton's kernels for matching: its functions make it a ``kernels.fusion.matching.Matcher``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ratedist.kernels._launch_triton import (
    DTYPES,
    INTERPRETED,
    UNIT,
    Specialisation,
    pool_unit,
    power_of_two,
)
from ratedist.kernels.fusion._blocks_triton import block_norms, block_rows, gather_blocks
from ratedist.kernels.fusion._match_kernels_triton import best_match_kernel, lowest_label_kernel
from ratedist.kernels.fusion._space_triton import group_means, matched_blocks
from ratedist.kernels.fusion.matching import NO_LABEL
from ratedist.kernels.fusion.scoring import Scoring

__all__ = [
    "SPECIALISATIONS",
    "best_match",
    "block_norms",
    "gather_blocks",
    "group_means",
    "lowest_label",
    "matched_blocks",
]

_FORMS = {
    (1, False, False): "keys",
    (2, False, False): "both",
    (1, True, False): "mean",
    (1, True, True): "distance",
    (2, True, False): "both of layers",
}
"""(terms, several parts, distance) of a scoring, and the criterion that has this form; keys of several
layers are a mean too."""

_SYMMETRIC = tuple(form for form in _FORMS if not form[2])
"""Forms whose components are asked for."""

_OPERANDS = {
    "norms": "*fp32",
    "offset_units": "*i64",
    "stride_units": "*i64",
    "parts": "i32",
    "norm_stride": "i64",
    "dim_units": "i32",
}
"""What both kernels take beside the pools."""


def _specialise(
    kernel: Any, name: str, dtype: torch.dtype, form: tuple[int, bool, bool], types: dict[str, str]
) -> Specialisation:
    pool = f"*{DTYPES[dtype]}"
    low = dtype != torch.float32
    terms, many, distance = form
    return Specialisation(
        kernel=kernel,
        name=f"{name}[{_FORMS[form]}]",
        dtype=dtype,
        types={"first_pool": pool, "second_pool": pool, **_OPERANDS, **types},
        aligned=("first_pool", "second_pool"),
        constexprs={
            "TWO_TERMS": terms == 2,
            "MANY": many,
            "DISTANCE": distance,
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


@functools.cache
def _match_specialisation(dtype: torch.dtype, form: tuple[int, bool, bool]) -> Specialisation:
    types = {
        "rows": "*i64",
        "cols": "*i64",
        "score": "*fp32",
        "position": "*i32",
        "row_count": "i32",
        "col_count": "i32",
        "cols_per_split": "i32",
    }
    return _specialise(best_match_kernel, "best_match", dtype, form, types)


@functools.cache
def _label_specialisation(dtype: torch.dtype, form: tuple[int, bool, bool]) -> Specialisation:
    types = {
        "ids": "*i64",
        "units": "*i32",
        "labels": "*i32",
        "lowest": "*i32",
        "limit": "fp32",
        "count": "i32",
        "cols_per_split": "i32",
    }
    return _specialise(lowest_label_kernel, "lowest_label", dtype, form, types)


SPECIALISATIONS = (
    *(_match_specialisation(dtype, form) for dtype in DTYPES for form in _FORMS),
    *(_label_specialisation(dtype, form) for dtype in DTYPES for form in _SYMMETRIC),
)
"""Everything that the launchers below can pick."""


def best_match(scoring: Scoring, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    """Best match of every row block among the column blocks; see ``Matcher.best_match``.

    Args:
        scoring: over pools each of whose blocks is dense in memory; they may be spaced differently.
        rows: (n_rows,) int64 physical ids, not checked.
        cols: (n_cols,) int64 physical ids, not checked.

    Returns:
        score: (n_rows,) float32; -inf where ``cols`` is empty.
        position: (n_rows,) int64, the lowest position in ``cols`` with that score; -1 where empty.

    Raises:
        InputError: a pool that the kernels cannot read.
    """
    operands, device = _operands(scoring), scoring.first.device
    row_count, col_count = rows.shape[0], cols.shape[0]
    specialisation = _tiled(_match_specialisation, scoring, operands, row_count, col_count)
    row_tiles, splits, cols_per_split = _grid(specialisation, row_count, col_count, device)
    score = torch.empty((splits, row_count), dtype=torch.float32, device=device)
    position = torch.empty((splits, row_count), dtype=torch.int32, device=device)
    specialisation.launch(
        (row_tiles, splits),
        **operands.arguments,
        rows=rows.contiguous(),
        cols=cols.contiguous(),
        score=score,
        position=position,
        row_count=row_count,
        col_count=col_count,
        cols_per_split=cols_per_split,
    )
    if splits == 1:
        return score[0], position[0].long()
    # Splits hold ascending columns and a tie goes to the lowest, so the lowest position that attains it.
    best = score.amax(dim=0)
    return best, position.masked_fill(score < best, NO_LABEL).amin(dim=0).long()


def lowest_label(scoring: Scoring, ids: Tensor, units: Tensor, labels: Tensor, limit: float) -> Tensor:
    """Lowest label of a block of another unit above the limit; see ``Matcher.lowest_label``.

    Raises:
        InputError: a pool that the kernels cannot read.
    """
    operands, device, count = _operands(scoring), scoring.first.device, ids.shape[0]
    specialisation = _tiled(_label_specialisation, scoring, operands, count, count)
    row_tiles, splits, cols_per_split = _grid(specialisation, count, count, device)
    lowest = torch.empty((splits, count), dtype=torch.int32, device=device)
    specialisation.launch(
        (row_tiles, splits),
        **operands.arguments,
        ids=ids.contiguous(),
        units=units.contiguous(),
        labels=labels.contiguous(),
        lowest=lowest,
        limit=limit,
        count=count,
        cols_per_split=cols_per_split,
    )
    return lowest.amin(dim=0)


def _tiled(
    specialise: Callable[[torch.dtype, tuple[int, bool, bool]], Specialisation],
    scoring: Scoring,
    operands: _Operands,
    row_count: int,
    col_count: int,
) -> Specialisation:
    dtype = scoring.first.dtype
    form = (len(scoring.terms), len(scoring.terms[0]) > 1, scoring.distance)
    specialisation = specialise(dtype, form)
    if not INTERPRETED:
        return specialisation
    return specialisation.with_constexprs(
        UNIT=operands.unit,
        UPCAST=dtype == torch.bfloat16,
        # As large as the data, as operations are what the interpreter takes time for; loads of 2^19.
        BLOCK_M=power_of_two(row_count, 16, 128),
        BLOCK_N=power_of_two(col_count, 16, 128),
        BLOCK_K=power_of_two(operands.dim, 16, 4096),
    )


def _grid(
    specialisation: Specialisation, row_count: int, col_count: int, device: torch.device
) -> tuple[int, int, int]:
    """Tiles of rows, splits of the columns, and columns per split."""
    tile = specialisation.constexprs
    row_tiles = triton.cdiv(row_count, tile["BLOCK_M"])
    col_tiles = triton.cdiv(col_count, tile["BLOCK_N"])
    splits = _splits(row_tiles, col_tiles, device)
    return row_tiles, splits, triton.cdiv(col_tiles, splits) * tile["BLOCK_N"]


@dataclass(frozen=True)
class _Operands:
    """Pools and norms of a scoring as the kernels take them.

    Attributes:
        arguments: of the kernel.
        unit: elements in which strides and extents are counted.
        dim: scalars per block.
    """

    arguments: dict[str, Tensor | int]
    unit: int
    dim: int


def _operands(scoring: Scoring) -> _Operands:
    """Pools of a term are told by how far they lie from its first one, which names them all in one kernel.

    Raises:
        InputError: a pool that the kernels cannot read.
    """
    parts = [part for term in scoring.terms for part in term]
    # Keys come first in every criterion, then values.
    names = ["k" if n < scoring.layers else "v" for n in range(len(parts))]
    flat = [block_rows(name, part.pool) for name, part in zip(names, parts, strict=True)]
    dim, size, device = flat[0].shape[1], flat[0].element_size(), scoring.first.device
    per_term = len(scoring.terms[0])
    offsets = [(view.data_ptr() - flat[n - n % per_term].data_ptr()) // size for n, view in enumerate(flat)]
    unit = min(
        pool_unit(name, view, view.stride(0), dim, offset)
        for name, view, offset in zip(names, flat, offsets, strict=True)
    )
    blocks = min(len(part.norm) for part in parts)
    norms = torch.stack([part.norm[:blocks] for part in parts]) if len(parts) > 1 else parts[0].norm[None]
    return _Operands(
        {
            "first_pool": flat[0],
            "second_pool": flat[-per_term],
            "norms": norms.contiguous(),
            "offset_units": torch.tensor([n // unit for n in offsets], dtype=torch.int64, device=device),
            "stride_units": torch.tensor(
                [view.stride(0) // unit for view in flat], dtype=torch.int64, device=device
            ),
            "parts": per_term,
            "norm_stride": blocks,
            "dim_units": dim // unit,
        },
        unit,
        dim,
    )


def _splits(row_tiles: int, col_tiles: int, device: torch.device) -> int:
    """Programs per row tile: few rows against many columns would leave most of a GPU idle."""
    if row_tiles == 0 or col_tiles == 0 or device.type != "cuda" or INTERPRETED:
        return 1
    wanted = 4 * torch.cuda.get_device_properties(device).multi_processor_count
    splits = max(1, min(col_tiles, wanted // row_tiles))
    # No empty ones: with 5 tiles, 4 splits would take 2 each and leave one with none.
    return triton.cdiv(col_tiles, triton.cdiv(col_tiles, splits))
