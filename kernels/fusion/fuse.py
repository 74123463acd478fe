"""Fusing the similar blocks of a batch: the public operation, its checks and its backends."""

from __future__ import annotations

from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.driver import fuse_with
from ratedist.kernels.fusion.matching import Matcher
from ratedist.kernels.fusion.options import CENTRES, MODES, VARIANTS, FuseOptions
from ratedist.kernels.fusion.result import Fusion
from ratedist.kernels.fusion.scales import SCALES
from ratedist.kernels.fusion.scoring import CRITERIA
from ratedist.kernels.fusion.space import check_space
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.rotary import Rotary
from ratedist.kernels.triton_support import choose_backend

__all__ = [
    "BACKENDS",
    "CENTRES",
    "CRITERIA",
    "MODES",
    "SCALES",
    "VARIANTS",
    "Fusion",
    "check_options",
    "fuse",
    "matcher_of",
]

BACKENDS = ("auto", "reference", "cpu", "triton")


def fuse(
    layer: PagedLayer | FusedLayer,
    *,
    threshold: float,
    variant: str = "leader",
    criterion: str = "keys",
    scale: str = "own-norm",
    mode: str = "bff",
    chunk_blocks: int | None = None,
    max_sharers: int | None = None,
    max_absorbed_share: float | None = None,
    rotary: Rotary | None = None,
    starts: Tensor | None = None,
    centre: str | None = None,
    backend: str = "auto",
    layer_name: str | int | None = None,
) -> Fusion:
    """Let similar full blocks of different units of one domain share one physical block.

    With mode ``"bff"`` the units are the requests and the domains those of the block table. With ``"cff"``
    every request is a domain by itself and nothing is shared between requests; its units are its consecutive
    chunks of ``chunk_blocks`` full blocks, the last of which may be shorter.

    Byte-equal blocks (keys and values) of different units share the one of lowest logical index,
    at every threshold. Over the blocks that remain, with every unit that has a full block:

    - ``"leader"``: units are taken in order; each block of a unit is absorbed by its best
      match among the blocks kept of earlier units where that score exceeds the threshold, else it is
      kept. A kept block is never absorbed, so every member is within the threshold of its representative.
    - ``"tree"``: units are paired level by level, an odd last one passing up; at a node each block kept
      on the right is absorbed by its best match kept on the left, and takes its members along, so
      members can end below the threshold.
    - ``"centroid"``: the tree, where a group of blocks is matched and read by its centroid: the normalised
      mean of the directions of all its logical blocks, times the mean of their norms, for keys and for
      values. The centroids, rounded to the pool's dtype, stand at the end of a new pool, a copy of the old
      one; nothing that is stored is written. All members of a group of different blocks read its centroid,
      the first one too, which names the group. A block alone, with its exact duplicates, stays as it is.
    - ``"components"``: blocks of different units whose score exceeds the threshold are linked, and all that
      a chain of links connects shares its block of lowest logical index, at whatever score. For comparison:
      two blocks of one unit can end up sharing. Not for criterion ``"distance"``, nor under caps.

    Blocks of one unit never match each other directly. A score counts as min(score, 1), so that at
    threshold 1 only exact duplicates share. Ties go to the lowest logical index. A block of norm zero
    has no direction: its similarity to anything is 0.

    Under a cap, blocks are admitted in order of falling score, the lowest logical index first among equals:
    in the leader unit by unit, in the tree node by node, where members that move along count too.

    Blocks of a domain that share a physical block to begin with go on sharing it. A layer that is fused
    already is fused as it is stored: physical blocks are matched, and scales multiply.

    With ``rotary`` and ``centre``, blocks are matched and scales computed as they are without their rotary
    positions (turned back to position 0) and without a mean, one for every logical block index of a domain
    or one for all its blocks, rounded to the pool's dtype. What is stored stays as it is: the result's
    ``reading`` says how far an absorbed block's keys are turned and which means are exchanged when it is
    read, and all others are read as they are stored. Exact duplicates are found as the blocks are stored.
    A mean is over full blocks of a domain, which may be few: with a single block at a position, nothing is
    left of it, and it is similar to nothing.

    Nothing is copied or moved (but for centroids): the result has the same pool, a new block table and
    scales. Beyond vectors with one number per block it takes at most about 9 % of the layer's bytes as
    working memory (``backend="cpu"``). With ``rotary``, ``centre`` or centroids there are float32 copies of
    the keys and values of all distinct full blocks on top, as many bytes as a float32 layer and twice those
    of a 16-bit one; the means, in float64 while they are summed; and the new pool of centroids. With
    ``rotary`` a mean is stored for each domain and position in use.

    Args:
        layer: paged keys and values. Every token within a request's length must be finite.
        threshold: blocks fuse where their score exceeds this; within [-1, 1].
        variant: one of ``VARIANTS``.
        criterion: one of ``CRITERIA``, see ``ratedist.kernels.fusion.scoring``.
        scale: one of ``SCALES``: what a member's reading is multiplied with, see
            ``ratedist.kernels.fusion.scales``.
        mode: one of ``MODES``.
        chunk_blocks: full blocks per chunk; with mode ``"cff"`` alone.
        max_sharers: logical blocks of a domain that may read one physical block. Exact duplicates always
            share, and count. A block whose best match has no room for it and all that read it is kept: it
            is given no second choice.
        max_absorbed_share: share of a request's full blocks that may be absorbed by similarity, within
            [0, 1]. Exact duplicates do not count, wherever the block goes whose bytes they have.
        rotary: rotary embedding of the keys, to be removed before matching; None to match keys with it.
            Backend ``"triton"`` turns heads of up to 256 channels.
        starts: (requests,) int64 position of each request's first token; 0 if left out.
        centre: one of ``CENTRES``, or None. ``"position"`` does not go with ``rotary``.
        backend: one of ``BACKENDS``. ``"auto"`` is ``"triton"`` for a layer on a GPU and ``"cpu"``
            otherwise; ``"reference"`` is slow, and holds whole similarity matrices.
        layer_name: the layer's name or index, for messages.

    Raises:
        InputError: an argument outside what is listed, or a block that holds NaN or infinity or
            whose norm float32 cannot hold (its layer, request and block are named); a layer that is fused
            already, with ``rotary``, ``centre`` or centroids.
    """
    if not isinstance(layer, PagedLayer | FusedLayer):
        raise InputError("layer", type(layer).__name__, "must be a PagedLayer or a FusedLayer")
    if isinstance(layer, FusedLayer) and layer.reading is not None:
        raise InputError(
            "layer",
            "a FusedLayer with a reading",
            "was fused with rotary positions or means taken away, so its blocks are not what is stored: "
            "fuse the layer before that fusion, or what materialise makes of it "
            "(ratedist.kernels.adapters.materialise)",
        )
    options = FuseOptions(
        threshold=threshold,
        variant=variant,
        criterion=criterion,
        scale=scale,
        mode=mode,
        chunk_blocks=chunk_blocks,
        max_sharers=max_sharers,
        max_absorbed_share=max_absorbed_share,
        rotary=rotary,
        starts=starts,
        centre=centre,
    )
    check_space(layer, options)
    chosen = choose_backend(backend, layer.k.device, BACKENDS)
    if chosen == "reference":
        from ratedist.kernels.fusion.reference import fuse_reference

        return fuse_reference(layer, options, layer_name)
    return fuse_with(matcher_of(chosen), layer, options, layer_name)


def check_options(
    threshold: float, variant: str = "leader", criterion: str = "keys", scale: str = "own-norm"
) -> float:
    """The threshold as a float; raises InputError where an option is not one that ``fuse`` accepts."""
    return float(FuseOptions(threshold, variant, criterion, scale).threshold)


def matcher_of(backend: str) -> Matcher:
    """The matcher of ``"cpu"`` or ``"triton"``, imported on demand: Triton exists on some platforms only."""
    if backend == "triton":
        from ratedist.kernels.fusion import _match_triton

        return _match_triton
    from ratedist.kernels.fusion import _match_cpu

    return _match_cpu
