"""Expected outcome of fusing: how many blocks are kept and how far the absorbed ones are moved."""

from __future__ import annotations

from ratedist.fusion.hardcore import HardCore
from ratedist.fusion.leader import leader
from ratedist.fusion.marked import MarkedFusion, leader_marked, tree_marked
from ratedist.fusion.result import FusionResult, Matches, prediction_band
from ratedist.fusion.tree import tree
from ratedist.fusion.units import batch_units, chunk_units

__all__ = [
    "FusionResult",
    "HardCore",
    "MarkedFusion",
    "Matches",
    "batch_units",
    "chunk_units",
    "leader",
    "leader_marked",
    "prediction_band",
    "tree",
    "tree_marked",
]
