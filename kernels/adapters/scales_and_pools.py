"""What the adapters to serving engines share: scales that an engine may lack, and K and V in one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.adapters.materialise import materialise
from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer, PagedLayer

__all__ = [
    "SCALE_EXPORTS",
    "check_cache",
    "check_integers",
    "import_layer",
    "joined_view",
    "resolve_scales",
    "used_entries",
]

SCALE_EXPORTS = ("refuse", "materialise", "separate")
"""What an export does with scales other than 1, which no engine below reads by itself.

- ``"refuse"``: raise an error;
- ``"materialise"``: write scaled blocks out, see ``ratedist.kernels.adapters.materialise``;
- ``"separate"``: return them as tensors beside the cache, for a kernel that multiplies by them.
"""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_cache(argument: str, cache: object, layout: str, shape: tuple[str, ...]) -> Tensor:
    """``cache`` as a tensor of as many dimensions as ``shape`` names; raises InputError otherwise.

    A name that is a number is the size that this dimension must have.
    """
    written = "(" + ", ".join(shape) + ")"
    if not isinstance(cache, Tensor):
        raise InputError(argument, type(cache).__name__, f"must be a tensor of shape {written} ({layout})")
    fits = cache.ndim == len(shape) and all(
        not name.isdigit() or int(name) == size for name, size in zip(shape, cache.shape, strict=True)
    )
    if not fits:
        raise InputError(argument, tuple(cache.shape), f"must have shape {written} in layout {layout}")
    if cache.dtype not in _FLOATS:
        raise InputError(
            argument,
            str(cache.dtype),
            "must be float32, float16 or bfloat16: caches quantised to 8 or 4 bits are not read",
        )
    return cache


def check_integers(argument: str, tensor: object, shape: str, ndim: int, device: torch.device) -> Tensor:
    """``tensor`` checked to be int32 or int64, of ``ndim`` dimensions and on ``device``."""
    if (
        not isinstance(tensor, Tensor)
        or tensor.dtype not in (torch.int32, torch.int64)
        or tensor.ndim != ndim
    ):
        shown = (
            f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            if isinstance(tensor, Tensor)
            else type(tensor).__name__
        )
        raise InputError(argument, shown, f"must be int32 or int64 of shape {shape}")
    if tensor.device != device:
        raise InputError(argument, str(tensor.device), f"must be on {device} like the cache")
    return tensor


def used_entries(table: BlockTable) -> Tensor:
    """(requests, max_blocks) bool: whether an entry lies within its request's length."""
    return torch.arange(table.entries.shape[1], device=table.entries.device) < table.used_blocks[:, None]


def import_layer(
    k: Tensor,
    v: Tensor,
    entries: Tensor,
    lengths: Tensor,
    domains: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> PagedLayer | FusedLayer:
    """A layer over pools that are views of an engine's cache; fused where scales are given.

    Args:
        k: (blocks, block_size, kv_heads, head_dim).
        v: as ``k``.
        entries: (requests, max_blocks) integers; whatever stands beyond a length is not looked at.
        lengths: (requests,) integers.
        domains: (requests,) int64; all 0 by default.
        k_scale: (requests, max_blocks) float32, or None.
        v_scale: as ``k_scale``; given where ``k_scale`` is.

    Raises:
        InputError: as ``BlockTable``, ``PagedLayer`` and ``FusedLayer``.
    """
    lengths = lengths.long()
    block_size = k.shape[1]
    if (k_scale is None) != (v_scale is None):
        missing = "k_scale" if k_scale is None else "v_scale"
        raise InputError(missing, None, "must be given where the other scale is")
    needed = (lengths + block_size - 1) // max(1, block_size)
    used = torch.arange(entries.shape[1], device=entries.device) < needed[:, None]
    table = BlockTable(
        entries=torch.where(used, entries, UNUSED).int(),
        lengths=lengths,
        domains=torch.zeros_like(lengths) if domains is None else domains,
        block_size=block_size,
    )
    if k_scale is None or v_scale is None:
        return PagedLayer(k, v, table)
    return FusedLayer(k, v, table, k_scale, v_scale)


def resolve_scales(
    layer: PagedLayer | FusedLayer, scales: str
) -> tuple[PagedLayer | FusedLayer, Tensor | None, Tensor | None]:
    """The layer to export and the scales to export beside it, None where an engine needs none.

    Args:
        layer: what is to be exported.
        scales: one of ``SCALE_EXPORTS``.

    Raises:
        InputError: an unknown rule; scales other than 1 under ``"refuse"``; no layer.
    """
    if not isinstance(layer, PagedLayer | FusedLayer):
        raise InputError("layer", type(layer).__name__, "must be a PagedLayer or a FusedLayer")
    if scales not in SCALE_EXPORTS:
        raise InputError("scales", scales, f"must be one of {', '.join(SCALE_EXPORTS)}")
    if isinstance(layer, PagedLayer):
        return layer, None, None
    if layer.reading is not None:
        if scales == "materialise":
            return materialise(layer), None, None
        raise InputError(
            "scales",
            scales,
            "the layer was fused with rotary positions or means taken away, which no engine puts back: "
            "export with scales='materialise' (such blocks are written out and share no longer)",
        )
    used = used_entries(layer.table)
    scaled = int((used & ((layer.k_scale != 1) | (layer.v_scale != 1))).sum())
    if scaled == 0:
        return layer, None, None
    if scales == "refuse":
        raise InputError(
            "scales",
            scales,
            f"{scaled} blocks have scales other than 1, which the engine does not apply: fuse with "
            "scale='raw', or export with scales='materialise' (scaled blocks are written out and share no "
            "longer) or scales='separate' (returned as tensors, for a kernel that multiplies by them)",
        )
    if scales == "materialise":
        return materialise(layer), None, None
    ones = torch.ones_like(layer.k_scale)
    return layer, torch.where(used, layer.k_scale, ones), torch.where(used, layer.v_scale, ones)


def joined_view(k: Tensor, v: Tensor, axis: int) -> Tensor | None:
    """One tensor with K and V along a new ``axis`` of size 2, if both are views of it, else None.

    Args:
        k: any strided tensor.
        v: of the same shape.
        axis: where the new dimension stands in the result.
    """
    same_memory = k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    step = int(v.storage_offset()) - int(k.storage_offset())
    if not same_memory or k.stride() != v.stride() or step <= 0 or k.dtype != v.dtype or k.numel() == 0:
        return None
    size, stride = list(k.shape), list(k.stride())
    size.insert(axis, 2)
    stride.insert(axis, step)
    return k.as_strided(size, stride, k.storage_offset())
