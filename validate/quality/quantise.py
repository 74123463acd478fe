"""Uniform quantisation of K and V, there and back: what a cache in few bits would read.

Per-token int8 is symmetric, one float16 scale per token and head. Groups of few bits follow the layout of
KIVI (Liu et al., arXiv 2402.02750): keys in groups along the tokens of one channel, because keys have
channels that stand out; values in groups along the channels of one token; each group with a scale and a
zero point (its minimum), both float16. Nothing is packed here: the result is what unpacking would give, in
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ratedist.errors import InputError

__all__ = [
    "GROUP",
    "GROUP_BYTES",
    "channel_group",
    "quantise_keys",
    "quantise_per_token",
    "quantise_values",
    "scalar_bytes",
    "token_bytes",
]

GROUP = 32
"""Scalars that share a scale and a zero point."""

GROUP_BYTES = 4
"""Scale and zero point of a group, float16 each."""


def quantise_per_token(x: Tensor) -> Tensor:
    """x read back from int8 with a scale per token and head: the largest magnitude over 127.

    Args:
        x: (…, heads, head_dim).

    Returns:
        float32 of the same shape.

    Raises InputError where float16 cannot hold a scale.
    """
    x = x.float()
    scale = _half(x.abs().amax(-1, keepdim=True) / 127)
    return (x / _nonzero(scale)).round_().clamp_(-127, 127) * scale


def quantise_keys(x: Tensor, bits: int, group: int = GROUP) -> Tensor:
    """x read back from ``bits`` bits in groups of ``group`` tokens of one channel.

    Args:
        x: (n, tokens, heads, head_dim), tokens a multiple of ``group``.
        bits: 1 to 8.
        group: tokens that share a scale and a zero point.

    Returns:
        float32 of the same shape.

    Raises InputError where the tokens do not fall into groups, or float16 cannot hold a scale.
    """
    return _quantise(x, bits, 1, group)


def quantise_values(x: Tensor, bits: int, group: int | None = None) -> Tensor:
    """x read back from ``bits`` bits in groups of channels of one token; see ``quantise_keys``.

    Args:
        x: (n, tokens, heads, head_dim).
        bits: 1 to 8.
        group: channels (heads × head_dim, in this order) that share a scale and a zero point; a divisor of
            their number; default ``channel_group``.
    """
    flat = x.flatten(2)
    return _quantise(flat, bits, 2, group or channel_group(flat.shape[2])).view(x.shape)


def channel_group(channels: int) -> int:
    """The largest number of at most ``GROUP`` channels that divides them all."""
    return next(size for size in range(min(GROUP, channels), 0, -1) if channels % size == 0)


def scalar_bytes(bits: int, group: int) -> float:
    """Bytes of a scalar in groups: bits/8 + 4/group
    (tests/validate/quality/test_quantise.py::test_bytes_of_a_scalar_are_those_of_a_packed_group)."""
    return bits / 8 + GROUP_BYTES / group


def token_bytes(head_dim: int) -> float:
    """Bytes of a scalar in per-token int8: one, and a share of its head's float16 scale."""
    return 1 + 2 / head_dim


def _quantise(x: Tensor, bits: int, dim: int, group: int) -> Tensor:
    if not 1 <= bits <= 8:
        raise InputError("bits", bits, "must lie in 1 … 8")
    if group < 1 or x.shape[dim] % group:
        raise InputError("group", group, f"must divide the {x.shape[dim]} scalars along which it runs")
    grouped = x.float().unflatten(dim, (-1, group))
    low, high = grouped.aminmax(dim=dim + 1, keepdim=True)
    scale, zero = _half((high - low) / (2**bits - 1)), _half(low)
    levels = ((grouped - zero) / _nonzero(scale)).round_().clamp_(0, 2**bits - 1)
    return (levels * scale + zero).flatten(dim, dim + 1)


def _half(x: Tensor) -> Tensor:
    """x as float16 would hold it, in float32."""
    rounded = x.half().float()
    if not bool(torch.isfinite(rounded).all()):
        raise InputError(
            "cache", float(x.abs().max()), "is beyond a float16 scale; leave this layer out of quantisation"
        )
    return rounded


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1.0, scale)
