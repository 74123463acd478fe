"""Scales: what a shared block is multiplied with when a member is read back from it."""

from __future__ import annotations

import torch
from torch import Tensor

from ratedist.kernels.fusion.chunks import blocks_per_chunk

__all__ = ["SCALES", "member_scales", "row_products"]

SCALES = ("own-norm", "raw", "projection")
"""Rules, for a member x of norm n with similarity s to its representative of norm n_rep.

- ``"own-norm"``: n / n_rep, the member keeps its norm; squared relative error 2 - 2 s;
- ``"raw"``: 1, the representative as it is; with ρ = n_rep / n, 1 + ρ² - 2 ρ s;
- ``"projection"``: n s / n_rep = <x, rep> / n_rep², the least error a scale can give; 1 - s².

Tests: tests/kernels/fusion/test_scales.py::test_error_of_each_rule.
"""


def member_scales(pool: Tensor, norm: Tensor, members: Tensor, representatives: Tensor, rule: str) -> Tensor:
    """(n,) float32 scale of each member block under ``rule`` (one of ``SCALES``).

    A representative of norm zero restores zeros whatever the scale: 0, or 1 under ``"raw"``.

    Args:
        pool: (blocks, block_size, kv_heads, head_dim).
        norm: (blocks,) float32 norms of the pool's blocks.
        members: (n,) int64 physical ids.
        representatives: (n,) int64 physical ids.
        rule: one of ``SCALES``.
    """
    if rule == "raw":
        return torch.ones(members.shape[0], dtype=torch.float32, device=pool.device)
    n_rep = norm[representatives]
    length = norm[members]
    if rule == "projection":
        # Divided twice: n_rep squared may leave float32's range where n_rep does not.
        length = row_products(pool, members, representatives) / n_rep
    return torch.where(n_rep > 0, length / n_rep, 0.0)


def row_products(pool: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(n,) float32 inner products of the blocks ``left[i]`` and ``right[i]`` of the pool, a few at a time."""
    count = left.shape[0]
    products = torch.empty(count, dtype=torch.float32, device=pool.device)
    step = blocks_per_chunk(pool)
    for start in range(0, count, step):
        a = pool.index_select(0, left[start : start + step]).float().flatten(1)
        b = pool.index_select(0, right[start : start + step]).float().flatten(1)
        torch.sum(a.mul_(b), dim=1, out=products[start : start + step])
    return products
