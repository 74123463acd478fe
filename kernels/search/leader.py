"""Leader fusion where all pairs are too many: hashing nominates pairs, and each of them is checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.assemble import assemble, distinct_scales
from ratedist.kernels.fusion.candidates import check_scales, find_candidates, usable_norms
from ratedist.kernels.fusion.exact import first_equal
from ratedist.kernels.fusion.fuse import check_options, matcher_of
from ratedist.kernels.fusion.result import Fusion
from ratedist.kernels.fusion.scoring import Part, Pools
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.search.buckets import sort_buckets
from ratedist.kernels.search.hashing import Hashing, choose_hashing
from ratedist.kernels.search.signatures import hash_keys, mean_direction
from ratedist.kernels.triton_support import choose_backend

__all__ = ["HashedFusion", "Hashing", "choose_hashing", "fuse_hashed"]

_CRITERIA = ("keys", "both")
_LEAST_BUDGET = 10_000_000
_BUDGET_PER_BLOCK = 100

_FETCHED = 8 << 20
"""Float32 bytes of the blocks that are fetched at a time on either side of a comparison."""

_PARALLEL_ROUNDS = 64


@dataclass(frozen=True)
class HashedFusion(Fusion):
    """What ``fuse_hashed`` returns: a fusion, and what was searched for it.

    Attributes:
        hashing: the tables and bits that were used.
        compared: pairs that shared a key, counted once per table in which they did.
        matches: distinct pairs among them whose score exceeds the threshold.
    """

    hashing: Hashing
    compared: int
    matches: int


def fuse_hashed(
    layer: PagedLayer | FusedLayer,
    *,
    threshold: float,
    hashing: Hashing | None = None,
    criterion: str = "keys",
    scale: str = "own-norm",
    backend: str = "auto",
    budget: int | None = None,
    layer_name: str | int | None = None,
) -> HashedFusion:
    """Leader fusion as ``ratedist.kernels.fusion.fuse.fuse`` has it, over the pairs that hashing finds.

    Exact duplicates are found always. Every other pair that shares a key in some table is checked: its
    score, of the blocks as they are and not of their signatures, must exceed the threshold. So nothing is
    absorbed that all-pairs fusion could not absorb; what hashing misses stays, or goes to a match that is
    not the best. ``Hashing.recall`` gives the chance to find a pair, and the process of matches thinned by
    it (``ratedist.process.HashRecall``) tells what fusion becomes.

    Domains are searched one after another, each centred on its own mean. A block of norm zero has no
    direction and is not searched for. Keys are hashed under either criterion: both cannot exceed the
    threshold where the keys do not.

    Beside the layer it takes some 600 bytes per block, up to 100 MB for the pairs that are compared at a
    time, and 12 bytes per match in a few copies.

    Args:
        layer: paged keys and values. Every token within a request's length must be finite.
        threshold: blocks fuse where their score exceeds this; within [-1, 1]. Hashing serves high ones.
        hashing: tables and bits; by default ``choose_hashing(0.9, threshold, …)`` for the blocks of the
            layer, which assumes that unrelated blocks share no direction beyond what centring removes.
        criterion: "keys" or "both".
        scale: what a member's reading is multiplied with, see ``ratedist.kernels.fusion.scales``.
        backend: as in ``fuse``; norms use it, the search itself is plain torch on the layer's device.
        budget: pairs to compare at most; by default 10 million, or 100 per block where that is more.
        layer_name: the layer's name or index, for messages.

    Raises:
        InputError: an argument outside what is listed, a layer that ``fuse`` refuses, or more candidate
            pairs than the budget. They are counted table by table before they are compared, and what the
            first tables hold is carried on to all, so that an explosion is told at once.
    """
    if not isinstance(layer, PagedLayer | FusedLayer):
        raise InputError("layer", type(layer).__name__, "must be a PagedLayer or a FusedLayer")
    if criterion not in _CRITERIA:
        raise InputError(
            "criterion",
            criterion,
            f"must be one of {', '.join(_CRITERIA)}: others may exceed the threshold where the keys, which "
            "are hashed, do not; use fuse",
        )
    threshold = check_options(threshold, "leader", criterion, scale)
    if hashing is not None and not isinstance(hashing, Hashing):
        raise InputError("hashing", hashing, "must be a Hashing, or None to have one chosen")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
        raise InputError("budget", budget, "must be a whole number of pairs, at least 1")
    backend = choose_backend(backend, layer.k.device, ("auto", "cpu", "triton"))
    check_scales(layer, layer_name)
    blocks = find_candidates(layer)
    if hashing is None:
        hashing = _default_hashing(threshold, len(blocks), layer)
    if budget is None:
        budget = max(_LEAST_BUDGET, _BUDGET_PER_BLOCK * len(blocks))
    k_norm, v_norm = usable_norms(matcher_of(backend), layer, blocks, layer_name)
    first = first_equal([(layer.k, layer.v)], blocks, fused=isinstance(layer, FusedLayer))

    count = len(blocks)
    own = torch.arange(count, device=layer.k.device)
    limit = float(torch.tensor(threshold, dtype=torch.float32))
    search = _Search(layer, k_norm, v_norm, criterion, limit, hashing, budget)
    absorber = first.clone()
    score = torch.ones(count, dtype=torch.float32, device=layer.k.device)
    matches = 0
    searched = (first == own) & (k_norm[blocks.physical] > 0)
    for domain in torch.unique(blocks.domain).tolist():
        here = torch.nonzero(searched & (blocks.domain == domain)).flatten()
        rows, cols, scores = search.matches(blocks.physical[here], blocks.request[here])
        matches += len(rows)
        members, target, best = _settle(len(here), rows, cols, scores)
        absorber[here[members]] = here[target]
        score[here[members]] = best

    # A duplicate goes where its first copy went; a leader is never absorbed, so this is the end.
    representative = absorber[first]
    absorber = torch.where(first == own, absorber, first)
    pools = Pools(Part(layer.k, k_norm), Part(layer.v, v_norm))
    factors = distinct_scales(pools, blocks.physical, first, representative, scale)
    fusion = assemble(layer, blocks, first, absorber, representative, score[first], *factors)
    return HashedFusion(**vars(fusion), hashing=hashing, compared=search.compared, matches=matches)


def _default_hashing(threshold: float, blocks: int, layer: PagedLayer | FusedLayer) -> Hashing:
    if not 0 < threshold < 1:
        if threshold == 1:  # nothing but exact duplicates can share
            return Hashing(1, 1)
        raise InputError(
            "threshold",
            threshold,
            "has no hashing chosen for it at or below 0; pass hashing=Hashing(tables=…, bits=…), or use fuse",
        )
    return choose_hashing(0.9, threshold, max(1, blocks), dim=max(1, layer.k[:1].numel()))


class _Search:
    """Matches among the blocks of one domain after another, and what they have cost so far."""

    def __init__(
        self,
        layer: PagedLayer | FusedLayer,
        k_norm: Tensor,
        v_norm: Tensor,
        criterion: str,
        limit: float,
        hashing: Hashing,
        budget: int,
    ) -> None:
        self._layer = layer
        self._pools = [(layer.k, k_norm), (layer.v, v_norm)][: 2 if criterion == "both" else 1]
        self._limit = limit
        self._hashing = hashing
        self._budget = budget
        self.compared = 0

    def matches(self, ids: Tensor, request: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of different requests that hashing finds and whose score exceeds the limit.

        Args:
            ids: (n,) int64 physical ids of the blocks of one domain, none of norm zero.
            request: (n,) int64, ascending.

        Returns:
            Later and earlier position in ``ids`` of each pair, int64, in order; their scores, float32.
        """
        none = ids.new_empty(0)
        # At a limit of 1 no score exceeds it, and blocks of one request do not match.
        if len(ids) < 2 or self._limit >= 1 or int(request[0]) == int(request[-1]):
            return none, none, torch.empty(0, device=ids.device)
        pool, norm = self._pools[0]
        mean = mean_direction(pool, norm, ids) if self._hashing.centre else None
        code, score = none, torch.empty(0, device=ids.device)
        tables = 0
        for keys in hash_keys(pool, norm, ids, mean, self._hashing):
            for table in keys:
                buckets = sort_buckets(table, request)
                self.compared += buckets.pairs
                tables += 1
                if self.compared > self._budget:
                    self._refuse(tables, len(ids))
                for later, earlier in buckets.list_pairs():
                    fresh = self._scores(ids[later], ids[earlier])
                    above = torch.nonzero(fresh > self._limit).flatten()
                    # A pair that several tables find is kept once; chosen by number, in order.
                    code = torch.cat((code, later[above] * len(ids) + earlier[above]))
                    score = torch.cat((score, fresh[above]))
                code, score = _distinct(code, score)
        return code // len(ids), code % len(ids), score

    def _scores(self, left: Tensor, right: Tensor) -> Tensor:
        """(n,) float32 criterion score of the blocks ``left[i]`` and ``right[i]`` of the pool, at most 1."""
        score = torch.ones(len(left), dtype=torch.float32, device=left.device)
        for pool, norm in self._pools:
            part = _products(pool, left, right) / norm[left] / norm[right]
            # A block of norm zero (values may be) is similar to nothing.
            part = torch.where((norm[left] > 0) & (norm[right] > 0), part, 0.0)
            score = torch.minimum(score, part)
        return score

    def _refuse(self, tables: int, blocks: int) -> None:
        hashing = self._hashing
        centre = "" if hashing.centre else "centre the blocks (Hashing(centre=True)), "
        raise InputError(
            "budget",
            self._budget,
            f"hashing finds {self.compared:,} candidate pairs among {blocks:,} blocks in {tables} of "
            f"{hashing.tables} tables, more than the budget; {centre}use more than {hashing.bits} bits, "
            "raise the budget, or compare all pairs with fuse: where so many blocks are alike hashing "
            "saves little",
        )


