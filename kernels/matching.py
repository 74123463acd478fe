"""The matching primitive that the fusion driver runs on, one implementation per backend."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["CRITERIA", "Matcher"]

CRITERIA = ("keys", "both")
"""Scores of two blocks: cosine similarity of their keys, or the lower one of keys and values."""


class Matcher(Protocol):
    """What a backend provides; a module with these functions is one (``_match_cpu``, ``_match_triton``).

    Pools have shape (blocks, block_size, kv_heads, head_dim) in float32, float16 or bfloat16; every
    value is upcast to float32 before it is used. Physical ids are int64 tensors of one dimension on the
    pool's device, in any order and possibly repeated.
    """

    def block_norms(self, pool: Tensor) -> Tensor:
        """(blocks,) float32: Euclidean norm of every block of ``pool``; NaN or infinity where a block
        holds one (unused blocks of a pool may)."""

    def best_match(
        self,
        k: Tensor,
        v: Tensor,
        k_norm: Tensor,
        v_norm: Tensor,
        rows: Tensor,
        cols: Tensor,
        criterion: str,
    ) -> tuple[Tensor, Tensor]:
        """Best match of every row block among the column blocks.

        The similarity of two blocks is <x, y> / (|x| |y|), and 0 where either norm is 0; it counts as
        min(similarity, 1). The score is the similarity of the keys (``"keys"``) or the lower one of the
        similarities of keys and values (``"both"``). Values are not read for ``"keys"``.

        Args:
            k: pool of keys.
            v: pool of values.
            k_norm: (blocks,) float32, as ``block_norms(k)`` returns it.
            v_norm: (blocks,) float32, as ``block_norms(v)`` returns it.
            rows: (n_rows,) int64 physical ids.
            cols: (n_cols,) int64 physical ids, in logical order.
            criterion: one of ``CRITERIA``.

        Returns:
            score: (n_rows,) float32, the best score over ``cols``; -inf where ``cols`` is empty.
            position: (n_rows,) int64, the lowest position in ``cols`` that attains it; -1 where empty.

        Never stores more than a tile of the (n_rows, n_cols) matrix.
        """

    def gather_blocks(self, pool: Tensor, ids: Tensor) -> Tensor:
        """(len(ids), block_size, kv_heads, head_dim): copies of the blocks ``ids`` in a new, dense pool."""
