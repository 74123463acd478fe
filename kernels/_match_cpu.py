"""Matching in plain torch: tiles of the similarity product straight from the pool, and a running best.

This is the fast path on a CPU; it runs on any device that torch knows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ratedist.kernels.chunks import blocks_per_chunk

__all__ = ["best_match", "block_norms", "gather_blocks", "tile_shape"]

_WORKING_SHARE = 0.09
"""Working memory of a match, as a share of the pool's keys and values."""

_LARGEST_TILE = (1024, 256)
_SMALLEST_TILE = (16, 16)


def block_norms(pool: Tensor) -> Tensor:
    """(blocks,) float32 norms of the blocks; see ``ratedist.kernels.matching.Matcher``."""
    if pool.dtype == torch.float32 and _flat(pool) is not None:
        return torch.linalg.vector_norm(pool, dim=(1, 2, 3))
    norm = torch.empty(pool.shape[0], dtype=torch.float32, device=pool.device)
    step = blocks_per_chunk(pool)
    for start in range(0, pool.shape[0], step):
        chunk = pool[start : start + step].float().flatten(1)
        torch.linalg.vector_norm(chunk, dim=1, out=norm[start : start + step])
    return norm


def gather_blocks(pool: Tensor, ids: Tensor) -> Tensor:
    """Copies of the blocks ``ids``; see ``ratedist.kernels.matching.Matcher``."""
    return pool.index_select(0, ids)


def best_match(
    k: Tensor,
    v: Tensor,
    k_norm: Tensor,
    v_norm: Tensor,
    rows: Tensor,
    cols: Tensor,
    criterion: str,
) -> tuple[Tensor, Tensor]:
    """Best match of every row among the columns; see ``ratedist.kernels.matching.Matcher``.

    A tile of rows is gathered once and meets all tiles of columns in turn, so that a gathered column
    serves as many rows as a tile has. Blocks that lie one after another in a float32 pool are read in place.
    """
    score = torch.full((len(rows),), -torch.inf, dtype=torch.float32, device=k.device)
    position = torch.full((len(rows),), -1, dtype=torch.int64, device=k.device)
    if len(rows) == 0 or len(cols) == 0:
        return score, position

    pools = [(k, k_norm), (v, v_norm)][: 2 if criterion == "both" else 1]
    tile_rows, tile_cols = tile_shape(k, criterion)
    tile_rows, tile_cols = min(tile_rows, len(rows)), min(tile_cols, len(cols))
    row_buffers = [_TileBuffer(pool, tile_rows) for pool, _ in pools]
    col_buffers = [_TileBuffer(pool, tile_cols) for pool, _ in pools]
    products = [k.new_empty(tile_rows * tile_cols, dtype=torch.float32) for _ in pools]

    for row_start in range(0, len(rows), tile_rows):
        row_ids = rows[row_start : row_start + tile_rows]
        row_tiles = [buffer.load(row_ids) for buffer in row_buffers]
        row_inverse = [_inverse(norm, row_ids) for _, norm in pools]
        best = score[row_start : row_start + tile_rows]
        best_position = position[row_start : row_start + tile_rows]
        for col_start in range(0, len(cols), tile_cols):
            col_ids = cols[col_start : col_start + tile_cols]
            tiles = []
            for part, (_, norm) in enumerate(pools):
                product = products[part][: len(row_ids) * len(col_ids)].view(len(row_ids), len(col_ids))
                torch.mm(row_tiles[part], col_buffers[part].load(col_ids).T, out=product)
                tiles.append(product.mul_(_inverse(norm, col_ids)))
            tile_best, tile_position = _row_best(tiles, row_inverse)
            better = tile_best > best
            torch.where(better, tile_best, best, out=best)
            torch.where(better, tile_position.add_(col_start), best_position, out=best_position)
    return score, position


def _row_best(tiles: list[Tensor], row_inverse: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Best score and its lowest position in every row of a tile, which is overwritten.

    Args:
        tiles: products of keys, and of values if they count, divided by the norms of the columns.
        row_inverse: one over the norms of the rows, for each of ``tiles``.
    """
    if len(tiles) == 2:
        for tile, inverse in zip(tiles, row_inverse, strict=True):
            tile.mul_(inverse[:, None])
        return torch.minimum(tiles[0], tiles[1], out=tiles[0]).clamp_(max=1.0).max(dim=1)
    # One positive factor per row does not move its maximum, so it is applied to the maximum alone.
    best, position = tiles[0].max(dim=1)
    best.mul_(row_inverse[0])
    # Similarities that rounding put above 1 are a tie, and the lowest position wins.
    above = torch.nonzero(best > 1).flatten()
    if len(above):
        clipped = tiles[0][above].mul_(row_inverse[0][above, None]).clamp_(max=1.0)
        best[above], position[above] = clipped.max(dim=1)
    return best, position


def tile_shape(pool: Tensor, criterion: str) -> tuple[int, int]:
    """Rows and columns of a tile: large, but within a share of the bytes of keys and values.

    Args:
        pool: keys (or values, which have the same shape and dtype).
        criterion: with ``"both"`` a tile holds keys and values.
    """
    parts = 2 if criterion == "both" else 1
    budget = _WORKING_SHARE * 2 * pool.numel() * pool.element_size()
    rows, cols = _LARGEST_TILE
    block = max(1, pool[:1].numel())
    while 4 * parts * ((rows + cols) * block + rows * cols) > budget and rows > _SMALLEST_TILE[0]:
        rows, cols = rows // 2, max(cols // 2, _SMALLEST_TILE[1])
    return rows, cols


def _inverse(norm: Tensor, ids: Tensor) -> Tensor:
    """1 / norm of the blocks ``ids``, 0 for norm 0: a block without direction is similar to nothing."""
    inverse = norm.index_select(0, ids).reciprocal_()
    return inverse.masked_fill_(inverse == torch.inf, 0.0)


def _flat(pool: Tensor) -> Tensor | None:
    """(blocks, block_dim) view of the pool, or None where its strides allow none."""
    try:
        return pool.view(pool.shape[0], pool[:1].numel())
    except RuntimeError:
        return None


class _TileBuffer:
    """Float32 rows of a pool by physical id: a view where they are neighbours, else a copy in one buffer."""

    def __init__(self, pool: Tensor, capacity: int) -> None:
        self._pool = pool
        self._flat = _flat(pool)
        self._capacity = capacity
        self._buffer: Tensor | None = None

    def load(self, ids: Tensor) -> Tensor:
        """(len(ids), block_dim) float32, valid until the next call."""
        if self._flat is not None and self._flat.dtype == torch.float32 and _consecutive(ids):
            return self._flat[int(ids[0]) : int(ids[-1]) + 1]
        if self._buffer is None:
            size = (self._capacity, self._pool[:1].numel())
            self._buffer = torch.empty(size, dtype=torch.float32, device=self._pool.device)
        tile = self._buffer[: len(ids)]
        if self._flat is not None and self._flat.dtype == torch.float32:
            return torch.index_select(self._flat, 0, ids, out=tile)
        # Converted a few blocks at a time, so that the copy in the pool's dtype stays small.
        step = blocks_per_chunk(self._pool)
        for start in range(0, len(ids), step):
            tile[start : start + step].copy_(self._pool.index_select(0, ids[start : start + step]).flatten(1))
        return tile


def _consecutive(ids: Tensor) -> bool:
    # The ends settle most cases without a look at the rest.
    return int(ids[-1]) - int(ids[0]) == len(ids) - 1 and bool((ids.diff() == 1).all())
