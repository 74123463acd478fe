"""Streams of requests as a threshold sees them: best-match scores and the errors that follow, no vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError

__all__ = ["ScoreWorkload", "score_stream"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ScoreWorkload:
    """A mixture of byte-equal, edited and merely similar blocks.

    The best match of a block scores 1 (byte-equal), or within a class 1 − d with d log-normal: its median
    times exp(spread·normal), capped at 1, where half of the variance of the normal belongs to the request, so
    that the blocks of a request resemble each other. The error of keys and values averaged is d·(1 +
    ``value_factor``·X) with X log-normal of median 1 (what 2 − 2S of the keys gives, and values that follow
    less closely), capped at ``ceiling``.

    Attributes:
        exact: share of byte-equal blocks.
        edited: share of lightly edited ones.
        edited_distance: median of 1 − S of those.
        other_distance: median of 1 − S of the rest.
        spread: standard deviation of the logarithm of 1 − S.
        value_factor: how much worse values are than keys.
        ceiling: largest error.
    """

    exact: float = 0.2
    edited: float = 0.3
    edited_distance: float = 0.04
    other_distance: float = 0.25
    spread: float = 0.35
    value_factor: float = 2.0
    ceiling: float = 2.5

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (np.isfinite(value) and value >= 0):
                raise InputError(item.name, value, "must be finite and not negative")
        if self.exact + self.edited > 1:
            raise InputError("edited", self.edited, "and exact are shares and must not exceed 1 together")

    def request(self, blocks: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """(blocks,) best-match scores and (blocks,) errors of one request."""
        kind = rng.random(blocks)
        median = np.where(kind < self.exact + self.edited, self.edited_distance, self.other_distance)
        # Half of the variance is the request's own.
        normal = np.sqrt(0.5) * (rng.standard_normal() + rng.standard_normal(blocks))
        distance = np.minimum(median * np.exp(self.spread * normal), 1.0)
        worse = self.value_factor * np.exp(0.5 * rng.standard_normal(blocks))
        same = kind < self.exact
        error = np.minimum(distance * (1 + worse), self.ceiling)
        return np.where(same, 1.0, 1 - distance), np.where(same, 0.0, error)


def score_stream(
    phases: Sequence[tuple[ScoreWorkload, int]], blocks: int, *, ramp: int = 0, rng: np.random.Generator
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Requests of one workload after the other.

    Args:
        phases: workloads and how many requests of each.
        blocks: full blocks per request, at least 1.
        ramp: at the start of every phase but the first, over so many requests, each comes of the new workload
            with a chance that rises from 0 to 1: a gradual change.
        rng: source of randomness.

    Raises:
        InputError: no phase, or a number outside what is listed.
    """
    if not phases or blocks < 1 or ramp < 0 or any(count < 1 for _, count in phases):
        raise InputError(
            "phases",
            len(phases),
            "needs at least one, of at least one request of at least one block; ramp >= 0",
        )
    before = phases[0][0]
    for index, (workload, count) in enumerate(phases):
        for step in range(count):
            new = index == 0 or rng.random() * ramp <= step
            yield (workload if new else before).request(blocks, rng)
        before = workload
