"""vLLM's paged KV caches and block tables, in and out."""

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
from ratedist.kernels.layout import FusedLayer, PagedLayer

__all__ = ["NULL_BLOCK", "VLLM_LAYOUTS", "VllmCache", "from_vllm", "to_vllm"]

VLLM_LAYOUTS = {
    "kv-first": ("2", "num_blocks", "block_size", "num_kv_heads", "head_size"),
    "blocks-first": ("num_blocks", "2", "block_size", "num_kv_heads", "head_size"),
    "packed": ("num_blocks", "num_kv_heads", "block_size", "2 * head_size"),
}
"""Shapes of one layer's cache, as the attention backends of vLLM's V1 engine name it.

- ``"kv-first"``: FlashAttention up to vLLM 0.21;
- ``"blocks-first"``: Triton and FlashInfer before the packed layout, FlashAttention from 0.23 on;
- ``"packed"``: seen in 0.28 to 0.30, K and V of a head side by side (vLLM pull request 44455).

Backends can order the same shape differently in memory (NHD or HND). Strides say which, and are followed.
Caches quantised to fp8 or fp4, those of latent attention (MLA, one tensor without heads) and of the older
PagedAttention kernels (keys split into 16-byte groups) are other layouts, and refused.
"""

NULL_BLOCK = 0
"""The block that vLLM never hands out; entries that name it stand for blocks that were dropped."""


@dataclass(frozen=True)
class VllmCache:
    """One layer as vLLM holds it.

    Attributes:
        kv_cache: in the shape of ``VLLM_LAYOUTS[layout]``.
        block_table: (requests, max_blocks) int32, padded beyond the end of a request.
        seq_lens: (requests,) int32 tokens per request.
        layout: one of ``VLLM_LAYOUTS``.
        k_scale: (requests, max_blocks) float32, 1 beyond the end, or None where all are 1. vLLM knows no
            scales per block: a kernel must multiply by them.
        v_scale: as ``k_scale``.
        copied: whether ``kv_cache`` is a copy; otherwise it shares memory with the layer.
    """

    kv_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor
    layout: str
    k_scale: Tensor | None
    v_scale: Tensor | None
    copied: bool


