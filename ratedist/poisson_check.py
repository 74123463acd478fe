"""Is it Poisson? A verdict on the exceedances of one threshold, in words, with its numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.exceedances.chen_stein import ChenStein, chen_stein
from ratedist.exceedances.clusters import Clusters, clusters
from ratedist.exceedances.counts import CountFit, fit_counts
from ratedist.exceedances.dispersion import Dispersion, dispersion
from ratedist.exceedances.pairs import NULLS, Exceedances
from ratedist.exceedances.scatter import scatter

__all__ = ["NEEDED", "NEEDED_REQUESTS", "Clumping", "PoissonCheck", "poisson_check"]

FloatArray = NDArray[np.float64]

# Fewest exceedances and requests that a verdict "Poisson" rests on; what they can show is tested in
# tests/ratedist/test_poisson_check.py::test_power_at_the_smallest_count.
NEEDED = 6
NEEDED_REQUESTS = 5

# Companions per exceedance beyond chance, and share of covered blocks, from which a deviation matters: each
# moves Var W/E W, or the blocks that fuse, by a tenth.
_MATERIAL = 0.1
# Above this mean probability the pairs are not rare, and a Bernoulli count is no Poisson count.
_COMMON = 0.1
# The exact test compares at most this many exceedances (thinned at random) with scattered ones.
_MOST = 4_000


@dataclass(frozen=True)
class Clumping:
    """Pairs of exceedances of one kind, beside what chance gives.

    ``kind``: "block" (they share a block), "requests" (they join the same two requests), "request" (they
    share at least one request) or "triangle" (two share a block and a third exceedance joins their other
    blocks; counted in triangles). ``excess`` is the number of companions of that kind that an exceedance has
    beyond chance. ``p_value`` is two-sided ("triangle": upper); ``p_with_companion`` is what it would be if
    every exceedance had one companion more than chance gives: small where the test can see clumps.
    """

    kind: str
    observed: float
    expected: float
    excess: float
    p_value: float
    p_with_companion: float

    @property
    def ratio(self) -> float:
        """Observed over expected; NaN where nothing is expected."""
        return self.observed / self.expected if self.expected > 0 else math.nan


@dataclass(frozen=True)
class PoissonCheck:
    """Verdict ("Poisson", "not Poisson" or "undecided"), the reasons for it, and every number behind it.

    ``intensity`` is Λ per block; ``void_share`` the share of blocks without an exceedance, ``void_expected``
    the mean of exp(−Λ) over blocks, ``void_error`` the standard deviation of the share among scattered pairs.
    ``extremal_index_by_chance`` is that of scattered pairs. Statistics that need more data than there are
    stand at None.
    """

    verdict: str
    reasons: tuple[str, ...]
    null: str
    requests: int
    blocks: int
    count: int
    candidate_pairs: int
    rate: float
    intensity: float
    clumping: tuple[Clumping, ...]
    by_block: ChenStein
    by_request: ChenStein
    dispersion: Dispersion | None
    clusters: Clusters
    extremal_index_by_chance: float
    void_share: float
    void_expected: float
    void_error: float
    block_counts: CountFit | None
    request_counts: CountFit | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: arrays as lists, NaN and infinity as None."""
        data = _plain(dataclasses.asdict(self))
        data["by_block"]["ratio"] = _plain(self.by_block.ratio)
        data["by_request"]["ratio"] = _plain(self.by_request.ratio)
        data["clusters"]["extremal_index"] = _plain(self.clusters.extremal_index)
        data["clusters"]["compound_dispersion"] = _plain(self.clusters.compound_dispersion)
        return data

    def __str__(self) -> str:
        return f"{self.verdict}: " + "; ".join(self.reasons)


