"""Caps on sharing: how many read one block, and how much of a request may be absorbed."""

from __future__ import annotations

import torch
from torch import Tensor

from ratedist.kernels.fusion.candidates import Candidates
from ratedist.kernels.fusion.options import FuseOptions

__all__ = ["Caps", "absorption_limit"]


def absorption_limit(share: float, blocks: int) -> int:
    """The largest number of ``blocks`` whose share of them is at most ``share``."""
    number = int(share * blocks)
    # 0.29 · 100 is a little less than 29 in float64, while 29 / 100 is 0.29.
    return number + 1 if number < blocks and (number + 1) / blocks <= share else number


class Caps:
    """Who may still absorb and be absorbed, kept up as blocks are absorbed.

    Blocks ask in order of falling score, of equal scores the lowest position first; each is admitted if
    both caps leave room for it then. One that is refused asks nobody else, and is kept where it stands.
    """

    def __init__(self, blocks: Candidates, first: Tensor, options: FuseOptions) -> None:
        """Start with exact duplicates sharing, whatever the caps say.

        Args:
            blocks: the n candidates.
            first: (n,) int64 position of the byte-equal candidate whose block each takes.
            options: the caps.
        """
        count = len(blocks)
        self._most = options.max_sharers
        self._readers: list[int] = torch.bincount(first, minlength=count).tolist()
        self._request: list[int] = blocks.request.tolist()
        self._room: dict[int, int] | None = None
        if options.max_absorbed_share is not None:
            requests, full = torch.unique(blocks.request, return_counts=True)
            self._room = {
                request: absorption_limit(options.max_absorbed_share, number)
                for request, number in zip(requests.tolist(), full.tolist(), strict=True)
            }

    def admit(self, members: Tensor, targets: Tensor, scores: Tensor) -> Tensor:
        """(m,) bool: which of the blocks ``members`` may be absorbed by ``targets``; notes that they are.

        Args:
            members: (m,) int64 positions, ascending; each brings along whoever reads it.
            targets: (m,) int64 positions of the best matches.
            scores: (m,) float32.
        """
        admitted = [False] * len(members)
        order = torch.sort(scores, descending=True, stable=True).indices.tolist()
        pairs = list(zip(members.tolist(), targets.tolist(), strict=True))
        for n in order:
            member, target = pairs[n]
            readers = self._readers[member] + self._readers[target]
            request = self._request[member]
            if self._most is not None and readers > self._most:
                continue
            if self._room is not None:
                if self._room[request] == 0:
                    continue
                self._room[request] -= 1
            self._readers[target] = readers
            admitted[n] = True
        return torch.tensor(admitted, dtype=torch.bool, device=members.device)
