"""What a layer takes under a plan's setting, counted from the number of blocks that it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.rate import SCALE_BYTES, TABLE_ENTRY_BYTES
from ratedist.validate.captures.manifest import DTYPES, Manifest
from ratedist.validate.quality.methods import Method, stored_block_bytes

__all__ = ["LayerBytes", "check_countable"]

Kept = TypeVar("Kept", float, NDArray[np.float64])


@dataclass(frozen=True)
class LayerBytes:
    """Requests in one layer of a cache, as far as bytes depend on them.

    Attributes:
        lengths: tokens per request.
        block_size: tokens per block.
        heads, head_dim: of keys and of values.
        element_size: bytes of a scalar of the original.
    """

    lengths: tuple[int, ...]
    block_size: int
    heads: int
    head_dim: int
    element_size: int

    @classmethod
    def of_capture(cls, manifest: Manifest, requests: Sequence[int], block_size: int) -> LayerBytes:
        """Some requests of a capture."""
        return cls(
            tuple(manifest.lengths[request] for request in requests),
            block_size,
            manifest.kv_heads,
            manifest.head_dim,
            DTYPES[manifest.dtype].itemsize,
        )

    @property
    def blocks(self) -> int:
        """Full blocks."""
        return sum(length // self.block_size for length in self.lengths)

    @property
    def unfused(self) -> float:
        """Bytes without any method."""
        return float(sum(self.lengths) * self._token)

    def stored(self, method: Method, kept: Kept) -> Kept:
        """Bytes with ``kept`` of the full blocks stored, each full block with its table entry and scales.

        Raises InputError as ``check_countable``.

        Test:
        tests/validate/planning/test_plan_bytes.py::test_bytes_are_those_of_the_cache_that_was_compressed.
        """
        check_countable(method)
        if not method.sharing:
            return kept * 0.0 + self.unfused
        block = stored_block_bytes(method, self.block_size, self.heads, self.head_dim, self.element_size)
        partial = sum(length % self.block_size for length in self.lengths) * self._token
        return kept * block + (self.blocks * (TABLE_ENTRY_BYTES + SCALE_BYTES) + partial)

    @property
    def _token(self) -> int:
        return 2 * self.heads * self.head_dim * self.element_size


def check_countable(method: Method) -> None:
    """Raise InputError for a method whose bytes do not follow from the blocks that it keeps."""
    if not method.sharing and method != Method():
        raise InputError(
            "plan",
            method.name,
            "shares nothing, so there is no number of blocks to predict; plan with exact or fusion",
        )