def poisson_check(
    exceedances: Exceedances | ArrayLike | Mapping[tuple[int, int], ArrayLike],
    threshold: float | None = None,
    *,
    null: str = "homogeneous",
    level: float = 0.01,
    draws: int = 999,
    rng: np.random.Generator | int = 0,
) -> PoissonCheck:
    """Judge whether the exceedances of a threshold are a Poisson process over the pairs of blocks.

    ``exceedances`` are such, or scores or booleans as ``Exceedances.from_scores`` takes them. ``null`` says
    what they are compared with: every candidate pair equally likely ("homogeneous", the paper's model), or
    each pair of positions with a rate of its own ("positions").

    The rule, in this order:

    1. fewer than 2 exceedances: **undecided**;
    2. the mean probability of exceeding pairs, Σp²/Σp, is above 0.1: **not Poisson**, the pairs are not rare;
    3. exact test. Given W, the pairs of a Poisson process are scattered independently. Pairs of exceedances
    that
       share a block, two requests, or one request are counted and compared with ``draws`` scatterings,
       triangles with their Poisson mean; Bonferroni over the four kinds. **Not Poisson** where the corrected
       p-value of a kind is at most ``level`` and its excess is at least 0.1 companions per exceedance in
       size;
    4. fewer than 6 exceedances or 5 requests, or so many pairs by chance that one companion for every
       exceedance, on a shared block or between the same two requests, would pass the test: **undecided**;
    5. else **Poisson**. The reasons give the Chen-Stein bound where it is below 0.1, and say so where it is
       not.

    Error rates, by simulation: on scattered pairs "not Poisson" comes up with probability at most ``level``;
    on exceedances that come in twos, six or more among 64 requests, "Poisson" comes up in less than 5 %.
    Tests: tests/ratedist/test_poisson_check.py::test_false_alarms, ::test_power_at_the_smallest_count,
    ::test_uniform_directions_are_poisson, ::test_shared_prefix_is_not_poisson.

    What one capture cannot tell: it holds one W, so that variances come from pairs of requests taken as
    independent draws of the traffic; what all its requests share is constant over them, and shows as blocks
    that exceed with everyone, not in Var W.

    Raises InputError where the scores do not fit (see ``Exceedances.from_scores``), ``null`` is unknown,
    ``level`` is not in (0, 1), or ``draws`` are too few to reach it.
    """
    if not isinstance(exceedances, Exceedances):
        exceedances = Exceedances.from_scores(exceedances, threshold)
    elif threshold is not None:
        raise InputError("threshold", threshold, "the exceedances are given already; leave it out")
    if null not in NULLS:
        raise InputError("null", null, f"must be one of {', '.join(NULLS)}")
    if not 0 < level < 1:
        raise InputError("level", level, "must lie in (0, 1)")
    kinds = 4
    if 2 * kinds / (draws + 1) > level:
        needed = math.ceil(2 * kinds / level) - 1
        raise InputError("draws", draws, f"at least {needed} are needed for p-values of {level}")
    rng = np.random.default_rng(rng)

    expected_per_block = exceedances.expected_per_block(null)
    clumping = _clumping(exceedances, null, draws, rng) if exceedances.count >= 2 else ()
    voids, indices = [], []
    for scattered in scatter(exceedances, 40 if exceedances.count <= 50_000 else 5, rng, null):
        voids.append(scattered.void_share)
        indices.append(clusters(scattered).extremal_index)
    enough_requests = exceedances.requests >= NEEDED_REQUESTS
    pairs = exceedances.between_requests[np.triu_indices(exceedances.requests, 1)]
    parts: dict[str, Any] = {
        "null": null,
        "requests": exceedances.requests,
        "blocks": exceedances.block_count,
        "count": exceedances.count,
        "candidate_pairs": exceedances.candidate_pairs,
        "rate": exceedances.rate,
        "intensity": exceedances.intensity,
        "clumping": clumping,
        "by_block": chen_stein(exceedances, "block", null),
        "by_request": chen_stein(exceedances, "request", null),
        "dispersion": dispersion(exceedances) if enough_requests else None,
        "clusters": clusters(exceedances),
        "extremal_index_by_chance": float(np.mean(indices)),
        "void_share": exceedances.void_share,
        "void_expected": float(np.mean(np.exp(-expected_per_block))),
        "void_error": float(np.std(voids)),
        "block_counts": _counts(exceedances.per_block),
        "request_counts": _counts(pairs),
    }
    check = PoissonCheck("undecided", (), **parts)
    verdict, reasons = _judge(check, exceedances.commonness(null), level, kinds)
    return dataclasses.replace(check, verdict=verdict, reasons=tuple(reasons))


def _judge(check: PoissonCheck, commonness: float, level: float, kinds: int) -> tuple[str, list[str]]:
    reasons = [
        f"{check.count:,} exceedances of {check.candidate_pairs:,} pairs, {check.intensity:.3g} per block"
    ]
    if check.count < 2:
        return "undecided", [*reasons, "lower the threshold or give more requests"]
    if commonness > _COMMON:
        rare = f"the pairs that exceed do so with mean probability {commonness:.2g}: they are not rare"
        return "not Poisson", [*reasons, rare]
    found = []
    for kind in check.clumping:
        corrected = min(1.0, kinds * kind.p_value)
        if corrected <= level and abs(kind.excess) >= _MATERIAL:
            found.append(
                f"{_WORDS[kind.kind]} {kind.observed:,.0f} times where chance gives {kind.expected:,.3g} "
                f"({kind.excess:+.2g} companions per exceedance, p {corrected:.1g})"
            )
    index = (
        f"extremal index {check.clusters.extremal_index:.3g} where chance gives "
        f"{check.extremal_index_by_chance:.3g}"
    )
    void = (
        f"void share {check.void_share:.4g} where exp(-Λ) gives {check.void_expected:.4g} "
        f"(chance ± {check.void_error:.1g})"
    )
    if found:
        return "not Poisson", [*reasons, *found, index, void]
    if check.count < NEEDED:
        few = f"at least {NEEDED} exceedances are needed to see clumps; lower the threshold or add requests"
        return "undecided", [*reasons, few]
    if check.requests < NEEDED_REQUESTS:
        few = f"{check.requests} requests; at least {NEEDED_REQUESTS} are needed to see clumps between them"
        return "undecided", [*reasons, few]
    hidden = [
        k.kind for k in check.clumping if k.kind in ("block", "requests") and not _sees(k, level, kinds)
    ]
    if hidden:
        blind = (
            f"a companion for every exceedance would not show among {check.requests} requests "
            f"(kind {' and '.join(hidden)}); lower the threshold or add requests"
        )
        return "undecided", [*reasons, blind]
    if check.by_request.bound < 0.1:
        bound = f"total variation distance at most {check.by_request.bound:.2g} (Chen-Stein, requests)"
    elif check.by_block.bound < 0.1:
        bound = (
            f"total variation distance at most {check.by_block.bound:.2g} (Chen-Stein, taking the blocks of "
            "a request as independent)"
        )
    else:
        bound = "the Chen-Stein bound says nothing at this intensity"
    return "Poisson", [*reasons, "no clumps beyond chance that matter", bound, index, void]


