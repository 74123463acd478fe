"""Expected outcome of fusing: how many blocks are kept and how far the absorbed ones are moved."""

from __future__ import annotations

from ratedist.fusion.centroid import CentroidResult, centroid
from ratedist.fusion.components import Components, components
from ratedist.fusion.hardcore import HardCore
from ratedist.fusion.leader import leader
from ratedist.fusion.marked import MarkedFusion, leader_marked, tree_marked
from ratedist.fusion.result import FusionResult, KeptBlocks, Matches, prediction_band
from ratedist.fusion.sequential import matern_share, sequential_share
from ratedist.fusion.tree import tree
from ratedist.fusion.units import batch_units, chunk_units

__all__ = [
    "CentroidResult",
    "Components",
    "FusionResult",
    "HardCore",
    "KeptBlocks",
    "MarkedFusion",
    "Matches",
    "batch_units",
    "centroid",
    "chunk_units",
    "components",
    "leader",
    "leader_marked",
    "matern_share",
    "prediction_band",
    "sequential_share",
    "tree",
    "tree_marked",
]
