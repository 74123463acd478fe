"""The law that a generator's blocks follow, counted by pair of positions; for rungs 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ratedist.fusion import leader_marked, tree_marked
from ratedist.sim.blocks import SyntheticLayer
from ratedist.sim.marked_process import simulate_marked

__all__ = ["MarkedLaw"]

FloatArray = NDArray[np.float64]

_GROUPS = 8
"""Groups of requests that are left out in turn."""


class MarkedLaw:
    """Chances of an exceedance by pair of positions, counted on blocks of a generator.

    Attributes:
        tau: the thresholds.
    """

    def __init__(self, layer: SyntheticLayer, tau: FloatArray) -> None:
        requests, positions = layer.identity.shape
        flat = layer.k.flatten(0, 1).flatten(1).float()
        flat = flat / flat.norm(dim=1, keepdim=True)
        scores = (flat @ flat.T).numpy().reshape(requests, positions, requests, positions)
        same = (layer.identity.flatten()[:, None] == layer.identity.flatten()).numpy().reshape(scores.shape)
        self.tau = tau
        # Byte-equal blocks share at every threshold, at 1 too.
        over = [((scores > t) if t < 1 else np.zeros_like(same)) | same for t in tau]
        apart = ~np.eye(requests, dtype=bool)
        # (thresholds, requests, requests, positions, positions), own pairs left out.
        self._over = np.stack(over).transpose(0, 1, 3, 2, 4) & apart[None, :, :, None, None]
        self._requests = requests

    def chance(self, without: NDArray[np.int64] | None = None) -> FloatArray:
        """(thresholds, positions, positions) shares of pairs that exceed, of all requests but some."""
        use = np.ones(self._requests, dtype=bool)
        if without is not None:
            use[without] = False
        count = int(use.sum())
        return np.asarray(self._over[:, use][:, :, use].sum(axis=(1, 2)) / (count * (count - 1)))

    def closed_form(
        self, counts: Sequence[int], variant: str, without: NDArray[np.int64] | None = None
    ) -> FloatArray:
        """(thresholds,) kept blocks by the marked recursion."""
        recursion = leader_marked if variant == "leader" else tree_marked
        chance = self.chance(without)
        # The recursion knows no exceedance at 1, where byte-equal blocks share all the same.
        tau = np.minimum(self.tau, np.nextafter(1.0, 0.0))
        return np.asarray(recursion(chance, counts, thresholds=tau, matches=False).total_kept)

    def jackknife(self, counts: Sequence[int], variant: str) -> tuple[FloatArray, FloatArray]:
        """Kept blocks, and their standard error from leaving groups of requests out of the law."""
        groups = np.array_split(np.arange(self._requests), _GROUPS)
        parts = np.stack([self.closed_form(counts, variant, group) for group in groups])
        spread = np.sqrt((_GROUPS - 1) / _GROUPS * np.square(parts - parts.mean(axis=0)).sum(axis=0))
        return self.closed_form(counts, variant), spread

    def process(self, counts: Sequence[int], variant: str, runs: int, rng: np.random.Generator) -> FloatArray:
        """(runs, thresholds) kept blocks of the simulated process."""
        return np.stack(
            [
                simulate_marked(chance, counts, variant=variant, runs=runs, rng=rng).astype(np.float64)
                for chance in self.chance()
            ],
            axis=1,
        )
