"""Matching in plain torch: tiles of the similarity product straight from the pool, and a running best.

This is the fast path on a CPU; it runs on any device that torch knows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ratedist.kernels.fusion._space_cpu import group_means, matched_blocks
from ratedist.kernels.fusion.chunks import blocks_per_chunk
from ratedist.kernels.fusion.matching import NO_LABEL
from ratedist.kernels.fusion.scoring import Part, Scoring

__all__ = [
    "best_match",
    "block_norms",
    "gather_blocks",
    "group_means",
    "lowest_label",
    "matched_blocks",
    "tile_shape",
]

_WORKING_SHARE = 0.09
"""Working memory of a match, as a share of the pool's keys and values."""

_PER_BLOCK = 64
"""Bytes of it that a driver's vectors with numbers per block take."""

_LARGEST_TILE = (1024, 256)
_SMALLEST_TILE = (16, 16)


def block_norms(pool: Tensor) -> Tensor:
    """(blocks,) float32 norms of the blocks; see ``ratedist.kernels.fusion.matching.Matcher``."""
    if pool.dtype == torch.float32 and _flat(pool) is not None:
        return torch.linalg.vector_norm(pool, dim=(1, 2, 3))
    norm = torch.empty(pool.shape[0], dtype=torch.float32, device=pool.device)
    step = blocks_per_chunk(pool)
    for start in range(0, pool.shape[0], step):
        chunk = pool[start : start + step].float().flatten(1)
        torch.linalg.vector_norm(chunk, dim=1, out=norm[start : start + step])
    return norm


def gather_blocks(pool: Tensor, ids: Tensor) -> Tensor:
    """Copies of the blocks ``ids``; see ``ratedist.kernels.fusion.matching.Matcher``."""
    return pool.index_select(0, ids)


