"""The matching primitive that the fusion driver runs on, one implementation per backend."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ratedist.kernels.fusion.scoring import Scoring

__all__ = ["NO_LABEL", "Matcher"]

NO_LABEL = 2**31 - 1
"""What ``Matcher.lowest_label`` returns where no column exceeds the limit; above every label."""


class Matcher(Protocol):
    """What a backend provides; a module with these functions is one (``_match_cpu``, ``_match_triton``).

    Pools have shape (blocks, block_size, kv_heads, head_dim) in float32, float16 or bfloat16; every
    value is upcast to float32 before it is used. Physical ids are int64 tensors of one dimension on the
    pool's device, in any order and possibly repeated.
    """

    def block_norms(self, pool: Tensor) -> Tensor:
        """(blocks,) float32: Euclidean norm of every block of ``pool``; NaN or infinity where a block
        holds one (unused blocks of a pool may)."""

    def best_match(self, scoring: Scoring, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        """Best match of every row block among the column blocks.

        Args:
            scoring: how a row, as the member, is scored against a column, as its representative. Only
                the pools that it names are read.
            rows: (n_rows,) int64 physical ids.
            cols: (n_cols,) int64 physical ids, in logical order.

        Returns:
            score: (n_rows,) float32, the best score over ``cols``, at most 1; -inf where ``cols`` is empty.
            position: (n_rows,) int64, the lowest position in ``cols`` that attains it; -1 where empty.

        Never stores more than a tile of the (n_rows, n_cols) matrix.
        """

    def lowest_label(
        self,
        scoring: Scoring,
        ids: Tensor,
        units: Tensor,
        labels: Tensor,
        limit: float,
    ) -> Tensor:
        """The lowest label among the blocks of other units whose score with a block exceeds the limit.

        Args:
            scoring: a symmetric one, over a single layer.
            ids: (n,) int64 physical ids.
            units: (n,) int32 unit of each block.
            labels: (n,) int32 label of each block, below ``NO_LABEL``.
            limit: what a score, at most 1, has to exceed.

        Returns:
            (n,) int32; ``NO_LABEL`` where there is no such block.

        Never stores more than a tile of the (n, n) matrix.
        """

    def gather_blocks(self, pool: Tensor, ids: Tensor) -> Tensor:
        """(len(ids), block_size, kv_heads, head_dim): copies of the blocks ``ids`` in a new, dense pool."""
