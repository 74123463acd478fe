"""Rotary positions as the kernels need them: turning keys on, or back, by a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.errors import InputError

__all__ = ["STYLES", "Rotary", "rotate", "turn_rows"]

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

    @property
    def pair_distance(self) -> int:
        """Channels between the two that turn together."""
        return len(self.inverse_frequencies) if self.style == "half" else 1

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


def turn_rows(tokens: Tensor, rotary: Rotary, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turns by ``tokens`` positions as rows of two tables, which kernels look up block by block.

    Angles are formed in float64 like those of ``rotate``, once for every number of tokens that occurs.

    Args:
        tokens: integers, of any shape.
        rotary: whose rotary_dim is at most ``head_dim``.
        head_dim: channels of a head.

    Returns:
        row: int32 of the shape of ``tokens``; row of the tables, 0 where nothing turns.
        cosine, sine: (rows, head_dim) float32 such that a key x turns to cosine · x + sine · x', where x'
            is x with the channels of every pair exchanged.

    Test: tests/kernels/attention/test_turns.py::test_tables_turn_as_rotate_does.
    """
    distances, row = torch.unique(tokens, return_inverse=True)
    # Row 0 turns nothing, whether 0 occurs or not.
    distances = torch.cat((distances.new_zeros(1), distances))
    row = torch.where(tokens == 0, 0, row + 1).int()
    angles = distances.double()[:, None] * rotary.inverse_frequencies.double().to(tokens.device)
    cosine, sine = angles.cos(), angles.sin()
    if rotary.style == "half":
        cosine, sine = torch.cat((cosine, cosine), 1), torch.cat((-sine, sine), 1)
    else:
        cosine, sine = (torch.stack(pair, 2).flatten(1) for pair in ((cosine, cosine), (-sine, sine)))
    rest = (0, head_dim - rotary.rotary_dim)
    cosine = torch.nn.functional.pad(cosine, rest, value=1.0).float()
    return row, cosine, torch.nn.functional.pad(sine, rest).float()
