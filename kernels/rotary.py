"""Rotary positions as the kernels need them: turning keys on, or back, by a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.errors import InputError

__all__ = ["STYLES", "Rotary", "rotate"]

STYLES = ("half", "interleaved")
"""Which channels turn together: i and i + n/2 (Llama, Qwen, Gemma), or 2 i and 2 i + 1 (GPT-J)."""


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of one layer's keys.

    A factor that some models apply to both sine and cosine drops out when keys are turned by a
    difference of positions, so it does not appear here.

    Attributes:
        inverse_frequencies: (rotary_dim / 2,) float32; radians per token of each pair of channels. The
            first rotary_dim channels of a head turn, the others (partial rotary) stay as they are.
        style: one of ``STYLES``.
    """

    inverse_frequencies: Tensor
    style: str = "half"

    def __post_init__(self) -> None:
        frequencies = self.inverse_frequencies
        if frequencies.ndim != 1 or frequencies.dtype != torch.float32 or len(frequencies) == 0:
            raise InputError(
                "inverse_frequencies",
                f"{frequencies.dtype} of shape {tuple(frequencies.shape)}",
                "must be float32 of shape (rotary_dim / 2,)",
            )
        if not bool(torch.isfinite(frequencies).all()):
            raise InputError("inverse_frequencies", "NaN or infinity", "must be finite")
        if self.style not in STYLES:
            raise InputError("style", self.style, f"must be one of {', '.join(STYLES)}")

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that turn."""
        return 2 * len(self.inverse_frequencies)

    @classmethod
    def from_base(cls, base: float, rotary_dim: int, style: str = "half") -> Rotary:
        """The default frequencies base^(-2 i / rotary_dim), i = 0 … rotary_dim / 2 - 1.

        Raises:
            InputError: a base of at most 1, or an odd or empty number of channels.
        """
        if not base > 1:
            raise InputError("base", base, "must be above 1")
        if rotary_dim < 2 or rotary_dim % 2:
            raise InputError("rotary_dim", rotary_dim, "must be even and at least 2")
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
        return cls((base**-exponents).float(), style)


def rotate(x: Tensor, tokens: Tensor, rotary: Rotary) -> Tensor:
    """Turn the keys of every block by ``tokens[i]`` positions (negative: back).

    The angles are formed in float64: in float32 an angle of 10⁵ tokens is off by up to 4e-3. Where
    ``tokens`` is 0 the result equals ``x``.

    Args:
        x: (n, block_size, kv_heads, head_dim) float32.
        tokens: (n,) integers.
        rotary: whose rotary_dim is at most head_dim.

    Returns:
        A new tensor of the same shape; norms are kept, and turns add up.

    Test: tests/kernels/test_rotary.py::test_turns_are_isometries_and_add_up.
    """
    angles = tokens.double()[:, None] * rotary.inverse_frequencies.double().to(tokens.device)
    # (n, 1, 1, rotary_dim / 2)
    cos, sin = (f(angles).float()[:, None, None, :] for f in (torch.cos, torch.sin))
    turning = rotary.rotary_dim
    result = x.clone()
    if rotary.style == "half":
        first, second = slice(0, turning // 2), slice(turning // 2, turning)
    else:
        first, second = slice(0, turning, 2), slice(1, turning, 2)
    left, right = x[..., first], x[..., second]
    result[..., first] = left * cos - right * sin
    result[..., second] = right * cos + left * sin
    return result
