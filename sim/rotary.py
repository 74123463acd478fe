"""Rotary positions at the scale of blocks: what turning a whole block by its start does to its direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError

__all__ = ["Rotary"]

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding in the half-split form: coordinates j and j + d/2 turn as one pair.

    A block is turned as a whole by the position of its first token, so a block's *unturned* form still holds
    the turns 0 … t − 1 of its tokens within the block, which are the same for every block. Unturned keys of
    equal tokens in equal context are equal wherever they stand; that is what makes the position effect of
    keys a property of one rotation rather than one mean per position.

    Attributes:
        theta: base; pair j of a head of dimension d turns by theta^(−2j/d) per token.
        fraction: share of a head's coordinates that turn, the first ones; the others stay as they are.
    """

    theta: float = 10_000.0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.theta) and self.theta > 1):
            raise InputError("theta", self.theta, "must be a finite number above 1")
        if not 0 < self.fraction <= 1:
            raise InputError("fraction", self.fraction, "must lie in (0, 1]")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rotary | None:
        """From a model's rotary parameters as a capture's manifest holds them.

        Returns None where there are none, or where they are of a type other than ``default``: its
        frequencies are then unknown here, and positions are treated as if nothing were known of them.
        """
        kind = config.get("rope_type", config.get("type", "default"))
        theta = config.get("rope_theta")
        if kind != "default" or theta is None:
            return None
        return cls(float(theta), float(config.get("partial_rotary_factor") or 1.0))

    def frequencies(self, head_dim: int) -> FloatArray:
        """(pairs,) radians per token of each pair; raises InputError where the dimension is odd."""
        turning = int(head_dim * self.fraction)
        if turning % 2 or turning == 0:
            raise InputError(
                "head_dim", head_dim, f"needs an even number of turning coordinates, not {turning}"
            )
        return self.theta ** (-np.arange(0, turning, 2) / turning)

    def turn(self, blocks: Float32Array, tokens: ArrayLike) -> Float32Array:
        """Turn every token of block i by ``tokens[i]`` positions (negative: back).

        Args:
            blocks: (n, t, h, d) float32.
            tokens: (n,) positions.

        Returns:
            An array of the same shape; norms and, between blocks turned alike, inner products are kept.
        Test: tests/sim/test_rotary.py::test_turning_is_an_isometry_and_adds_up.
        """
        frequencies = self.frequencies(blocks.shape[-1])
        angles = np.asarray(tokens, dtype=np.float64)[:, None] * frequencies
        cos = np.cos(angles).astype(np.float32)[:, None, None, :]
        sin = np.sin(angles).astype(np.float32)[:, None, None, :]
        half = frequencies.size
        left, right = blocks[..., :half], blocks[..., half : 2 * half]
        turned = np.empty_like(blocks)
        turned[..., :half] = left * cos - right * sin
        turned[..., half : 2 * half] = right * cos + left * sin
        turned[..., 2 * half :] = blocks[..., 2 * half :]
        return turned

    def mean_cosine(self, head_dim: int, tokens: ArrayLike) -> FloatArray:
        """E⟨x, R_Δ x⟩ over uniform directions x, for turns by Δ = ``tokens``: the mean of cos(Δ θ_j).

        It is how fast keys with a common direction grow unlike with their distance in the text.
        Test: tests/sim/test_blocks.py::test_similarity_falls_with_distance_as_the_rotation_says.
        """
        frequencies = self.frequencies(head_dim)
        turning = 2 * frequencies.size / head_dim
        angles = np.asarray(tokens, dtype=np.float64)[..., None] * frequencies
        return turning * np.cos(angles).mean(axis=-1) + (1 - turning)
