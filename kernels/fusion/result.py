"""What a fusion returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ratedist.kernels.layout import FusedLayer

__all__ = ["Fusion"]


@dataclass(frozen=True)
class Fusion:
    """A fused layer, and for every logical block who represents it.

    A logical block is named by its flat logical index, request * max_blocks + block. Tensors of shape
    (requests, max_blocks) are on the layer's device.

    Attributes:
        layer: the same pool as before with a new block table and scales; for centroids a new pool, whose
            last blocks they are. Fusing frees nothing: physical blocks that no entry names any more are
            what a serving engine would take back, and ``ratedist.kernels.compact.compact`` returns a pool
            without them.
        representative: (requests, max_blocks) int64; flat logical index of the block that finally
            represents this one, itself where it is kept (or no candidate), -1 beyond the end. A group that
            reads a centroid goes by the name of its first block.
        absorber: as ``representative``, the block that absorbed this one directly. Only in the tree, and
            with centroids, can a block's absorber be absorbed later on, so that the two differ.
        score: (requests, max_blocks) float32; criterion score against the final representative, 1 for
            kept blocks and exact duplicates, 0 beyond the end. Against a centroid the first block of a
            group has a score as its members have.
        candidates: full blocks, all of which may be shared.
        kept: candidates that represent themselves; each stands for a physical block of its own.
        exact: candidates that share because they are byte-equal to another request's block, or read
            the physical block of another candidate to begin with.
    """

    layer: FusedLayer
    representative: Tensor
    absorber: Tensor
    score: Tensor
    candidates: int
    kept: int
    exact: int

    @property
    def absorbed(self) -> int:
        """Candidates that another block represents, exact duplicates included."""
        return self.candidates - self.kept

    @property
    def compression(self) -> float:
        """Candidates per kept candidate; 1 where there are none."""
        return self.candidates / self.kept if self.kept else 1.0
