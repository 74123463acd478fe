"""Monte Carlo of the point process of fusion: counts and scores, no vectors.

What is sampled. Every block meets every representative of the other side with an exceedance that is
independent of all others: of N representatives none exceeds with chance (1 − F̄(τ))^N exactly, and the best
match has distribution function (1 − F̄(s))^N. A representative that is absorbed joins one chosen at random.
The recursions of ``ratedist.fusion`` are the moments of this process, closed after the second.

With a hard core the state of a set of representatives is (N, v) with v its uncovered share, as defined
in docs/theory.md: a block stays with chance v, and every block that stays takes its part of v. That
process samples kept blocks only, and it shares the geometry's three numbers with the recursion: agreement
with it tests the moments, while agreement with real directions (``directions``) tests the hard core itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ratedist._arguments import as_thresholds, whole_number
from ratedist.errors import InputError
from ratedist.fusion._moments import MOST_SLOPE
from ratedist.fusion.hardcore import HardCore
from ratedist.fusion.units import as_units
from ratedist.montecarlo.sample import RunSample
from ratedist.montecarlo.scores import TailScores
from ratedist.similarity.base import SimilarityLaw

__all__ = ["simulate_centroid", "simulate_leader", "simulate_tree"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Blocks in flight at a time: the arrays of one batch of runs stay in the processor's cache.
_BATCH = 60_000
# A block that stays takes at most this many times its first-order part of the uncovered share.
_MOST_GROWTH = 8.0


def simulate_leader(
    law: SimilarityLaw,
    units: Sequence[int] | IntArray,
    threshold: float,
    *,
    runs: int,
    rng: np.random.Generator,
    scores: bool = True,
    hard_core: HardCore | None = None,
) -> RunSample:
    """Runs of the leader process.

    Args:
        law: law of the score of a random pair.
        units: full blocks of each unit, in order.
        threshold: τ within [-1, 1].
        runs: at least 2.
        rng: source of randomness.
        scores: draw the best match of absorbed blocks too; without, only kept blocks are counted, at a
            fraction of the time.
        hard_core: numbers of one threshold; needs ``scores=False``.

    Raises:
        InputError: an argument outside its domain.
    """
    lengths, tail, core = _arguments(law, units, threshold, runs, scores, hard_core)
    parts = [
        _leader_batch(tail, lengths, size, rng, scores, core)
        for size in _batches(runs, int(lengths.sum()) if scores else int(lengths.size))
    ]
    return _join(int(lengths.sum()), parts)


def simulate_tree(
    law: SimilarityLaw,
    units: Sequence[int] | IntArray,
    threshold: float,
    *,
    runs: int,
    rng: np.random.Generator,
    scores: bool = True,
    hard_core: HardCore | None = None,
) -> RunSample:
    """Runs of the tree process; arguments and errors as for ``simulate_leader``.

    With scores, members follow their representative: similarities multiply along the path.
    """
    lengths, tail, core = _arguments(law, units, threshold, runs, scores, hard_core)
    parts = []
    for size in _batches(runs, int(lengths.sum()) if scores else int(lengths.size)):
        if scores:
            parts.append(_tree_batch(tail, lengths, size, rng, centroid=False))
        else:
            parts.append(_tree_counts(tail, lengths, size, rng, core))
    return _join(int(lengths.sum()), parts)


def simulate_centroid(
    law: SimilarityLaw,
    units: Sequence[int] | IntArray,
    threshold: float,
    *,
    runs: int,
    rng: np.random.Generator,
) -> RunSample:
    """Runs of the tree process in which a group is represented by the normalised mean of its members.

    A group carries its size and the length of the sum of its members' directions. Two centroids that are
    absorbed by the same third are taken as independent given the match. ``final_error2`` is Σ e² over all
    blocks, the left ones of a group included, since none is stored as it was; there is no direct error.
    """
    lengths, tail, _ = _arguments(law, units, threshold, runs, True, None)
    parts = [
        _tree_batch(tail, lengths, size, rng, centroid=True) for size in _batches(runs, int(lengths.sum()))
    ]
    return _join(int(lengths.sum()), parts)


_Part = tuple[FloatArray, FloatArray | None, FloatArray | None, int]


def _arguments(
    law: SimilarityLaw,
    units: Sequence[int] | IntArray,
    threshold: float,
    runs: int,
    scores: bool,
    hard_core: HardCore | None,
) -> tuple[IntArray, TailScores, HardCore | None]:
    whole_number("runs", runs, low=2)
    tau = float(as_thresholds("threshold", threshold)[0])
    if hard_core is not None:
        if hard_core.transitivity.size != 1:
            raise InputError(
                "hard_core", f"{hard_core.transitivity.size} thresholds", "must be made for one threshold"
            )
        if scores:
            raise InputError("scores", True, "has no process with a hard core; pass scores=False")
    return as_units("units", units), TailScores(law, tau), hard_core


def _batches(runs: int, blocks: int) -> list[int]:
    size = max(1, min(runs, _BATCH // max(blocks, 1)))
    return [min(size, runs - start) for start in range(0, runs, size)]


def _join(blocks: int, parts: list[_Part]) -> RunSample:
    def joined(columns: list[FloatArray | None]) -> FloatArray | None:
        found = [column for column in columns if column is not None]
        return np.concatenate(found) if found else None

    return RunSample(
        blocks,
        np.concatenate([part[0] for part in parts]),
        joined([part[1] for part in parts]),
        joined([part[2] for part in parts]),
        sum(part[3] for part in parts),
    )


def _leader_batch(
    tail: TailScores,
    lengths: IntArray,
    runs: int,
    rng: np.random.Generator,
    scores: bool,
    core: HardCore | None,
) -> _Part:
    kept = np.zeros(runs)
    logarithm = np.zeros(runs)  # −ln v
    error2 = np.zeros(runs)
    merges = 0
    for blocks in lengths.tolist():
        merges += blocks * runs
        if not scores:
            stays = rng.binomial(blocks, np.exp(-logarithm))
            kept += stays
            logarithm += stays * _slope(tail, core, logarithm)
            continue
        drawn = -rng.standard_exponential((runs, blocks))
        run, column = np.nonzero(drawn >= -logarithm[:, None])
        if run.size:
            similarity = tail.best_of(drawn[run, column], kept[run])
            error2 += np.bincount(run, 2 - 2 * similarity, minlength=runs)
        kept += blocks - np.bincount(run, minlength=runs)
        logarithm = kept * tail.exponent
    return kept, error2 if scores else None, error2 if scores else None, merges


def _slope(tail: TailScores, core: HardCore | None, logarithm: FloatArray) -> float | FloatArray:
    """Growth of −ln v with every block that stays: −ln(1 − F̄)·w, w = v^(κ·(−ln v) − C)."""
    if core is None:
        return tail.exponent
    closeness = np.maximum(core.transitivity[0] - core.crowding[0] * logarithm, 0.0)
    return np.minimum(tail.exponent * np.exp(closeness * logarithm), max(tail.exponent, MOST_SLOPE))


def _tree_counts(
    tail: TailScores, lengths: IntArray, runs: int, rng: np.random.Generator, core: HardCore | None
) -> _Part:
    kept = np.tile(lengths, (runs, 1))
    logarithm: FloatArray = kept * np.float64(tail.exponent)
    merges = 0
    while kept.shape[1] > 1:
        pairs = kept.shape[1] // 2 * 2
        left, right = kept[:, 0:pairs:2], kept[:, 1:pairs:2]
        before, after = logarithm[:, 0:pairs:2], logarithm[:, 1:pairs:2]
        merges += int(right.sum())
        stays = rng.binomial(right, np.exp(-before))
        slope = tail.exponent if core is None else _tree_slope(tail, core, before, right, after)
        kept = np.concatenate([left + stays, kept[:, pairs:]], axis=1)
        logarithm = np.concatenate([before + stays * slope, logarithm[:, pairs:]], axis=1)
    return kept[:, 0].astype(np.float64), None, None, merges


def _tree_slope(
    tail: TailScores, core: HardCore, before: FloatArray, arriving: IntArray, after: FloatArray
) -> FloatArray:
    """Growth of −ln v with every block of the right side that stays.

    Shared out so that its mean over them is the chance that an uncovered cap holds no survivor.
    """
    inside = arriving * tail.chance
    binomial = _success(after / inside)
    void = np.exp(-before)
    closeness = np.maximum(core.transitivity[0] - core.crowding[0] * before, 0.0)
    weight = np.exp(np.minimum(closeness * before, np.log(max(MOST_SLOPE / tail.exponent, 1.0))))
    survives = np.minimum(void * weight, 1.0)
    inverse = 1 - (1 - binomial / inside) * np.exp(core.common[0] * before)
    inverse = np.where(np.abs(inverse) < 1e-12, 1e-12, inverse)
    none_in_cap = np.log1p(-inside * survives * inverse) / inverse
    ratio = -np.expm1(none_in_cap / arriving) / (void * tail.chance * weight)
    return tail.exponent * weight * np.minimum(ratio, _MOST_GROWTH)


def _success(ratio: FloatArray) -> FloatArray:
    """π with −ln(1 − π)/π = ratio, by bisection in −ln(1 − π)."""
    low, high = np.full(ratio.shape, -5.0), np.maximum(ratio, 1.0) + 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        middle = np.where(middle == 0, 1e-12, middle)
        above = middle / -np.expm1(-middle) > ratio
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return -np.expm1(-0.5 * (low + high))


def _tree_batch(
    tail: TailScores, lengths: IntArray, runs: int, rng: np.random.Generator, *, centroid: bool
) -> _Part:
    """Representatives in one flat array, ordered by run, node and age, with what hangs on each."""
    nodes = lengths.size
    count = np.tile(lengths, runs)
    total = int(count.sum())
    # Σ c over the members of a representative (itself 1), or the length of the sum of their directions.
    reach = np.ones(total)
    direct = np.zeros(runs)
    merges = 0
    while nodes > 1:
        if nodes % 2:
            count = np.concatenate(
                [count.reshape(runs, nodes), np.zeros((runs, 1), dtype=np.int64)], axis=1
            ).ravel()
            nodes += 1
        left, right = count[::2], count[1::2]
        start = np.cumsum(count) - count
        arriving = int(right.sum())
        merges += arriving
        group = np.repeat(np.arange(right.size), right)
        index = np.arange(arriving) + (start[1::2] - (np.cumsum(right) - right))[group]
        drawn = -rng.standard_exponential(arriving)
        hit = drawn >= -tail.exponent * left[group]
        index, group = index[hit], group[hit]
        met = left[group]
        similarity = tail.best_of(drawn[hit], met)
        target = start[::2][group] + (rng.random(group.size) * met).astype(np.int64)
        if centroid:
            _add_directions(reach, target, reach[index], similarity)
        else:
            reach += np.bincount(target, reach[index] * similarity, minlength=reach.size)
            run = group // (nodes // 2)
            direct += np.bincount(run, 2 - 2 * similarity, minlength=runs)
        stays = np.ones(reach.size, dtype=bool)
        stays[index] = False
        reach = reach[stays]
        count = left + right - np.bincount(group, minlength=left.size)
        nodes //= 2
    owner = np.repeat(np.arange(runs), count)
    close = np.bincount(owner, reach, minlength=runs)
    final = np.asarray(2 * (lengths.sum() - close), dtype=np.float64)
    return count.astype(np.float64), None if centroid else direct, final, merges


def _add_directions(reach: FloatArray, target: IntArray, added: FloatArray, similarity: FloatArray) -> None:
    """Lengths of sums: |a + Σ b_k|² with ⟨a, b_k⟩ = |a||b_k|s_k and ⟨b_k, b_l⟩ = |b_k||b_l|s_k s_l."""
    along = np.bincount(target, added * similarity, minlength=reach.size)
    across = np.bincount(target, added**2 * (1 - similarity**2), minlength=reach.size)
    np.sqrt((reach + along) ** 2 + across, out=reach)
