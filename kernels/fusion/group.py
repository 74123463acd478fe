"""Fusing a group of layers as one: a single mapping, by scores that look at all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ratedist.errors import InputError
from ratedist.kernels.fusion.driver import fuse_together
from ratedist.kernels.fusion.fuse import BACKENDS, matcher_of
from ratedist.kernels.fusion.options import FuseOptions
from ratedist.kernels.fusion.result import Fusion
from ratedist.kernels.fusion.space import check_space
from ratedist.kernels.layout import PagedLayer
from ratedist.kernels.triton_support import choose_backend

__all__ = ["fuse_group"]


def fuse_group(
    layers: Sequence[PagedLayer],
    options: FuseOptions,
    *,
    backend: str = "auto",
    layer_names: Sequence[str | int] | None = None,
) -> list[Fusion]:
    """Fuse several layers with one mapping: a pair is scored by the mean over the layers of every term.

    With criterion "both", say, that is the lower one of the mean similarity of the keys and the mean
    similarity of the values. Exact duplicates are byte-equal in every layer. Means (``options.centre``),
    scales, readings and centroids are each layer's own. Centroids follow the blocks of each layer's pool, so
    the layers' block tables differ where their pools are of different sizes. All else is as
    ``ratedist.kernels.fusion.fuse.fuse`` has it; a group of one layer is fused as that does.

    Args:
        layers: with equal block tables, lengths and domains, and blocks of one shape and dtype.
        options: what to do, to all layers alike.
        backend: as for ``fuse``.
        layer_names: one per layer, for messages; by default their indices in ``layers``.

    Returns:
        A fusion per layer; ``representative``, ``absorber``, ``score`` and the counts are the same in all.

    Raises:
        InputError: layers that differ, or what ``fuse`` refuses.
    """
    layers = list(layers)
    names = list(range(len(layers))) if layer_names is None else list(layer_names)
    if not isinstance(options, FuseOptions):
        raise InputError("options", type(options).__name__, "must be a FuseOptions")
    if not layers or len(names) != len(layers):
        raise InputError(
            "layers", f"{len(layers)} layers, {len(names)} names", "must be at least one, and a name for each"
        )
    for layer, name in zip(layers, names, strict=True):
        if not isinstance(layer, PagedLayer):
            raise InputError("layers", f"{type(layer).__name__} ({name})", "must be PagedLayers")
        _check_alike(layers[0], layer, name)
    check_space(layers[0], options)
    chosen = choose_backend(backend, layers[0].k.device, BACKENDS)
    if chosen == "reference":
        from ratedist.kernels.fusion.reference import fuse_reference

        return [
            fuse_reference(layer, options, name, layers) for layer, name in zip(layers, names, strict=True)
        ]
    return fuse_together(matcher_of(chosen), layers, options, names)


def _check_alike(one: PagedLayer, other: PagedLayer, name: str | int) -> None:
    shapes = [(layer.k.shape[1:], layer.k.dtype, layer.k.device) for layer in (one, other)]
    if shapes[0] != shapes[1]:
        raise InputError(
            "layers",
            f"blocks of {tuple(other.k.shape[1:])} {other.k.dtype} on {other.k.device} in layer {name}",
            f"must be {tuple(one.k.shape[1:])} {one.k.dtype} on {one.k.device} as in the first layer",
        )
    for field in ("lengths", "domains"):
        if not torch.equal(getattr(one.table, field), getattr(other.table, field)):
            raise InputError("layers", f"other {field} in layer {name}", "must be those of the first layer")
    used = torch.arange(one.table.entries.shape[1], device=one.k.device) < one.table.used_blocks[:, None]
    if one.table.entries.shape != other.table.entries.shape or not torch.equal(
        one.table.entries[used], other.table.entries[used]
    ):
        raise InputError(
            "layers",
            f"another block table in layer {name}",
            "must be that of the first layer: gather the layers' blocks in one order first",
        )
