"""Kept blocks and errors of absorbed ones, followed through leader and tree in expectation alone.

The expected state after one request (or node) is put into the next step as if it were certain.
``ratedist.fusion`` also carries its variance and gives the better count of kept blocks; what is added here
are the errors, which need to know where each block's best match stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ratedist.predictors.hazard import Hazard

__all__ = ["leader_mean_field", "tree_mean_field"]

FloatArray = NDArray[np.float64]


def leader_mean_field(
    hazard: Hazard, counts: FloatArray, thresholds: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Requests one after another, each block absorbed by its best match among the kept ones.

    Args:
        hazard: matches between C classes of blocks, its edges holding every threshold.
        counts: (requests, C) blocks of each class in each request, in order.
        thresholds: (T,).

    Returns:
        kept (T,): expected kept blocks; errors (2, T): mean squared relative error of the absorbed ones,
        keys and values, 0 where none is absorbed.

    n_i ← n_i + c_i·exp(−Σ_j H_ij n_j) for each request (docs/theory.md, "The position-marked process"); a
    kept block is never absorbed, so the error of the best match is final.

    Test: tests/ratedist/predictors/test_mean_field.py::test_leader_agrees_with_simulation.
    """
    survivors, means = np.zeros(thresholds.size), np.zeros((2, thresholds.size))
    for index, threshold in enumerate(thresholds):
        matches = hazard.above(float(threshold))
        total = matches.total()
        met = np.zeros_like(counts)
        kept = np.zeros(counts.shape[1])
        for request, blocks in enumerate(counts):
            met[request] = kept
            kept = kept + blocks * np.exp(-total @ kept)
        survivors[index] = kept.sum()
        void, *squared = matches.best_match(met)
        absorbed = (counts * (1 - void)).sum()
        if absorbed > 0:
            means[:, index] = [(counts * error).sum() / absorbed for error in squared]
    return survivors, means


def tree_mean_field(
    hazard: Hazard, counts: FloatArray, thresholds: FloatArray, far: Sequence[FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """A balanced binary tree over the requests, an odd last one passing up.

    Args:
        hazard, counts, thresholds: as for ``leader_mean_field``.
        far: (C, C) each, keys and values: mean squared relative error of a pair taken at random.

    Returns:
        kept (T,) and errors (2, T) as ``leader_mean_field``, against the final representative.

    At a node n_i = n_L,i + n_R,i·exp(−Σ_j H_ij n_L,j), and a representative that is absorbed takes its
    members with it. With e₁² the error of the member, e₂² that of its representative, and E² that of a random
    pair, the member ends at e₁² + e₂² − e₁²e₂²/E², that is 1 − e²/E² multiplies along the path. For
    directions that are independent given the matches, around a mean direction of their own, this is
    exact: under own norm with mean similarity m, E² = 2(1 − m) and 1 − e²/E² = (s − m)/(1 − m); m = 0 gives
    the product of similarities of docs/theory.md, "Errors of absorbed blocks".

    Test: tests/ratedist/predictors/test_mean_field.py::test_tree_agrees_with_simulation.
    """
    inverse = np.stack([1 / np.maximum(error, 1e-12) for error in far])
    survivors, means = np.zeros(thresholds.size), np.zeros((2, thresholds.size))
    for index, threshold in enumerate(thresholds):
        matches = hazard.above(float(threshold))
        nodes = [_Node.leaf(blocks) for blocks in counts]
        while len(nodes) > 1:
            merged = _merge_pairs(matches, nodes[: len(nodes) // 2 * 2 : 2], nodes[1::2], inverse)
            nodes = merged + nodes[2 * len(merged) :]
        survivors[index] = nodes[0].kept.sum()
        absorbed = nodes[0].members.sum()
        if absorbed > 0:
            means[:, index] = np.maximum(nodes[0].squared.sum(axis=1), 0.0) / absorbed
    return survivors, means


class _Node:
    """Expected state of a subtree, by class of the representative.

    Attributes:
        kept: (C,) representatives.
        members: (C,) blocks they have absorbed.
        squared: (2, C) summed squared relative error of those members, keys and values.
    """

    def __init__(self, kept: FloatArray, members: FloatArray, squared: FloatArray) -> None:
        self.kept = kept
        self.members = members
        self.squared = squared

    @classmethod
    def leaf(cls, blocks: FloatArray) -> _Node:
        return cls(blocks.astype(np.float64), np.zeros(blocks.shape), np.zeros((2, *blocks.shape)))


def _merge_pairs(matches: Hazard, left: list[_Node], right: list[_Node], inverse: FloatArray) -> list[_Node]:
    """Merge the subtrees of one level, left[i] with right[i]."""
    met = np.stack([node.kept for node in left])
    flows, *step_errors = matches.flows(met)
    voids = np.exp(-met @ matches.total().T)
    merged = []
    for index, (a, b) in enumerate(zip(left, right, strict=True)):
        flow, void = flows[index], voids[index]
        step = np.stack([error[index] for error in step_errors])  # (2, C, C)
        moved = (
            np.einsum("i,xij->xj", b.kept + b.members, step)
            + b.squared @ flow
            - np.einsum("xi,xij,xij->xj", b.squared, step, inverse)
        )
        merged.append(
            _Node(
                kept=a.kept + b.kept * void,
                members=a.members + b.members * void + (b.kept + b.members) @ flow,
                squared=a.squared + b.squared * void + moved,
            )
        )
    return merged
