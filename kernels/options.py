"""What a fusion is told to do, checked in one place for every implementation."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch

from ratedist.errors import InputError
from ratedist.kernels.scales import SCALES
from ratedist.kernels.scoring import CRITERIA

__all__ = ["VARIANTS", "FuseOptions"]

VARIANTS = ("leader", "tree")


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

    def __post_init__(self) -> None:
        for argument, known in (("variant", VARIANTS), ("criterion", CRITERIA), ("scale", SCALES)):
            if getattr(self, argument) not in known:
                raise InputError(argument, getattr(self, argument), f"must be one of {', '.join(known)}")
        threshold = self.threshold
        if isinstance(threshold, bool) or not isinstance(threshold, Real):
            raise InputError("threshold", threshold, "must be a number within [-1, 1]")
        if not -1 <= float(threshold) <= 1:  # NaN fails this too
            raise InputError(
                "threshold", float(threshold), "must lie within [-1, 1], the range of a cosine similarity"
            )

    @property
    def limit(self) -> float:
        """The threshold rounded to float32, once, so that a comparison means the same on every backend."""
        return float(torch.tensor(float(self.threshold), dtype=torch.float32))
