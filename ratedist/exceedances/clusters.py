"""Clumps of exceedances and their extremal index."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.exceedances.pairs import Exceedances

__all__ = ["Clusters", "clusters"]


@dataclass(frozen=True)
class Clusters:
    """Sizes (clusters,) of the clumps in exceedances, largest first."""

    sizes: NDArray[np.int64]

    @property
    def extremal_index(self) -> float:
        """Clusters per exceedance, 1 over their mean size: 1 where each stands alone; NaN without any."""
        return self.sizes.size / int(self.sizes.sum()) if self.sizes.size else math.nan

    @property
    def compound_dispersion(self) -> float:
        """Var W/E W of the compound Poisson law of these sizes: Σ size²/Σ size; NaN without exceedances."""
        return float(np.sum(self.sizes**2) / self.sizes.sum()) if self.sizes.size else math.nan


def clusters(exceedances: Exceedances, join: str = "either") -> Clusters:
    """Connected components of the exceeding pairs of blocks.

    Two exceedances are neighbours where they share a block (``join="block"``), where they join the same two
    requests (``"requests"``), or in either case (``"either"``): a block that everyone carries makes clumps of
    the first kind, a passage that two requests share makes clumps of the second. At high intensity
    independent pairs meet by chance as well: compare with the index of pairs scattered at random
    (``ratedist.exceedances.scatter``).
    Test: tests/ratedist/exceedances/test_clusters.py::test_planted_clusters_are_found.

    Raises InputError where ``join`` is unknown.
    """
    if join not in ("block", "requests", "either"):
        raise InputError("join", join, "must be 'block', 'requests' or 'either'")
    count = exceedances.count
    if count == 0:
        return Clusters(np.empty(0, dtype=np.int64))
    # A bipartite graph: exceedances on one side, what may join them on the other.
    own = np.arange(count)
    hubs = []
    if join != "requests":
        hubs += [exceedances.first, exceedances.second]
    offset = exceedances.block_count
    if join != "block":
        a, b = exceedances.request_of[exceedances.first], exceedances.request_of[exceedances.second]
        hubs.append(offset + np.unique(a * exceedances.requests + b, return_inverse=True)[1])
    rows = np.tile(own, len(hubs))
    columns = np.concatenate(hubs) + count
    size = int(columns.max()) + 1
    graph = scipy.sparse.coo_array((np.ones(rows.size, dtype=np.int8), (rows, columns)), shape=(size, size))
    labels = scipy.sparse.csgraph.connected_components(graph, directed=False)[1][:count]
    sizes = np.unique(labels, return_counts=True)[1]
    return Clusters(np.sort(sizes)[::-1].astype(np.int64))
