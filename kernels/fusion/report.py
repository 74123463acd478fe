"""What a fusion did to a layer: scores, errors of keys and values, the worst member, who shares how much."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ratedist.kernels.fusion.result import Fusion
from ratedist.kernels.layout import PagedLayer
from ratedist.kernels.restore import block_errors

__all__ = ["Errors", "FusionReport", "Member", "report"]


@dataclass(frozen=True)
class Errors:
    """Relative errors e = ‖restored - original‖ / ‖original‖ of blocks; 0 where there are no blocks.

    Attributes:
        mean: of e.
        rms: √ of the mean of e².
        largest: of e. Infinite, as the others are then, where a block of zeros is read as something else.
    """

    mean: float
    rms: float
    largest: float


@dataclass(frozen=True)
class Member:
    """One block and how it is read.

    Attributes:
        request, block: which block.
        representative: request and block that represent it.
        score: against its representative.
        k_error, v_error: relative error of its keys and of its values.
    """

    request: int
    block: int
    representative: tuple[int, int]
    score: float
    k_error: float
    v_error: float


@dataclass(frozen=True)
class FusionReport:
    """Numbers of one fusion; see ``report``.

    Attributes:
        candidates, kept, exact: as in ``Fusion``.
        absorbed: candidates that another block represents, exact duplicates included.
        compression: candidates per kept candidate.
        score_mean, score_least: scores of the absorbed blocks; 1 where there are none.
        k_absorbed, v_absorbed: errors over the absorbed blocks.
        k_all, v_all: errors over all candidates.
        worst: the candidate with the largest sum of the squared errors of its keys and values, the first of
            equals; None where every block is read as it was.
        sharers: for each number of candidates that have the same representative, how many representatives
            have this number.
        most_shared: request and block of the representative of most candidates, the first of equals; None
            where there are no candidates.
    """

    candidates: int
    kept: int
    exact: int
    absorbed: int
    compression: float
    score_mean: float
    score_least: float
    k_absorbed: Errors
    v_absorbed: Errors
    k_all: Errors
    v_all: Errors
    worst: Member | None
    sharers: dict[int, int]
    most_shared: tuple[int, int] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def report(original: PagedLayer, fusion: Fusion) -> FusionReport:
    """Scores and errors of a fusion, recomputed from what is read back.

    Args:
        original: the layer that was fused.
        fusion: what ``ratedist.kernels.fusion.fuse.fuse`` made of it.

    Raises:
        InputError: ``fusion`` is of another layer.

    Test: tests/kernels/fusion/test_report.py::test_numbers_are_those_of_a_loop_over_the_blocks.
    """
    k_squared, v_squared = (error.flatten().double() for error in block_errors(original, fusion.layer))
    table = fusion.layer.table
    max_blocks = table.entries.shape[1]
    full = torch.arange(max_blocks, device=table.entries.device) < table.full_blocks[:, None]
    candidates = torch.nonzero(full.flatten()).flatten()
    representative = fusion.representative.flatten()[candidates]
    score = fusion.score.flatten()
    absorbed = candidates[representative != candidates]
    roots, readers = torch.unique(representative, return_counts=True)
    sizes, numbers = torch.unique(readers, return_counts=True)

    def place(logical: int) -> tuple[int, int]:
        return logical // max_blocks, logical % max_blocks

    worst = None
    squared = (k_squared + v_squared)[candidates]
    if len(squared) and float(squared.max()) > 0:
        logical = int(candidates[int(squared.argmax())])
        worst = Member(
            *place(logical),
            place(int(fusion.representative.flatten()[logical])),
            float(score[logical]),
            float(k_squared[logical].sqrt()),
            float(v_squared[logical].sqrt()),
        )
    return FusionReport(
        candidates=fusion.candidates,
        kept=fusion.kept,
        exact=fusion.exact,
        absorbed=fusion.absorbed,
        compression=fusion.compression,
        score_mean=float(score[absorbed].double().mean()) if len(absorbed) else 1.0,
        score_least=float(score[absorbed].min()) if len(absorbed) else 1.0,
        k_absorbed=_errors(k_squared[absorbed]),
        v_absorbed=_errors(v_squared[absorbed]),
        k_all=_errors(k_squared[candidates]),
        v_all=_errors(v_squared[candidates]),
        worst=worst,
        sharers=dict(zip(sizes.tolist(), numbers.tolist(), strict=True)),
        most_shared=place(int(roots[int(readers.argmax())])) if len(roots) else None,
    )


def _errors(squared: Tensor) -> Errors:
    if len(squared) == 0:
        return Errors(0.0, 0.0, 0.0)
    return Errors(float(squared.sqrt().mean()), float(squared.mean().sqrt()), float(squared.max().sqrt()))