def _products(pool: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(n,) float32 inner products of the blocks ``left[i]`` and ``right[i]`` of the pool.

    As ``ratedist.kernels.fusion.scales.row_products``, but in parts that need not be small beside a small
    pool: a search may make many times more comparisons than the pool has blocks.
    """
    products = torch.empty(len(left), dtype=torch.float32, device=pool.device)
    step = max(1, _FETCHED // (4 * pool[:1].numel()))
    for start in range(0, len(left), step):
        a = pool.index_select(0, left[start : start + step]).float().flatten(1)
        b = pool.index_select(0, right[start : start + step]).float().flatten(1)
        torch.sum(a.mul_(b), dim=1, out=products[start : start + step])
    return products


def _distinct(code: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Every pair once, in order of its number."""
    code, order = torch.sort(code, stable=True)
    first = torch.ones(len(code), dtype=torch.bool, device=code.device)
    first[1:] = code[1:] != code[:-1]
    return code[first], score[order[first]]


def _settle(count: int, rows: Tensor, cols: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Leader fusion over the matches of ``count`` blocks.

    A block is absorbed if one of its earlier matches is kept, by the best of these; the lowest position
    wins among equals.

    Args:
        count: blocks.
        rows: (m,) int64 later block of each match, ascending.
        cols: (m,) int64 earlier block, of another request.
        scores: (m,) float32.

    Returns:
        Absorbed blocks, ascending; the kept block that absorbs each; their score.
    """
    absorbed = _absorbed(count, rows, cols)
    usable = torch.nonzero(absorbed[rows] & ~absorbed[cols]).flatten()
    rows, cols, scores = rows[usable], cols[usable], scores[usable]
    best = torch.full((count,), -torch.inf, dtype=torch.float32, device=rows.device)
    best.scatter_reduce_(0, rows, scores, "amax")
    target = torch.full((count,), count, dtype=torch.int64, device=rows.device)
    top = torch.nonzero(scores == best[rows]).flatten()
    target.scatter_reduce_(0, rows[top], cols[top], "amin")
    members = torch.nonzero(absorbed).flatten()
    return members, target[members], best[members]


def _absorbed(count: int, rows: Tensor, cols: Tensor) -> Tensor:
    """(count,) bool: blocks with a match among the kept ones of lower position.

    Blocks that wait for no decision on an earlier one are kept, and all that match them absorbed, in rounds
    over all blocks at once. Long chains need as many rounds as links: what some rounds leave is
    decided one by one.
    """
    absorbed = torch.zeros(count, dtype=torch.bool, device=rows.device)
    for _ in range(_PARALLEL_ROUNDS):
        if len(rows) == 0:
            return absorbed
        waits = torch.zeros(count, dtype=torch.bool, device=rows.device)
        waits[rows] = True
        absorbed[rows[~waits[cols]]] = True
        undecided = ~(absorbed[rows] | absorbed[cols])
        rows, cols = rows[undecided], cols[undecided]
    decided = absorbed.tolist()
    # In order of the later block, so that the earlier one is decided when it is asked for.
    for row, col in zip(rows.tolist(), cols.tolist(), strict=True):
        decided[row] = decided[row] or not decided[col]
    return torch.tensor(decided, dtype=torch.bool, device=rows.device)