def _sees(kind: Clumping, level: float, kinds: int) -> bool:
    return kinds * kind.p_with_companion <= level


_WORDS = {
    "block": "exceedances share a block",
    "requests": "exceedances join the same two requests",
    "request": "exceedances share a request",
    "triangle": "exceedances close a triangle",
}


def _clumping(
    exceedances: Exceedances, null: str, draws: int, rng: np.random.Generator
) -> tuple[Clumping, ...]:
    thinned = exceedances.thin(_MOST, rng)
    seen = _shared(thinned)
    chance = np.array([_shared(scattered) for scattered in scatter(thinned, draws, rng, null)])
    expected = chance.mean(axis=0)
    above = (1 + np.sum(chance >= seen, axis=0)) / (draws + 1)
    below = (1 + np.sum(chance <= seen, axis=0)) / (draws + 1)
    p_values = np.minimum(1.0, 2 * np.minimum(above, below))
    # One companion for every exceedance is half a pair of exceedances each.
    paired = np.floor(expected) + thinned.count // 2
    with_companion = np.minimum(1.0, 2 * (1 + np.sum(chance >= paired, axis=0)) / (draws + 1))
    # Thinning to a share u keeps u² of the pairs of exceedances.
    whole = (exceedances.count / thinned.count) ** 2
    found = [
        Clumping(
            kind,
            float(seen[k] * whole),
            float(expected[k] * whole),
            float(2 * (seen[k] - expected[k]) * whole / exceedances.count),
            float(p_values[k]),
            float(with_companion[k]),
        )
        for k, kind in enumerate(("block", "requests", "request"))
    ]
    triangles, by_chance = _triangles(exceedances, null)
    p_value = float(scipy.special.pdtrc(triangles - 1, by_chance)) if triangles > 0 else 1.0
    excess = 3 * (triangles - by_chance) / exceedances.count
    a_third = float(scipy.special.pdtrc(max(by_chance + exceedances.count / 3 - 1, 0.0), by_chance))
    return (*found, Clumping("triangle", float(triangles), by_chance, excess, p_value, a_third))


def _shared(exceedances: Exceedances) -> FloatArray:
    """Pairs of exceedances that share a block, join the same two requests, share a request (two: twice)."""
    blocks = exceedances.per_block
    pairs = exceedances.between_requests
    rows = pairs.sum(axis=1)
    return np.array(
        [
            np.sum(blocks * (blocks - 1)) / 2,
            np.sum(pairs * (pairs - 1)) / 4,
            np.sum(rows * (rows - 1)) / 2,
        ]
    )


def _triangles(exceedances: Exceedances, null: str) -> tuple[int, float]:
    """Triangles of exceedances, and how many the wedges that could close would give by chance.

    A wedge is a block with two exceedances; its ends, if of different requests, exceed with their own
    probability. Each triangle closes three wedges.
    """
    size = exceedances.block_count
    ones = np.ones(exceedances.count, dtype=np.int64)
    half = scipy.sparse.csr_array((ones, (exceedances.first, exceedances.second)), shape=(size, size))
    graph = half + half.T
    triangles = int((half @ half).multiply(half).sum())
    if null == "homogeneous":
        own = scipy.sparse.csr_array(
            (np.ones(size, dtype=np.int64), (np.arange(size), exceedances.request_of)),
            shape=(size, exceedances.requests),
        )
        to_request = graph @ own
        degrees = exceedances.per_block
        wedges = np.sum(degrees * degrees) - to_request.multiply(to_request).sum()
        return triangles, float(wedges) * exceedances.rate / 6
    ends = (graph @ graph).tocoo()
    allowed = exceedances.request_of[ends.coords[0]] != exceedances.request_of[ends.coords[1]]
    rates = exceedances.position_rates()
    i, j = (exceedances.position_of[axis[allowed]] for axis in ends.coords)
    return triangles, float(np.sum(ends.data[allowed] * rates[i, j])) / 6


def _counts(counts: NDArray[np.int64]) -> CountFit | None:
    return fit_counts(counts) if counts.size >= 10 and counts.max() > 0 else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
