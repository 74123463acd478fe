"""What a fusion is told to do, checked in one place for every implementation."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch

from ratedist.errors import InputError
from ratedist.kernels.scales import SCALES
from ratedist.kernels.scoring import CRITERIA

__all__ = ["MODES", "VARIANTS", "FuseOptions"]

VARIANTS = ("leader", "tree")

MODES = ("bff", "cff")
"""Batch fast-fusion, whose units are the requests of a batch, or chunks fast-fusion, whose units are the
chunks of a request."""


@dataclass(frozen=True)
class FuseOptions:
    """Options of ``ratedist.kernels.fuse.fuse``, which describes them.

    Raises:
        InputError: a value outside what is listed.
    """

    threshold: float
    variant: str = "leader"
    criterion: str = "keys"
    scale: str = "own-norm"
    mode: str = "bff"
    chunk_blocks: int | None = None
    max_sharers: int | None = None
    max_absorbed_share: float | None = None

    def __post_init__(self) -> None:
        for argument, known in (
            ("variant", VARIANTS),
            ("criterion", CRITERIA),
            ("scale", SCALES),
            ("mode", MODES),
        ):
            if getattr(self, argument) not in known:
                raise InputError(argument, getattr(self, argument), f"must be one of {', '.join(known)}")
        threshold = self.threshold
        if isinstance(threshold, bool) or not isinstance(threshold, Real):
            raise InputError("threshold", threshold, "must be a number within [-1, 1]")
        if not -1 <= float(threshold) <= 1:  # NaN fails this too
            raise InputError(
                "threshold", float(threshold), "must lie within [-1, 1], the range of a cosine similarity"
            )

        self._check_mode()
        self._check_caps()

    def _check_mode(self) -> None:
        chunk_blocks = self.chunk_blocks
        if self.mode == "bff":
            if chunk_blocks is not None:
                raise InputError("chunk_blocks", chunk_blocks, "goes with mode='cff'; leave it out for 'bff'")
        elif isinstance(chunk_blocks, bool) or not isinstance(chunk_blocks, int) or chunk_blocks < 1:
            raise InputError(
                "chunk_blocks", chunk_blocks, "must be a whole number of blocks, at least 1, for mode='cff'"
            )

    def _check_caps(self) -> None:
        sharers, share = self.max_sharers, self.max_absorbed_share
        if sharers is not None and (isinstance(sharers, bool) or not isinstance(sharers, int) or sharers < 1):
            raise InputError("max_sharers", sharers, "must be a whole number, at least 1, or None for no cap")
        if share is not None and (
            isinstance(share, bool) or not isinstance(share, Real) or not 0 <= float(share) <= 1
        ):
            raise InputError(
                "max_absorbed_share", share, "must be a number within [0, 1], or None for no cap"
            )

    @property
    def capped(self) -> bool:
        """Whether there is a cap."""
        return self.max_sharers is not None or self.max_absorbed_share is not None

    @property
    def limit(self) -> float:
        """The threshold rounded to float32, once, so that a comparison means the same on every backend."""
        return float(torch.tensor(float(self.threshold), dtype=torch.float32))
