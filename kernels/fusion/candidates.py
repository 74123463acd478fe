"""Which blocks of a layer may fuse: its full blocks, checked, with the norms that matching needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.matching import Matcher
from ratedist.kernels.layout import FusedLayer, PagedLayer

__all__ = ["Candidates", "check_scales", "find_candidates", "place_name", "usable_norms"]


@dataclass(frozen=True)
class Candidates:
    """The full blocks of a layer in logical order, named by their position 0 … n - 1 in this order.

    Attributes:
        logical: (n,) int64 flat logical index, request * max_blocks + block; ascending.
        request: (n,) int64.
        unit: (n,) int64; blocks of one unit never match each other directly. Ascending within a domain.
        domain: (n,) int64; each domain is a fusion problem of its own.
        physical: (n,) int64 id in the pool; ids repeat where the block table aliases.
    """

    logical: Tensor
    request: Tensor
    unit: Tensor
    domain: Tensor
    physical: Tensor

    def __len__(self) -> int:
        return self.logical.shape[0]


def find_candidates(layer: PagedLayer | FusedLayer, chunk_blocks: int | None = None) -> Candidates:
    """The full blocks of ``layer``.

    Args:
        layer: the layer.
        chunk_blocks: full blocks per chunk where the units are the chunks of a request and every request
            is a domain; None where the units are requests.
    """
    table = layer.table
    max_blocks = table.entries.shape[1]
    full = torch.arange(max_blocks, device=table.entries.device) < table.full_blocks[:, None]
    logical = torch.nonzero(full.flatten()).flatten()
    request = logical // max(1, max_blocks)
    unit, domain = request, table.domains[request]
    if chunk_blocks is not None:
        unit, domain = logical % max(1, max_blocks) // chunk_blocks, request
    return Candidates(
        logical=logical,
        request=request,
        unit=unit,
        domain=domain,
        physical=table.entries.flatten()[logical].long(),
    )


def usable_norms(
    matcher: Matcher, layer: PagedLayer | FusedLayer, candidates: Candidates, layer_name: str | int | None
) -> tuple[Tensor, Tensor]:
    """(blocks,) float32 norms of keys and of values, of all blocks of the pool.

    Raises:
        InputError: a token within a request's length holds NaN or infinity, or a candidate's norm is
            beyond float32. What lies beyond a request's length is not looked at: an engine never wrote it.
    """
    norms = []
    for name, pool in (("k", layer.k), ("v", layer.v)):
        norm = matcher.block_norms(pool)
        bad = torch.nonzero(~torch.isfinite(norm[candidates.physical])).flatten()
        if len(bad):
            first = bad[0]
            block = pool[candidates.physical[first]].float()
            _refuse(name, block, int(candidates.logical[first]), layer, layer_name)
        _check_partial_blocks(name, pool, layer, layer_name)
        norms.append(norm)
    return norms[0], norms[1]


def check_scales(layer: PagedLayer | FusedLayer, layer_name: str | int | None) -> None:
    """Raises InputError where a fused layer's scale in use is NaN or infinite."""
    if isinstance(layer, PagedLayer):
        return
    max_blocks = layer.table.entries.shape[1]
    used = torch.arange(max_blocks, device=layer.k.device) < layer.table.used_blocks[:, None]
    for name, scale in (("k_scale", layer.k_scale), ("v_scale", layer.v_scale)):
        bad = torch.nonzero((used & ~torch.isfinite(scale)).flatten()).flatten()
        if len(bad):
            raise InputError(
                name,
                float(scale.flatten()[bad[0]]),
                f"{place_name(layer_name, int(bad[0]), max_blocks)} must have a finite scale",
            )


def place_name(layer_name: str | int | None, logical: int, max_blocks: int) -> str:
    """Where a block lies, for messages: layer (if named), request and block."""
    where = "" if layer_name is None else f"layer {layer_name}, "
    return f"{where}request {logical // max_blocks}, block {logical % max_blocks}"


def _check_partial_blocks(
    name: str, pool: Tensor, layer: PagedLayer | FusedLayer, layer_name: str | int | None
) -> None:
    table = layer.table
    partial = torch.nonzero(table.lengths % table.block_size).flatten()
    max_blocks = table.entries.shape[1]
    for request in partial.tolist():
        index = int(table.full_blocks[request])
        tokens = int(table.lengths[request]) % table.block_size
        block = pool[int(table.entries[request, index]), :tokens].float()
        if not bool(torch.isfinite(block).all()):
            _refuse(name, block, request * max_blocks + index, layer, layer_name)


def _refuse(
    name: str, block: Tensor, logical: int, layer: PagedLayer | FusedLayer, layer_name: str | int | None
) -> None:
    where = place_name(layer_name, logical, layer.table.entries.shape[1])
    bad = block[~torch.isfinite(block)]
    if bad.numel():
        raise InputError(
            name, float(bad.flatten()[0]), f"{where} holds NaN or infinity; every value must be finite"
        )
    raise InputError(
        name,
        float(block.double().norm()),
        f"{where} has a norm whose square float32 cannot hold; it must stay below "
        f"{math.sqrt(torch.finfo(torch.float32).max):.2g}",
    )