def from_vllm(
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    layout: str,
    domains: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> PagedLayer | FusedLayer:
    """A layer over vLLM's cache: the pools are views of it, nothing is copied but the table.

    Args:
        kv_cache: one layer's cache in the shape of ``VLLM_LAYOUTS[layout]``, with any strides.
        block_table: (requests, max_blocks) int32 or int64, with block_size tokens to an entry. What stands
            beyond a request's end (0, -1 or what an earlier request left there) is not looked at.
        seq_lens: (requests,) int32 or int64.
        layout: one of ``VLLM_LAYOUTS``; never guessed, as two blocks look like K and V.
        domains: (requests,) int64; all 0 by default.
        k_scale: (requests, max_blocks) float32, as an export returned it; with it the layer is a FusedLayer.
        v_scale: as ``k_scale``.

    Raises:
        InputError: another layout, shape, dtype or device; an entry within a length that names no block,
            or the null block, as those do that a sliding window has dropped.
    """
    _check_layout(layout)
    cache = check_cache("kv_cache", kv_cache, _named(layout), VLLM_LAYOUTS[layout])
    if layout == "packed":
        if cache.shape[3] % 2:
            raise InputError(
                "kv_cache", tuple(cache.shape), "must hold K and V of equal head_size at the end"
            )
        k, v = cache.transpose(1, 2).chunk(2, dim=3)
    else:
        k, v = cache.unbind(0 if layout == "kv-first" else 1)
    table = check_integers("block_table", block_table, "(requests, max_blocks)", 2, cache.device)
    lengths = check_integers("seq_lens", seq_lens, "(requests,)", 1, cache.device)
    if table.shape[0] != lengths.shape[0]:
        raise InputError("seq_lens", tuple(lengths.shape), f"must have one entry per row, {table.shape[0]}")
    layer = import_layer(k, v, table, lengths, domains, k_scale, v_scale)
    null = torch.nonzero(used_entries(layer.table) & (layer.table.entries == NULL_BLOCK))
    if len(null):
        request, block = null[0].tolist()
        raise InputError(
            "block_table",
            NULL_BLOCK,
            f"request {request}, block {block} names the null block, so its tokens were dropped (by a "
            "sliding window); only layers that hold all tokens are read",
        )
    return layer


def to_vllm(
    layer: PagedLayer | FusedLayer, *, layout: str, scales: str = "refuse", padding: int = 0
) -> VllmCache:
    """A layer as vLLM would hold it, with the sharing of a fused layer in the block table.

    Block 0 is left to vLLM as its null block: where the layer uses it, all blocks move up by one. Nothing
    is copied where that is not needed and K and V are views of one tensor of this layout, as
    ``from_vllm`` returns them; a copy is contiguous. vLLM's attention kernels want a block_size that is a
    multiple of 16.

    Args:
        layer: what to export.
        layout: one of ``VLLM_LAYOUTS``.
        scales: one of ``ratedist.kernels.adapters.scales_and_pools.SCALE_EXPORTS``.
        padding: entry beyond the end of a request; 0 as in vLLM's own tables, or -1.

    Raises:
        InputError: another layout or padding, or scales other than 1 under ``scales="refuse"``.
    """
    _check_layout(layout)
    if padding not in (0, -1):
        raise InputError("padding", padding, "must be 0 (as in vLLM's own tables) or -1")
    layer, k_scale, v_scale = resolve_scales(layer, scales)
    used = used_entries(layer.table)
    entries = layer.table.entries
    shift = int(bool((entries[used] == NULL_BLOCK).any()))
    cache = None if shift else _view(layer.k, layer.v, layout)
    copied = cache is None
    if cache is None:
        cache = _copy(layer.k, layer.v, layout, shift)
    return VllmCache(
        kv_cache=cache,
        block_table=torch.where(used, entries + shift, padding).int(),
        seq_lens=layer.table.lengths.int(),
        layout=layout,
        k_scale=k_scale,
        v_scale=v_scale,
        copied=copied,
    )


def _check_layout(layout: str) -> None:
    if layout not in VLLM_LAYOUTS:
        raise InputError("layout", layout, f"must be one of {'; '.join(map(_named, VLLM_LAYOUTS))}")


def _named(layout: str) -> str:
    return f"{layout} ({', '.join(VLLM_LAYOUTS[layout])})"


def _view(k: Tensor, v: Tensor, layout: str) -> Tensor | None:
    """The tensor that K and V are views of, if it has this layout in memory, heads or tokens first."""
    if layout == "packed":
        # (blocks, heads, tokens, 2, head_size), the last two side by side.
        joined = joined_view(k.transpose(1, 2), v.transpose(1, 2), 3)
        heads = 1
    else:
        joined = joined_view(k, v, 0 if layout == "kv-first" else 1)
        heads = 2
    if joined is None or not (joined.is_contiguous() or joined.transpose(heads, heads + 1).is_contiguous()):
        return None
    return joined.flatten(3) if layout == "packed" else joined


def _copy(k: Tensor, v: Tensor, layout: str, shift: int) -> Tensor:
    blocks, block_size, heads, dim = k.shape
    blocks += shift
    if layout == "packed":
        cache = k.new_zeros(blocks, heads, block_size, 2 * dim)
        parts = cache.transpose(1, 2).split(dim, dim=3)
    elif layout == "kv-first":
        cache = k.new_zeros(2, blocks, block_size, heads, dim)
        parts = cache.unbind(0)
    else:
        cache = k.new_zeros(blocks, 2, block_size, heads, dim)
        parts = cache.unbind(1)
    for part, pool in zip(parts, (k, v), strict=True):
        part[shift:] = pool
    return cache
