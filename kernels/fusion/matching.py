"""The matching primitive that the fusion driver runs on, one implementation per backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ratedist.kernels.fusion.scoring import Scoring
from ratedist.kernels.rotary import Rotary

__all__ = ["NO_LABEL", "Centring", "Matcher", "Turns"]

NO_LABEL = 2**31 - 1
"""What ``Matcher.lowest_label`` returns where no column exceeds the limit; above every label."""


@dataclass(frozen=True)
class Turns:
    """How far the keys of n blocks are turned.

    Attributes:
        rotary: what turns them.
        tokens: (n,) int64 positions that each block is turned by; negative: back.
    """

    rotary: Rotary
    tokens: Tensor


@dataclass(frozen=True)
class Centring:
    """The means that are taken away from n blocks.

    Attributes:
        means: (groups, block_size, kv_heads, head_dim) in the dtype of the pool.
        group: (n,) int64 mean that belongs to each block.
    """

    means: Tensor
    group: Tensor


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
            scoring: a symmetric one.
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

    def matched_blocks(
        self, pool: Tensor, ids: Tensor, turns: Turns | None, centring: Centring | None
    ) -> Tensor:
        """(n, block_size, kv_heads, head_dim) float32: copies of blocks, turned and then without their means.

        Args:
            pool: keys or values.
            ids: (n,) int64 physical ids.
            turns: of these blocks; None where they stay as they are.
            centring: of these blocks; None where nothing is taken away.
        """

    def group_means(
        self, pool: Tensor, ids: Tensor, turns: Turns | None, group: Tensor, groups: int
    ) -> Tensor:
        """(groups, block_size, kv_heads, head_dim) in the pool's dtype: means of blocks that were turned.

        Summed in float64, so that neither the order nor the company of a group moves its mean.

        Args:
            pool: keys or values.
            ids: (n,) int64 physical ids.
            turns: of these blocks; None where they stay as they are.
            group: (n,) int64 group of each block; none is empty.
            groups: how many there are.
        """
