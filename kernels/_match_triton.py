"""Triton kernels for matching: best matches, and labels of neighbours, without a matrix of scores.

A tile of similarity products is formed, compared with the running best of its rows, and forgotten. This
module is a ``Matcher`` (``ratedist.kernels.matching``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

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
from ratedist.kernels.matching import NO_LABEL
from ratedist.kernels.scoring import Scoring

__all__ = ["SPECIALISATIONS", "best_match", "block_norms", "gather_blocks", "lowest_label"]

_BEYOND = tl.constexpr(2**31 - 1)


@triton.jit
def _part_scores(
    pool: tl.tensor,
    norm: tl.tensor,
    row_id: tl.tensor,  # (BLOCK_M,) int64
    col_id: tl.tensor,  # (BLOCK_N,) int64
    dim_units: tl.tensor,
    stride_units: tl.tensor,
    DISTANCE: tl.constexpr,
    UNIT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """(BLOCK_M, BLOCK_N) float32 cosine similarities, or what is left of 1 by half the squared distance."""
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
    similarity = product * row_inverse[:, None] * col_inverse[None, :]
    if DISTANCE:
        # s ρ + (1 - ρ²) / 2 in a form that cannot become infinity minus infinity.
        ratio = row_inverse[:, None] * col_norm[None, :]
        similarity = ratio * (similarity - 0.5 * ratio) + tl.where(row_norm > 0, 0.5, 0.0)[:, None]
    return similarity


@triton.jit
def _term_scores(
    pool: tl.tensor,  # of the first part
    norms: tl.tensor,  # (parts, norm_stride) float32
    offset_units: tl.tensor,  # (parts,) int64 from the first part's pool to each one's
    stride_units: tl.tensor,  # (parts,) int64 from block to block
    parts: tl.tensor,
    norm_stride: tl.tensor,
    row_id: tl.tensor,
    col_id: tl.tensor,
    dim_units: tl.tensor,
    MANY: tl.constexpr,
    DISTANCE: tl.constexpr,
    UNIT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """(BLOCK_M, BLOCK_N) float32 mean over the parts of a term."""
    stride = tl.load(stride_units)
    score = _part_scores(
        pool, norms, row_id, col_id, dim_units, stride, DISTANCE, UNIT, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if MANY:
        for part in range(1, parts):
            part_pool = pool + tl.load(offset_units + part) * UNIT
            stride = tl.load(stride_units + part)
            norm = norms + part * norm_stride
            score += _part_scores(
                part_pool,
                norm,
                row_id,
                col_id,
                dim_units,
                stride,
                DISTANCE,
                UNIT,
                UPCAST,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
            )
        score = score / parts
    return score


@triton.jit
def _scores(
    first_pool: tl.tensor,
    second_pool: tl.tensor,
    norms: tl.tensor,
    offset_units: tl.tensor,
    stride_units: tl.tensor,
    parts: tl.tensor,
    norm_stride: tl.tensor,
    row_id: tl.tensor,
    col_id: tl.tensor,
    dim_units: tl.tensor,
    TWO_TERMS: tl.constexpr,
    MANY: tl.constexpr,
    DISTANCE: tl.constexpr,
    UNIT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """(BLOCK_M, BLOCK_N) float32: the least of the terms, at most 1."""
    score = _term_scores(
        first_pool,
        norms,
        offset_units,
        stride_units,
        parts,
        norm_stride,
        row_id,
        col_id,
        dim_units,
        MANY,
        DISTANCE,
        UNIT,
        UPCAST,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    if TWO_TERMS:
        second = _term_scores(
            second_pool,
            norms + parts * norm_stride,
            offset_units + parts,
            stride_units + parts,
            parts,
            norm_stride,
            row_id,
            col_id,
            dim_units,
            MANY,
            DISTANCE,
            UNIT,
            UPCAST,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
        )
        score = tl.minimum(score, second)
    return tl.minimum(score, 1.0)


@kernel("first_pool", "second_pool")
def _best_match_kernel(
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
            first_pool,
            second_pool,
            norms,
            offset_units,
            stride_units,
            parts,
            norm_stride,
            row_id,
            col_id,
            dim_units,
            TWO_TERMS,
            MANY,
            DISTANCE,
            UNIT,
            UPCAST,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
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
def _lowest_label_kernel(
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
            first_pool,
            second_pool,
            norms,
            offset_units,
            stride_units,
            parts,
            norm_stride,
            row_id,
            col_id,
            dim_units,
            TWO_TERMS,
            MANY,
            DISTANCE,
            UNIT,
            UPCAST,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
        )
        joined = (tile > limit) & (row_unit[:, None] != col_unit[None, :])
        found = tl.minimum(found, tl.min(tl.where(joined, label[None, :], _BEYOND), axis=1))
    out = tl.program_id(1).to(tl.int64) * count + row
    tl.store(lowest + out, found, mask=row < count)


_FORMS = {
    (1, False, False): "keys",
    (2, False, False): "both",
    (1, True, False): "mean",
    (1, True, True): "distance",
    (2, True, False): "both of layers",
}
"""(terms, several parts, distance) of a scoring, and the criterion that has this form; keys of several
layers are a mean too."""


_SYMMETRIC = ((1, False, False), (2, False, False), (1, True, False))
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
    return _specialise(_best_match_kernel, "best_match", dtype, form, types)


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
    return _specialise(_lowest_label_kernel, "lowest_label", dtype, form, types)


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