def best_match(scoring: Scoring, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    """Best match of every row among the columns; see ``ratedist.kernels.fusion.matching.Matcher``.

    A tile of rows is gathered once and meets all tiles of columns in turn, so that a gathered column
    serves as many rows as a tile has. Blocks that lie one after another in a float32 pool are read in place.
    """
    device = scoring.first.device
    score = torch.full((len(rows),), -torch.inf, dtype=torch.float32, device=device)
    position = torch.full((len(rows),), -1, dtype=torch.int64, device=device)
    if len(rows) == 0 or len(cols) == 0:
        return score, position
    tiles = _Tiles(scoring, len(rows), len(cols))
    for row_start in range(0, len(rows), tiles.rows):
        tiles.load_rows(rows[row_start : row_start + tiles.rows])
        best = score[row_start : row_start + tiles.rows]
        best_position = position[row_start : row_start + tiles.rows]
        for col_start in range(0, len(cols), tiles.cols):
            terms = tiles.scores(cols[col_start : col_start + tiles.cols])
            tile_best, tile_position = _row_best(terms, tiles.row_factor)
            better = tile_best > best
            torch.where(better, tile_best, best, out=best)
            torch.where(better, tile_position.add_(col_start), best_position, out=best_position)
    return score, position


def lowest_label(scoring: Scoring, ids: Tensor, units: Tensor, labels: Tensor, limit: float) -> Tensor:
    """Lowest label of another unit's block above the limit; see ``kernels.fusion.matching.Matcher``."""
    lowest = torch.full_like(labels, NO_LABEL)
    if len(ids) == 0:
        return lowest
    tiles = _Tiles(scoring, len(ids), len(ids))
    for row_start in range(0, len(ids), tiles.rows):
        rows = slice(row_start, row_start + tiles.rows)
        tiles.load_rows(ids[rows])
        for col_start in range(0, len(ids), tiles.cols):
            cols = slice(col_start, col_start + tiles.cols)
            score = _least(tiles.scores(ids[cols]))
            if tiles.row_factor is not None:
                score.mul_(tiles.row_factor[:, None])
            joined = (score.clamp_(max=1.0) > limit) & (units[rows, None] != units[None, cols])
            found = torch.where(joined, labels[None, cols], NO_LABEL).amin(dim=1)
            torch.minimum(lowest[rows], found, out=lowest[rows])
    return lowest


class _Tiles:
    """Tiles of scores: the rows of one tile, and what they score against tiles of columns.

    Attributes:
        rows, cols: most rows and columns of a tile.
        row_factor: (rows,) what the scores of a row still have to be multiplied with; None where they
            are what they should be.
    """

    def __init__(self, scoring: Scoring, n_rows: int, n_cols: int) -> None:
        rows, cols = tile_shape(scoring)
        self.rows, self.cols = min(rows, n_rows), min(cols, n_cols)
        self._scoring = scoring
        self._row_buffers = [[_TileBuffer(part.pool, self.rows) for part in term] for term in scoring.terms]
        pools = {id(part.pool): part.pool for term in scoring.terms for part in term}
        copy = _Copy(scoring.first, self.cols)
        self._col_buffers = {key: _TileBuffer(pool, self.cols, copy) for key, pool in pools.items()}
        self._parts = len(scoring.terms[0])
        self._products = [self._product() for _ in scoring.terms]
        self._summand = self._product() if self._parts > 1 else None
        # With a single similarity per pair, a factor per row does not move the maximum: it waits for it.
        self._waiting = len(scoring.terms) == self._parts == 1 and not scoring.distance
        self.row_factor: Tensor | None = None

    def _product(self) -> Tensor:
        return torch.empty(self.rows * self.cols, dtype=torch.float32, device=self._scoring.first.device)

    def load_rows(self, ids: Tensor) -> None:
        """Take the blocks ``ids`` as the rows of the tiles that follow."""
        self._row_ids = ids
        self._row_tiles = [[buffer.load(ids) for buffer in term] for term in self._row_buffers]
        self._row_inverse = [[_inverse(part.norm, ids) for part in term] for term in self._scoring.terms]
        if self._waiting:
            self.row_factor = self._row_inverse[0][0]

    def scores(self, ids: Tensor) -> list[Tensor]:
        """(rows, len(ids)) scores of every term, up to ``row_factor``; valid until the next call."""
        shape = (len(self._row_ids), len(ids))
        terms = []
        for n, term in enumerate(self._scoring.terms):
            total = self._products[n][: shape[0] * shape[1]].view(shape)
            for p, part in enumerate(term):
                out = total
                if p and self._summand is not None:
                    out = self._summand[: shape[0] * shape[1]].view(shape)
                cols = self._col_buffers[id(part.pool)].load(ids)
                torch.mm(self._row_tiles[n][p], cols.T, out=out)
                self._normalise(out, part, self._row_inverse[n][p], ids)
                if p:
                    total.add_(out)
            terms.append(total.div_(self._parts) if self._parts > 1 else total)
        return terms

    def _normalise(self, product: Tensor, part: Part, row_inverse: Tensor, ids: Tensor) -> None:
        product.mul_(_inverse(part.norm, ids))
        if self._waiting:
            return
        product.mul_(row_inverse[:, None])
        if self._scoring.distance:
            # s ρ + (1 - ρ²) / 2 as ρ (s - ρ / 2) + 1 / 2, which cannot become infinity minus infinity.
            col_norm = part.norm.index_select(0, ids)
            product.addr_(row_inverse, col_norm, alpha=-0.5).mul_(col_norm).mul_(row_inverse[:, None])
            product.add_((row_inverse > 0).float().mul_(0.5)[:, None])


def _row_best(terms: list[Tensor], row_factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """Best score and its lowest position in every row of a tile, which is overwritten.

    Args:
        terms: (rows, columns) scores of each term.
        row_factor: (rows,) positive or 0, to multiply the scores with.
    """
    lowest = _least(terms)
    if row_factor is None:
        return lowest.clamp_(max=1.0).max(dim=1)
    # One factor per row does not move its maximum, so it is applied to the maximum alone.
    best, position = lowest.max(dim=1)
    best.mul_(row_factor)
    # Similarities that rounding put above 1 are a tie, and the lowest position wins.
    above = torch.nonzero(best > 1).flatten()
    if len(above):
        clipped = lowest[above].mul_(row_factor[above, None]).clamp_(max=1.0)
        best[above], position[above] = clipped.max(dim=1)
    return best, position


def _least(terms: list[Tensor]) -> Tensor:
    """The minimum over the terms, in place of the first."""
    for term in terms[1:]:
        torch.minimum(terms[0], term, out=terms[0])
    return terms[0]


def tile_shape(scoring: Scoring) -> tuple[int, int]:
    """Rows and columns of a tile: large, but within a share of the bytes of the layers' keys and values.

    A tile holds the rows of every part, the columns of one, a product per term and one that is added.
    """
    pool = scoring.first
    parts = sum(len(term) for term in scoring.terms)
    products = len(scoring.terms) + (len(scoring.terms[0]) > 1)
    budget = _WORKING_SHARE * 2 * pool.numel() * pool.element_size() * scoring.layers
    budget -= _PER_BLOCK * pool.shape[0]
    rows, cols = _LARGEST_TILE
    block = max(1, pool[:1].numel())
    while 4 * ((parts * rows + cols) * block + products * rows * cols) > budget and rows > _SMALLEST_TILE[0]:
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


class _Copy:
    """Memory for the float32 copy of a tile, taken when it is first needed."""

    def __init__(self, pool: Tensor, capacity: int) -> None:
        self._size = (capacity, pool[:1].numel())
        self._device = pool.device
        self._memory: Tensor | None = None

    def rows(self, count: int) -> Tensor:
        if self._memory is None:
            self._memory = torch.empty(self._size, dtype=torch.float32, device=self._device)
        return self._memory[:count]


class _TileBuffer:
    """Float32 rows of a pool by physical id: a view where they are neighbours, else a copy in one buffer."""

    def __init__(self, pool: Tensor, capacity: int, copy: _Copy | None = None) -> None:
        self._pool = pool
        self._flat = _flat(pool)
        self._copy = copy or _Copy(pool, capacity)

    def load(self, ids: Tensor) -> Tensor:
        """(len(ids), block_dim) float32, valid until the next call on the same memory."""
        if self._flat is not None and self._flat.dtype == torch.float32 and _consecutive(ids):
            return self._flat[int(ids[0]) : int(ids[-1]) + 1]
        tile = self._copy.rows(len(ids))
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
