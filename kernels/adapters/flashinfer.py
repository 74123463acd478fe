"""FlashInfer's paged KV caches and page tables, in and out (as FlashInfer 0.6.18 documents them)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.adapters.scales_and_pools import (
    check_cache,
    check_integers,
    import_layer,
    joined_view,
    resolve_scales,
    used_entries,
)
from ratedist.kernels.layout import UNUSED, FusedLayer, PagedLayer

__all__ = ["FLASHINFER_FORMS", "FLASHINFER_LAYOUTS", "FlashInferCache", "from_flashinfer", "to_flashinfer"]

FLASHINFER_LAYOUTS = {
    "NHD": ("page_size", "num_kv_heads", "head_dim"),
    "HND": ("num_kv_heads", "page_size", "head_dim"),
}
"""The last three dimensions of a cache."""

FLASHINFER_FORMS = ("single", "pair")
"""K and V in one tensor, (max_num_pages, 2, …), or a pair of tensors, each (max_num_pages, …)."""


@dataclass(frozen=True)
class FlashInferCache:
    """One layer as FlashInfer's paged wrappers take it.

    Attributes:
        kv_cache: one tensor or a pair, see ``FLASHINFER_FORMS``.
        indptr: (requests + 1,) int32; request i reads the pages ``indices[indptr[i]:indptr[i + 1]]``.
        indices: (pages in use,) int32.
        last_page_len: (requests,) int32 tokens in the last page, 1 … page_size.
        kv_layout: one of ``FLASHINFER_LAYOUTS``.
        k_scale: (pages in use,) float32 beside ``indices``, or None where all are 1. FlashInfer knows no
            scales per page: a kernel must multiply by them.
        v_scale: as ``k_scale``.
        copied: whether ``kv_cache`` is a copy; otherwise it shares memory with the layer.
    """

    kv_cache: Tensor | tuple[Tensor, Tensor]
    indptr: Tensor
    indices: Tensor
    last_page_len: Tensor
    kv_layout: str
    k_scale: Tensor | None
    v_scale: Tensor | None
    copied: bool


def from_flashinfer(
    kv_cache: Tensor | tuple[Tensor, Tensor],
    indptr: Tensor,
    indices: Tensor,
    last_page_len: Tensor,
    *,
    kv_layout: str = "NHD",
    domains: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> PagedLayer | FusedLayer:
    """A layer over FlashInfer's cache: the pools are views of it, nothing is copied but the table.

    Args:
        kv_cache: one tensor (max_num_pages, 2, …) or a pair of (max_num_pages, …), where … is
            ``FLASHINFER_LAYOUTS[kv_layout]``.
        indptr: (requests + 1,) int32 or int64, from 0, ascending.
        indices: (indptr[-1],) int32 or int64.
        last_page_len: (requests,) int32 or int64, within 1 … page_size.
        kv_layout: "NHD" or "HND".
        domains: (requests,) int64; all 0 by default.
        k_scale: (indptr[-1],) float32, as an export returned it; with it the layer is a FusedLayer.
        v_scale: as ``k_scale``.

    Raises:
        InputError: another layout, shape, dtype or device, or a page table that contradicts itself.
    """
    _check_layout(kv_layout)
    last = FLASHINFER_LAYOUTS[kv_layout]
    if isinstance(kv_cache, tuple):
        if len(kv_cache) != 2:
            raise InputError("kv_cache", f"{len(kv_cache)} tensors", "must be a pair, keys and values")
        k, v = (check_cache("kv_cache", part, kv_layout, ("max_num_pages", *last)) for part in kv_cache)
    else:
        cache = check_cache("kv_cache", kv_cache, kv_layout, ("max_num_pages", "2", *last))
        k, v = cache.unbind(1)
    if kv_layout == "HND":
        k, v = k.transpose(1, 2), v.transpose(1, 2)

    starts = check_integers("indptr", indptr, "(requests + 1,)", 1, k.device).long()
    pages = check_integers("indices", indices, "(indptr[-1],)", 1, k.device)
    ends = check_integers("last_page_len", last_page_len, "(requests,)", 1, k.device).long()
    if len(starts) == 0 or int(starts[0]) != 0 or bool((starts.diff() < 0).any()):
        raise InputError("indptr", starts.tolist()[:8], "must start with 0 and never fall")
    if len(pages) != int(starts[-1]):
        raise InputError("indices", f"{len(pages)} pages", f"must hold indptr[-1] = {int(starts[-1])} pages")
    if len(ends) != len(starts) - 1:
        raise InputError(
            "last_page_len", f"{len(ends)} entries", f"must have one per request, {len(starts) - 1}"
        )
    count, page_size = starts.diff(), k.shape[1]
    for name, wrong, remedy in (
        ("indptr", count == 0, "holds no page; leave requests without tokens out"),
        (
            "last_page_len",
            (ends < 1) | (ends > page_size),
            f"must have 1 to {page_size} tokens in its last page",
        ),
    ):
        if bool(wrong.any()):
            request = int(torch.nonzero(wrong)[0])
            value = int(count[request] if name == "indptr" else ends[request])
            raise InputError(name, value, f"request {request} {remedy}")
    if len(pages) and int(pages.min()) < 0:
        raise InputError("indices", int(pages.min()), "must name pages of the cache")

    width = int(count.max()) if len(count) else 0
    used = torch.arange(width, device=k.device) < count[:, None]
    entries = torch.full(used.shape, UNUSED, dtype=torch.int64, device=k.device)
    entries[used] = pages.long()
    tables = []
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is not None:
            if scale.dtype != torch.float32 or scale.shape != pages.shape:
                raise InputError(
                    name,
                    f"{scale.dtype} of shape {tuple(scale.shape)}",
                    f"must be float32 of shape {tuple(pages.shape)}, one beside each of indices",
                )
            table = torch.ones(used.shape, dtype=torch.float32, device=k.device)
            table[used] = scale
            scale = table
        tables.append(scale)
    lengths = (count - 1) * page_size + ends
    return import_layer(k, v, entries, lengths, domains, tables[0], tables[1])


def to_flashinfer(
    layer: PagedLayer | FusedLayer, *, kv_layout: str = "NHD", form: str = "single", scales: str = "refuse"
) -> FlashInferCache:
    """A layer as FlashInfer's paged wrappers take it, with the sharing of a fused layer in ``indices``.

    A pair is made of views wherever their layout in memory is ``kv_layout``, a single tensor where K and V
    are views of one such tensor, as ``from_flashinfer`` returns them. Otherwise the cache is a contiguous
    copy.

    Args:
        layer: what to export; every request must hold at least one token.
        kv_layout: one of ``FLASHINFER_LAYOUTS``.
        form: one of ``FLASHINFER_FORMS``.
        scales: one of ``ratedist.kernels.adapters.scales_and_pools.SCALE_EXPORTS``.

    Raises:
        InputError: another layout or form, a request without tokens (its last page would be empty), or
            scales other than 1 under ``scales="refuse"``.
    """
    _check_layout(kv_layout)
    if form not in FLASHINFER_FORMS:
        raise InputError("form", form, f"must be one of {', '.join(FLASHINFER_FORMS)}")
    layer, k_scale, v_scale = resolve_scales(layer, scales)
    table = layer.table
    empty = torch.nonzero(table.lengths == 0).flatten()
    if len(empty):
        raise InputError(
            "layer",
            "length 0",
            f"request {int(empty[0])} holds no token, and FlashInfer wants at least one in a last page; "
            "leave such requests out",
        )
    used = used_entries(table)
    indptr = torch.zeros(table.requests + 1, dtype=torch.int64, device=layer.k.device)
    indptr[1:] = table.used_blocks.cumsum(0)

    k, v = layer.k, layer.v
    if kv_layout == "HND":
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    cache: Tensor | tuple[Tensor, Tensor]
    if form == "pair":
        copied = not (k.is_contiguous() and v.is_contiguous())
        cache = (k.contiguous(), v.contiguous())
    else:
        joined = joined_view(k, v, 1)
        copied = joined is None or not joined.is_contiguous()
        cache = torch.stack((k, v), dim=1) if joined is None or copied else joined
    return FlashInferCache(
        kv_cache=cache,
        indptr=indptr.int(),
        indices=table.entries[used],
        last_page_len=(table.lengths - (table.used_blocks - 1) * table.block_size).int(),
        kv_layout=kv_layout,
        k_scale=None if k_scale is None else k_scale[used],
        v_scale=None if v_scale is None else v_scale[used],
        copied=copied,
    )


def _check_layout(kv_layout: str) -> None:
    if kv_layout not in FLASHINFER_LAYOUTS:
        known = "; ".join(f"{name} (…, {', '.join(last)})" for name, last in FLASHINFER_LAYOUTS.items())
        raise InputError("kv_layout", kv_layout, f"must be one of {known}")
