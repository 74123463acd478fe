"""What a fusion is told to do, checked in one place for every implementation."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.scales import SCALES
from ratedist.kernels.fusion.scoring import CRITERIA
from ratedist.kernels.rotary import Rotary

__all__ = ["CENTRES", "MODES", "VARIANTS", "FuseOptions"]

VARIANTS = ("leader", "tree", "components", "centroid")

MODES = ("bff", "cff")
"""Batch fast-fusion, whose units are the requests of a batch, or chunks fast-fusion, whose units are the
chunks of a request."""

CENTRES = ("position", "layer")
"""Means that can be taken away before matching: one per logical block index, or one, of a domain's blocks."""


@dataclass(frozen=True)
class FuseOptions:
    """Options of ``ratedist.kernels.fusion.fuse.fuse``, which describes them.

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
    rotary: Rotary | None = None
    starts: Tensor | None = None
    centre: str | None = None

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
        self._check_components()
        self._check_transform()

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

    def _check_components(self) -> None:
        if self.variant != "components":
            return
        if self.criterion == "distance":
            raise InputError(
                "criterion",
                self.criterion,
                "asks what a member loses and is not symmetric, so has no components: use keys, both or mean",
            )
        if self.capped:
            name = "max_sharers" if self.max_sharers is not None else "max_absorbed_share"
            raise InputError(
                name, getattr(self, name), "does not go with variant='components', which share as a whole"
            )

    def _check_transform(self) -> None:
        if self.rotary is not None and not isinstance(self.rotary, Rotary):
            raise InputError(
                "rotary", type(self.rotary).__name__, "must be a ratedist.kernels.rotary.Rotary, or None"
            )
        if self.starts is not None:
            if self.rotary is None:
                raise InputError("starts", "given", "goes with rotary, whose positions it moves; give both")
            if not isinstance(self.starts, Tensor):
                raise InputError("starts", type(self.starts).__name__, "must be an int64 tensor, or None")
        if self.centre is None:
            return
        if self.centre not in CENTRES:
            raise InputError("centre", self.centre, f"must be one of {', '.join(CENTRES)}, or None")
        if self.rotary is not None and self.centre == "position":
            raise InputError(
                "centre",
                self.centre,
                "takes away a mean that holds the rotary positions already, at every position its own: "
                "use centre='layer' with rotary, or centre='position' alone",
            )
        if self.mode == "cff" and (self.rotary is not None or self.centre == "position"):
            raise InputError(
                "centre",
                self.centre,
                "would store a mean for every block, as mode='cff' has one block at each position of a "
                "domain: use centre='layer' without rotary, or rotary alone",
            )

    @property
    def capped(self) -> bool:
        """Whether there is a cap."""
        return self.max_sharers is not None or self.max_absorbed_share is not None

    @property
    def limit(self) -> float:
        """The threshold rounded to float32, once, so that a comparison means the same on every backend."""
        return float(torch.tensor(float(self.threshold), dtype=torch.float32))
