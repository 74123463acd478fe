"""What a predictor is calibrated on: the similarities of the blocks of a few requests of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError

__all__ = ["CRITERIA", "SCALES", "PairSample"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

CRITERIA = ("keys", "both")
"""Scores that blocks are matched by: S_K alone, or min(S_K, S_V)."""

SCALES = ("own-norm", "projection", "raw")
"""Rules for reading a shared direction back (docs/theory.md, "Scale rules and the error of one block")."""


@dataclass(frozen=True)
class PairSample:
    """Similarities of all blocks of the calibration requests of one layer, keys and values jointly.

    N is the number of full blocks of the calibration requests. Whole matrices are kept rather than a
    list of pairs, because predictors that follow requests one by one need to know who met whom.

    Attributes:
        s_k: (N, N) cosine similarity of keys, in [-1, 1]; 0 with a block of norm zero.
        s_v: (N, N) the same of values.
        request: (N,) calibration request of each block.
        position: (N,) index of the block within its request, from 0.
        k_norm: (N,) norm of the keys of each block.
        v_norm: (N,) the same of values.
        duplicate: (N,) blocks with the same number here are byte-equal, keys and values.
        domain: (N,) blocks of different domains never share.
    """

    s_k: FloatArray
    s_v: FloatArray
    request: IntArray
    position: IntArray
    k_norm: FloatArray
    v_norm: FloatArray
    duplicate: IntArray
    domain: IntArray

    def __post_init__(self) -> None:
        size = len(self.request)
        for name in ("s_k", "s_v"):
            matrix: FloatArray = getattr(self, name)
            if matrix.shape != (size, size):
                raise InputError(name, matrix.shape, f"must have shape ({size}, {size}), one row per block")
            if not np.isfinite(matrix).all():
                row, column = np.argwhere(~np.isfinite(matrix))[0]
                raise InputError(f"{name}[{row}, {column}]", float(matrix[row, column]), "must be finite")
        for name in ("position", "k_norm", "v_norm", "duplicate", "domain"):
            array = getattr(self, name)
            if array.shape != (size,):
                raise InputError(name, array.shape, f"must have shape ({size},), one entry per block")
        for name in ("k_norm", "v_norm"):
            norm: FloatArray = getattr(self, name)
            if not (np.isfinite(norm).all() and (norm >= 0).all()):
                raise InputError(name, "a value", "every norm must be finite and not negative")
        if size and self.position.min() < 0:
            raise InputError("position", int(self.position.min()), "must not be negative")
        if not self.comparable.any():
            raise InputError(
                "requests",
                len(np.unique(self.request)),
                "calibration needs two requests of one domain, each with a full block",
            )

    @classmethod
    def from_vectors(
        cls,
        k: ArrayLike,
        v: ArrayLike,
        request: ArrayLike,
        position: ArrayLike,
        domain: ArrayLike | None = None,
    ) -> PairSample:
        """Sample from the blocks themselves: ``k`` and ``v`` of shape (N, r), in any float type."""
        keys, values = np.asarray(k, np.float64), np.asarray(v, np.float64)
        joined = np.ascontiguousarray(np.concatenate([keys, values], axis=1))
        _, duplicate = np.unique(joined, axis=0, return_inverse=True)
        k_norm, v_norm = np.linalg.norm(keys, axis=1), np.linalg.norm(values, axis=1)
        owner = np.asarray(request, np.int64)
        return cls(
            s_k=_cosines(keys, k_norm),
            s_v=_cosines(values, v_norm),
            request=owner,
            position=np.asarray(position, np.int64),
            k_norm=k_norm,
            v_norm=v_norm,
            duplicate=np.asarray(duplicate, np.int64).reshape(-1),
            domain=np.zeros_like(owner) if domain is None else np.asarray(domain, np.int64),
        )

    def of_requests(self, requests: ArrayLike) -> PairSample:
        """The part of the sample that stands in these requests; raises InputError as a sample of its own."""
        kept = np.flatnonzero(np.isin(self.request, np.asarray(requests)))
        block = np.ix_(kept, kept)
        return PairSample(
            s_k=self.s_k[block],
            s_v=self.s_v[block],
            request=self.request[kept],
            position=self.position[kept],
            k_norm=self.k_norm[kept],
            v_norm=self.v_norm[kept],
            duplicate=self.duplicate[kept],
            domain=self.domain[kept],
        )

    @property
    def pairs(self) -> int:
        """Pairs of blocks that may share: what a calibration looks at, each pair once."""
        return int(self.comparable.sum()) // 2

    @property
    def bytes(self) -> int:
        """Memory that the sample holds."""
        arrays = (self.s_k, self.s_v, self.request, self.position, self.k_norm, self.v_norm)
        return sum(array.nbytes for array in (*arrays, self.duplicate, self.domain))

    @cached_property
    def comparable(self) -> BoolArray:
        """(N, N): pairs that may share: blocks of different requests of one domain."""
        return (self.request[:, None] != self.request) & (self.domain[:, None] == self.domain)

    @cached_property
    def exact(self) -> BoolArray:
        """(N, N): byte-equal pairs; they share at every threshold."""
        return self.duplicate[:, None] == self.duplicate

    @property
    def requests(self) -> int:
        """Number of calibration requests with at least one full block."""
        return len(np.unique(self.request))

    def scores(self, criterion: str) -> FloatArray:
        """(N, N) score by which pairs are matched, at most 1; exactly 1 for byte-equal pairs.

        Raises InputError for an unknown criterion.
        """
        check_choice("criterion", criterion, CRITERIA)
        score = self.s_k if criterion == "keys" else np.minimum(self.s_k, self.s_v)
        return np.where(self.exact, 1.0, np.minimum(score, 1.0))

    def squared_errors(self, scale: str) -> tuple[FloatArray, FloatArray]:
        """(N, N) each: squared relative error of keys and of values of block ``row``, read as ``column``.

        The rules are those of docs/theory.md, "Scale rules and the error of one block": with similarity s and
        norm ratio rho = n_column / n_row, own norm 2 - 2s, projection 1 - s², raw 1 + rho² - 2·rho·s; 0 for
        byte-equal pairs. A block of norm zero has no relative error: it counts 0 where the rule gives
        it back exactly (own norm, projection) and 1 where it does not (raw).

        Test: tests/ratedist/predictors/test_sample.py::test_squared_errors_are_those_of_the_vectors.
        """
        check_choice("scale", scale, SCALES)
        keys = _squared_error(self.s_k, self.k_norm, scale)
        values = _squared_error(self.s_v, self.v_norm, scale)
        keys[self.exact] = 0.0
        values[self.exact] = 0.0
        return keys, values


def check_choice(argument: str, value: str, known: tuple[str, ...]) -> None:
    """Raise InputError, listing what is known, where ``value`` is not among it."""
    if value not in known:
        raise InputError(argument, value, f"unknown; choose one of {', '.join(known)}")


def _cosines(vectors: FloatArray, norm: FloatArray) -> FloatArray:
    directions = np.divide(vectors, norm[:, None], out=np.zeros_like(vectors), where=norm[:, None] > 0)
    return np.clip(directions @ directions.T, -1.0, 1.0)


def _squared_error(similarity: FloatArray, norm: FloatArray, scale: str) -> FloatArray:
    known = norm > 0
    if scale == "own-norm":
        error = 2.0 - 2.0 * similarity
        error[~known] = 0.0
    elif scale == "projection":
        error = 1.0 - similarity**2
        error[~known] = 0.0
    else:
        ratio = norm / np.where(known, norm, 1.0)[:, None]
        error = 1.0 + ratio**2 - 2.0 * ratio * similarity
        error[~known] = 1.0
    return np.maximum(error, 0.0)
