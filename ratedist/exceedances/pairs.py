"""Pairs of blocks of different requests whose score exceeds a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError

__all__ = ["NULLS", "Exceedances"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# What the exceedances are compared with: every candidate pair equally likely, or a probability for every pair
# of positions.
NULLS = ("homogeneous", "positions")


@dataclass(frozen=True)
class Exceedances:
    """W exceeding pairs among the blocks of n requests.

    ``first`` and ``second`` (W,) number the blocks of a pair across requests, the request of ``first`` being
    the lower one; ``blocks`` (n,) counts the candidate blocks of each request. Candidate pairs are those of
    different requests. Build it with ``from_scores`` or ``from_pairs``, which check their input.
    """

    first: IntArray
    second: IntArray
    blocks: IntArray

    @classmethod
    def from_scores(
        cls,
        scores: ArrayLike | Mapping[tuple[int, int], ArrayLike],
        threshold: float | None = None,
        *,
        blocks: Sequence[int] | None = None,
    ) -> Self:
        """From scores between blocks, or from booleans that already say which pairs exceed.

        ``scores`` is an array (n, p, n, p), of which the part between different requests a < b is read, or a
        mapping of (a, b), a < b, to matrices (p_a, p_b), which may differ in size; with the mapping every
        pair of requests must be there. ``threshold`` is needed for scores: a pair exceeds where its score is
        strictly greater.

        Raises InputError where shapes do not fit, a score is NaN, or the threshold is missing or NaN.
        """
        if threshold is not None and np.isnan(threshold):
            raise InputError("threshold", threshold, "must be a number")
        if isinstance(scores, Mapping):
            matrices = {key: np.asarray(matrix) for key, matrix in scores.items()}
        else:
            array = np.asarray(scores)
            if array.ndim != 4 or array.shape[:2] != array.shape[2:] or array.size == 0:
                raise InputError(
                    "scores", f"shape {array.shape}", "must be (requests, blocks, requests, blocks)"
                )
            n = array.shape[0]
            matrices = {(a, b): array[a, :, b, :] for a in range(n) for b in range(a + 1, n)}
            blocks = [array.shape[1]] * n if blocks is None else blocks
        sizes = _sizes(matrices, blocks)
        start = np.concatenate([[0], np.cumsum(sizes)])
        first, second = [], []
        for (a, b), matrix in sorted(matrices.items()):
            rows, columns = np.nonzero(_exceeding(matrix, threshold, a, b))
            first.append(rows + start[a])
            second.append(columns + start[b])
        return cls(np.concatenate(first).astype(np.int64), np.concatenate(second).astype(np.int64), sizes)

    @classmethod
    def from_pairs(
        cls,
        first_request: ArrayLike,
        first_block: ArrayLike,
        second_request: ArrayLike,
        second_block: ArrayLike,
        *,
        blocks: ArrayLike,
    ) -> Self:
        """From the request and block numbers of every exceeding pair (each (W,)), in either order.

        Raises InputError where lengths differ, a number is out of range, both blocks of a pair belong to one
        request, or a pair stands there twice.
        """
        sizes = _block_counts(blocks)
        columns = [
            np.asarray(column, dtype=np.int64).ravel()
            for column in (first_request, first_block, second_request, second_block)
        ]
        if len({column.size for column in columns}) != 1:
            lengths = [column.size for column in columns]
            raise InputError("first_request", f"lengths {lengths}", "must be four arrays of one length")
        a, i, b, j = columns
        for name, requests, positions in (("first", a, i), ("second", b, j)):
            if a.size and (requests.min() < 0 or requests.max() >= sizes.size):
                raise InputError(
                    f"{name}_request",
                    f"{requests.min()} to {requests.max()}",
                    f"must lie between 0 and {sizes.size - 1}",
                )
            wrong = (positions < 0) | (positions >= sizes[requests])
            if wrong.any():
                raise InputError(
                    f"{name}_block",
                    int(positions[wrong][0]),
                    f"request {int(requests[wrong][0])} has {int(sizes[requests[wrong][0]])} blocks",
                )
        if (a == b).any():
            raise InputError("second_request", int(b[a == b][0]), "must differ from the first of its pair")
        start = np.concatenate([[0], np.cumsum(sizes)])
        x, y = start[a] + i, start[b] + j
        low, high = np.minimum(x, y), np.maximum(x, y)
        if np.unique(low * start[-1] + high).size != low.size:
            raise InputError("first_request", f"{low.size} pairs", "must not hold the same pair twice")
        return cls(low, high, sizes)

    @property
    def count(self) -> int:
        """W."""
        return int(self.first.size)

    @property
    def requests(self) -> int:
        """n."""
        return int(self.blocks.size)

    @cached_property
    def block_count(self) -> int:
        """Candidate blocks of all requests together."""
        return int(self.blocks.sum())

    @cached_property
    def candidate_pairs(self) -> int:
        """Pairs of blocks of different requests."""
        return int((self.block_count**2 - np.sum(self.blocks**2)) // 2)

    @property
    def rate(self) -> float:
        """Share of the candidate pairs that exceed: the estimate of F̄(τ)."""
        return self.count / self.candidate_pairs

    @property
    def intensity(self) -> float:
        """Λ: exceedances that a block takes part in, on average over blocks."""
        return 2 * self.count / self.block_count

    @cached_property
    def request_of(self) -> IntArray:
        """Request of every block."""
        return np.repeat(np.arange(self.requests), self.blocks)

    @cached_property
    def position_of(self) -> IntArray:
        """Position of every block within its request."""
        start = np.cumsum(self.blocks) - self.blocks
        return np.arange(self.block_count) - start[self.request_of]

    @cached_property
    def per_block(self) -> IntArray:
        """Exceedances that each block takes part in (blocks,)."""
        return np.bincount(self.first, minlength=self.block_count) + np.bincount(
            self.second, minlength=self.block_count
        )

    @cached_property
    def between_requests(self) -> IntArray:
        """W_ab: exceedances between requests a and b, symmetric (n, n) with zeros on the diagonal."""
        a, b = self.request_of[self.first], self.request_of[self.second]
        n = self.requests
        upper = np.bincount(a * n + b, minlength=n * n).reshape(n, n)
        return upper + upper.T

    @property
    def void_share(self) -> float:
        """Share of blocks that take part in no exceedance."""
        return float(np.mean(self.per_block == 0))

    def thin(self, most: int, rng: np.random.Generator) -> Exceedances:
        """At most ``most`` of the exceedances, drawn at random: a thinned Poisson process is one."""
        if self.count <= most:
            return self
        keep = np.sort(rng.choice(self.count, most, replace=False))
        return Exceedances(self.first[keep], self.second[keep], self.blocks)

    @cached_property
    def _position_counts(self) -> tuple[FloatArray, FloatArray]:
        """Exceedances and candidate pairs by ordered positions (P, P); both sum to twice their total."""
        size = int(self.blocks.max())
        i, j = self.position_of[self.first], self.position_of[self.second]
        seen = np.bincount(i * size + j, minlength=size * size).reshape(size, size).astype(np.float64)
        reach = np.sum(self.blocks[:, None] > np.arange(size), axis=0).astype(np.float64)
        candidates = np.outer(reach, reach) - np.minimum(reach[:, None], reach[None, :])
        return seen + seen.T, candidates

    def position_rates(self) -> FloatArray:
        """P_ij (P, P): share of the candidate pairs at positions i, j that exceed; 0 where there is none."""
        seen, candidates = self._position_counts
        return np.divide(seen, candidates, out=np.zeros_like(seen), where=candidates > 0)

    def expected_per_block(self, null: str = "homogeneous") -> FloatArray:
        """E[D_x] (blocks,): exceedances of each block, were they spread as ``null`` says."""
        _known(null)
        if null == "homogeneous":
            return self.rate * (self.block_count - self.blocks[self.request_of]).astype(np.float64)
        rates = self.position_rates()
        reach = np.sum(self.blocks[:, None] > np.arange(rates.shape[0]), axis=0)
        own = np.cumsum(rates, axis=1)
        i = self.position_of
        return (rates @ reach)[i] - own[i, self.blocks[self.request_of] - 1]

    def expected_between_requests(self, null: str = "homogeneous") -> FloatArray:
        """E[W_ab] (n, n), zeros on the diagonal."""
        _known(null)
        expected: FloatArray
        if null == "homogeneous":
            expected = self.rate * np.outer(self.blocks, self.blocks).astype(np.float64)
        else:
            last = self.blocks - 1
            below = np.cumsum(np.cumsum(self.position_rates(), axis=0), axis=1)
            expected = np.asarray(below[np.ix_(last, last)], dtype=np.float64)
        np.fill_diagonal(expected, 0.0)
        return expected

    def commonness(self, null: str = "homogeneous") -> float:
        """Σ p_α²/Σ p_α: the mean probability of the pairs that exceed, 0 without any.

        Small for rare events; a Bernoulli count whose probabilities are not is no Poisson count (Le Cam).
        With k of a cell's m pairs exceeding, p² is taken as k(k − 1)/(m(m − 1)), so that one exceedance in a
        small cell does not make it common.
        Test: tests/ratedist/exceedances/test_pairs.py::test_commonness_is_unbiased.
        """
        _known(null)
        if self.count == 0:
            return 0.0
        if null == "homogeneous":
            return (self.count - 1) / (self.candidate_pairs - 1)
        seen, candidates = self._position_counts
        above = np.triu_indices(seen.shape[0])
        # Cells on the diagonal count every pair twice.
        halves = np.where(above[0] == above[1], 0.5, 1.0)
        k, m = halves * seen[above], halves * candidates[above]
        return float(np.sum(k * (k - 1) / np.maximum(m - 1, 1.0))) / self.count

    def sum_of_squared_rates(self, null: str = "homogeneous") -> float:
        """Σ p_α² over the candidate pairs."""
        _known(null)
        if null == "homogeneous":
            return self.rate**2 * self.candidate_pairs
        return 0.5 * float(np.sum(self.position_rates() ** 2 * self._position_counts[1]))


def _known(null: str) -> None:
    if null not in NULLS:
        raise InputError("null", null, f"must be one of {', '.join(NULLS)}")


def _block_counts(blocks: ArrayLike) -> IntArray:
    sizes = np.asarray(blocks)
    if sizes.ndim != 1 or sizes.size < 2 or sizes.dtype.kind not in "iu":
        raise InputError("blocks", blocks, "must be whole numbers of blocks of two or more requests")
    if sizes.min() < 1:
        raise InputError(
            "blocks", int(sizes.min()), "every request must have at least one block; drop the others"
        )
    return sizes.astype(np.int64)


def _sizes(matrices: Mapping[tuple[int, int], NDArray], blocks: Sequence[int] | None) -> IntArray:
    """Blocks of each request, from the matrices' shapes."""
    if not matrices:
        raise InputError("scores", f"{len(matrices)} matrices", "must hold scores of two or more requests")
    n = 1 + max(max(key) for key in matrices)
    if len(matrices) != n * (n - 1) // 2 or any(not 0 <= a < b for a, b in matrices):
        raise InputError(
            "scores",
            f"{len(matrices)} matrices for {n} requests",
            f"must hold one matrix for each of the {n * (n - 1) // 2} pairs (a, b), a < b",
        )
    found = np.zeros(n, dtype=np.int64) if blocks is None else _block_counts(np.asarray(blocks))
    for (a, b), matrix in sorted(matrices.items()):
        for request, size in zip((a, b), matrix.shape, strict=False):
            found[request] = found[request] or size
        if matrix.shape != (found[a], found[b]):
            raise InputError(
                f"scores[{a}, {b}]",
                f"shape {matrix.shape}",
                f"must be ({found[a]}, {found[b]}) like the others",
            )
    return _block_counts(found)


def _exceeding(matrix: NDArray, threshold: float | None, a: int, b: int) -> NDArray[np.bool_]:
    if matrix.dtype == np.bool_:
        return matrix
    if threshold is None:
        raise InputError("threshold", threshold, "is needed where scores are not boolean")
    if np.isnan(matrix).any():
        i, j = (int(x) for x in np.argwhere(np.isnan(matrix))[0])
        raise InputError(
            "scores", float("nan"), f"must be numbers; request {a} block {i}, request {b} block {j} is not"
        )
    return matrix > threshold
