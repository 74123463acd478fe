"""How a fused block is read back where fusion turned rotary positions or took means away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.rotary import Rotary

__all__ = ["NO_MEAN", "Means", "Reading"]

NO_MEAN = -1
"""Entry of ``Means.add`` and ``Means.subtract`` for a block that is read without a mean."""


@dataclass(frozen=True)
class Means:
    """Stored means, of which one is taken away before a block is scaled and another put in its place.

    Attributes:
        k: (means, block_size, kv_heads, head_dim) in the dtype of the pool.
        v: as ``k``.
        add: (requests, max_blocks) int32; mean that belongs to the logical block, or ``NO_MEAN``.
        subtract: (requests, max_blocks) int32; mean that belongs to the physical block it reads, or
            ``NO_MEAN``. Both are ``NO_MEAN`` or neither is.
    """

    k: Tensor
    v: Tensor
    add: Tensor
    subtract: Tensor

    def __post_init__(self) -> None:
        if self.k.ndim != 4 or self.v.shape != self.k.shape or self.v.dtype != self.k.dtype:
            raise InputError(
                "means",
                f"{tuple(self.k.shape)} and {tuple(self.v.shape)}",
                "must be of one shape (means, block_size, kv_heads, head_dim) and one dtype for k and v",
            )
        for name in ("add", "subtract"):
            index: Tensor = getattr(self, name)
            if index.dtype != torch.int32 or index.ndim != 2:
                raise InputError(
                    name,
                    f"{index.dtype} of shape {tuple(index.shape)}",
                    "must be int32 (requests, max_blocks)",
                )
            if index.numel() and not -1 <= int(index.min()) <= int(index.max()) < len(self.k):
                raise InputError(
                    name, [int(index.min()), int(index.max())], f"must name one of {len(self.k)} means, or -1"
                )
        if not torch.equal(self.add < 0, self.subtract < 0):
            raise InputError("subtract", "without add", "a block has both of its means or neither")


@dataclass(frozen=True)
class Reading:
    """Reading logical block b of request i from physical block x: what comes on top of the scales.

    With R(n) the rotation by n tokens and M the means, 0 where a block has none::

        key   = M_k[add] + k_scale · (R(shift) x_k − M_k[subtract])
        value = M_v[add] + v_scale · (x_v − M_v[subtract])

    A block that took part in no fusion has shift 0 and no mean, and is read as it is stored.

    Attributes:
        shift: (requests, max_blocks) int32; position of the logical block minus position of the block it
            reads, in tokens. None where keys are not turned.
        rotary: what turns them; given where ``shift`` is.
        means: None where nothing is centred.
    """

    shift: Tensor | None = None
    rotary: Rotary | None = None
    means: Means | None = None

    def __post_init__(self) -> None:
        if (self.shift is None) != (self.rotary is None):
            raise InputError("rotary", self.rotary, "shift and rotary go together: give both or neither")
        if self.shift is not None and (self.shift.dtype != torch.int32 or self.shift.ndim != 2):
            raise InputError(
                "shift",
                f"{self.shift.dtype} of shape {tuple(self.shift.shape)}",
                "must be int32 of shape (requests, max_blocks)",
            )

    def check(self, k: Tensor, entries: Tensor) -> None:
        """Raise InputError where this does not fit a pool ``k`` and a block table's ``entries``."""
        tables = {"shift": self.shift}
        if self.means is not None:
            tables |= {"add": self.means.add, "subtract": self.means.subtract}
            if self.means.k.shape[1:] != k.shape[1:] or self.means.k.dtype != k.dtype:
                raise InputError(
                    "means",
                    f"{self.means.k.dtype} of shape {tuple(self.means.k.shape)}",
                    f"must be {k.dtype} blocks of shape {tuple(k.shape[1:])} like the pool",
                )
            if self.means.k.device != k.device:
                raise InputError("means", str(self.means.k.device), f"must be on {k.device} like the keys")
        for name, table in tables.items():
            if table is not None and table.shape != entries.shape:
                raise InputError(
                    name,
                    tuple(table.shape),
                    f"must have the shape of the block table, {tuple(entries.shape)}",
                )
            if table is not None and table.device != k.device:
                raise InputError(name, str(table.device), f"must be on {k.device} like the keys")
        if self.rotary is not None and self.rotary.rotary_dim > k.shape[3]:
            raise InputError(
                "rotary", self.rotary.rotary_dim, f"turns more channels than a head has ({k.shape[3]})"
            )
