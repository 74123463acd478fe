"""A layer whose block similarities were computed once, for fusing many drawings of its requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.candidates import find_candidates
from ratedist.kernels.fusion.exact import first_equal
from ratedist.kernels.fusion.fuse import check_options
from ratedist.kernels.fusion.leader import fuse_leader
from ratedist.kernels.fusion.tree import find_roots, fuse_tree
from ratedist.kernels.fusion.units import units_by_domain
from ratedist.kernels.layout import UNUSED, BlockTable, PagedLayer
from ratedist.predictors import PairSample
from ratedist.predictors.sample import CRITERIA
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.measure import Measurement
from ratedist.validate.suite.chunks import as_chunks, chunk_counts

__all__ = ["Draw", "ScoredLayer", "best_of", "select_requests", "select_table"]

FloatArray = NDArray[np.float64]

_ROWS = 256
"""Rows of the table of scores that are gathered at a time."""


def select_requests(layer: PagedLayer, requests: Sequence[int]) -> PagedLayer:
    """Some requests of a layer, in the order given, over the same pool: nothing is copied."""
    return replace(layer, table=select_table(layer.table, requests))


def select_table(table: BlockTable, requests: Sequence[int]) -> BlockTable:
    """The rows of some requests, in the order given."""
    chosen = torch.tensor(list(requests), dtype=torch.int64)
    return replace(
        table, entries=table.entries[chosen], lengths=table.lengths[chosen], domains=table.domains[chosen]
    )


class ScoredLayer:
    """One layer of a capture with the similarities of all of its full blocks.

    Repeated splits of a capture fuse the same blocks again and again, and the products of their keys and
    values are nearly all of the work. Here they are computed once; exact duplicates, leader and tree are
    then those of ``ratedist.kernels``, on scores that are looked up.

    Memory: two (N, N) float32 matrices for N full blocks, 340 MB for 272 requests of 24, and half as much
    again for criterion "both".

    Tests: tests/validate/suite/test_scored_layer.py::test_measures_what_fusing_the_layer_measures,
    tests/validate/suite/test_chunks.py::test_scored_chunks_measure_what_cff_measures.
    """

    def __init__(self, layer: PagedLayer, chunk_blocks: int | None = None) -> None:
        """Compute the similarities.

        Args:
            layer: of a capture.
            chunk_blocks: fuse across chunks of so many blocks of each request (``mode="cff"``), as
                ``ratedist.validate.suite.chunks.as_chunks`` has them; across requests where None.

        Raises InputError where no two requests of one domain (or chunks of one request) have a full block.
        """
        requests = len(layer.table.lengths)
        self._rows: list[list[int]] = [[request] for request in range(requests)]
        if chunk_blocks is not None:
            ends = list(accumulate(chunk_counts(layer.table, chunk_blocks), initial=0))
            self._rows = [list(range(*pair)) for pair in pairwise(ends)]
            layer = as_chunks(layer, chunk_blocks)
        self.sample: PairSample = pair_sample(layer)
        self._table = layer.table
        size, full = layer.table.block_size, layer.table.full_blocks
        # A stand-in for the layer: its full blocks by their place in the sample, equal where they are
        # byte-equal, and small enough to be compared in every draw.
        labels = torch.from_numpy(self.sample.duplicate).int().view(torch.float32)
        pool = labels[:, None, None, None].expand(-1, size, 1, 1).contiguous()
        columns = torch.arange(max(1, int(full.max())))
        places = (torch.cumsum(full, 0) - full)[:, None] + columns
        entries = torch.where(columns < full[:, None], places, UNUSED).int()
        self._stand_in = PagedLayer(pool, pool, BlockTable(entries, full * size, layer.table.domains, size))
        self._scores: dict[str, Tensor] = {}

    def draw(self, requests: Sequence[int]) -> Draw:
        """Some requests, in the order in which they are fused.

        Raises InputError where none of them has a full block.
        """
        rows = [row for request in requests for row in self._rows[request]]
        stand_in = select_requests(self._stand_in, rows)
        blocks = find_candidates(stand_in)
        if len(blocks) == 0:
            raise InputError("requests", list(requests), "none has a full block; give longer requests")
        first = first_equal([(stand_in.k, stand_in.v)], blocks, fused=False)
        table = select_table(self._table, rows)
        return Draw(self, table, blocks.physical, first, units_by_domain(blocks, first))

    def scores(self, criterion: str) -> Tensor:
        """(N, N) float32 scores of all pairs of full blocks; InputError for an unknown criterion."""
        if criterion not in CRITERIA:
            raise InputError("criterion", criterion, f"unknown; choose one of {', '.join(CRITERIA)}")
        if criterion not in self._scores:
            keys = torch.from_numpy(self.sample.s_k)
            values = torch.from_numpy(self.sample.s_v)
            self._scores[criterion] = keys if criterion == "keys" else torch.minimum(keys, values)
        return self._scores[criterion]


@dataclass(frozen=True)
class Draw:
    """Requests of a scored layer, ready to be fused at many thresholds.

    Attributes:
        scored: the layer.
        table: block table of the requests, or of their chunks, as the layer has it.
        place: (n,) int64 place of each of their full blocks in the layer's sample, in logical order.
        first: (n,) int64 position of the byte-equal block whose place each takes, its own where unique.
        units: as ``ratedist.kernels.fusion.units.units_by_domain`` gives them.
    """

    scored: ScoredLayer
    table: BlockTable
    place: Tensor
    first: Tensor
    units: list[list[Tensor]]

    @property
    def candidates(self) -> int:
        """Full blocks of the requests."""
        return len(self.place)

    def kept(self, threshold: float, variant: str, criterion: str) -> int:
        """Blocks that fusing keeps; raises InputError for what ``fuse`` refuses."""
        representative = self._fuse(threshold, variant, criterion)
        return int((representative == torch.arange(len(representative))).sum())

    def measure(
        self, thresholds: Sequence[float], *, variant: str, criterion: str, scale: str
    ) -> list[Measurement]:
        """What ``ratedist.validate.measure.measure`` gives for these requests in this order.

        Errors follow from similarity and norms by the rule of the scale (``ratedist.kernels.fusion.scales``)
        instead of from restored blocks. Raises InputError for what ``fuse`` refuses.
        """
        own = torch.arange(self.candidates)
        measurements = []
        for threshold in thresholds:
            representative = self._fuse(threshold, variant, criterion)
            k_error, v_error = self._errors(representative, scale)
            measurements.append(
                Measurement(
                    threshold=float(threshold),
                    candidates=self.candidates,
                    kept=int((representative == own).sum()),
                    exact=int((self.first != own).sum()),
                    k_error=k_error,
                    v_error=v_error,
                )
            )
        return measurements

    def _fuse(self, threshold: float, variant: str, criterion: str) -> Tensor:
        """(n,) int64 position of every block's final representative."""
        check_options(threshold, variant, criterion)
        scores = self.scored.scores(criterion)

        def match(rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
            return best_of(scores, self.place[rows], self.place[cols])

        absorber = self.first.clone()
        score = torch.ones(self.candidates)
        limit = float(torch.tensor(float(threshold), dtype=torch.float32))  # as the driver rounds it
        for units in self.units:
            (fuse_leader if variant == "leader" else fuse_tree)(units, match, limit, absorber, score)
        return find_roots(absorber)

    def _errors(self, representative: Tensor, scale: str) -> tuple[float, float]:
        """Root mean square of the relative error of keys and of values over all blocks."""
        sample = self.scored.sample
        here, there = self.place.numpy(), self.place[representative].numpy()
        # Byte-equal blocks come back exactly, whatever the scale.
        absorbed = sample.duplicate[here] != sample.duplicate[there]
        here, there = here[absorbed], there[absorbed]
        errors = []
        for similarity, norm in ((sample.s_k, sample.k_norm), (sample.s_v, sample.v_norm)):
            squared = _squared_errors(similarity[here, there], norm[here], norm[there], scale)
            errors.append(float(np.sqrt(squared.sum() / self.candidates)))
        return errors[0], errors[1]


def best_of(scores: Tensor, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    """Best score of every row over the columns, and the lowest position that attains it; -inf and -1 without
    columns."""
    best = torch.full((len(rows),), -torch.inf)
    position = torch.full((len(rows),), -1, dtype=torch.int64)
    if len(cols) == 0:
        return best, position
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        found = scores.index_select(0, rows[part]).index_select(1, cols)
        # numpy's argmax is the first maximum; torch leaves open which of several it names.
        position[part] = torch.from_numpy(found.numpy().argmax(1))
        best[part] = found.gather(1, position[part, None])[:, 0]
    return best, position


def _squared_errors(similarity: FloatArray, norm: FloatArray, other: FloatArray, scale: str) -> FloatArray:
    """Squared relative error of blocks read as others, by the rules of ``ratedist.kernels.fusion.scales``."""
    s = np.minimum(similarity.astype(np.float64), 1.0)
    if scale == "own-norm":
        return 2.0 - 2.0 * s
    if scale == "projection":
        return 1.0 - s**2
    ratio = other.astype(np.float64) / norm
    return 1.0 + ratio**2 - 2.0 * ratio * s
