"""Between synthetic blocks and the formats of the real ones: paged layers and captures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.layout import UNUSED, BlockTable, PagedLayer
from ratedist.sim.blocks import SyntheticLayer
from ratedist.validate.captures.manifest import BatchFile, Manifest
from ratedist.validate.captures.store import Capture
from ratedist.validate.captures.writer import CaptureWriter

__all__ = ["blocks_of", "paged", "write_synthetic"]

_BATCH = 8


def paged(layer: SyntheticLayer) -> PagedLayer:
    """Synthetic blocks as a paged cache; every logical block has a physical block of its own."""
    requests, max_blocks = layer.identity.shape
    entries = torch.arange(requests * max_blocks, dtype=torch.int32).view(requests, max_blocks)
    used = torch.arange(max_blocks) < layer.full_blocks[:, None]
    table = BlockTable(
        torch.where(used, entries, UNUSED).to(torch.int32), layer.lengths, layer.domains, layer.k.shape[2]
    )
    return PagedLayer(layer.k.flatten(0, 1), layer.v.flatten(0, 1), table)


def blocks_of(layer: PagedLayer) -> tuple[Tensor, Tensor, Tensor]:
    """K and V as (requests, max_blocks, block_size, kv_heads, head_dim), and full blocks per request.

    Requests without a full block are left out. Blocks beyond a request's full ones are whatever the
    table's first physical block holds.
    """
    full = layer.table.full_blocks
    some = full > 0
    if not bool(some.any()):
        raise InputError("requests", 0, "none has a full block; capture longer ones")
    entries = layer.table.entries[some][:, : int(full.max())].clamp_min(0).long()
    return layer.k[entries], layer.v[entries], full[some]


def write_synthetic(
    folder: Path,
    layer: Callable[[int], SyntheticLayer],
    layers: Sequence[int],
    *,
    model_layers: int,
    model: str,
    workload: str,
    dtype: str,
    rotary: dict[str, Any],
    seed: int,
    origin: dict[str, Any],
    force: bool = False,
) -> Capture:
    """Write synthetic layers as a capture, so that what reads captures reads them unchanged.

    Args:
        folder: see ``CaptureWriter``, whose refusals apply.
        layer: gives the blocks of a layer by its index; the same requests in every layer.
        layers: indices to write, ascending.
        model_layers: layers of the model they stand for.
        model: name, e.g. of what it was calibrated on.
        workload: name of the workload.
        dtype: storage type by its name.
        rotary: rotary parameters that keys were turned by, as a model's configuration states them.
        seed: seed of the content.
        origin: what determines the blocks, kept in the manifest.
    """
    held = layer(layers[0])
    requests = held.k.shape[0]
    starts = range(0, requests, _BATCH)
    files = tuple(
        BatchFile(f"batch-{index:05d}.safetensors", tuple(range(start, min(start + _BATCH, requests))))
        for index, start in enumerate(starts)
    )
    plan = Manifest(
        model=model,
        weights_hash="",
        dtype=dtype,
        layers=tuple(layers),
        model_layers=model_layers,
        kv_heads=int(held.k.shape[3]),
        query_heads=int(held.k.shape[3]),
        head_dim=int(held.k.shape[4]),
        lengths=tuple(held.lengths.tolist()),
        domains=tuple(held.domains.tolist()),
        workload=workload,
        files=files,
        rotary=rotary,
        layer_types=("full_attention",) * len(layers),
        block_size=int(held.k.shape[2]),
        seed=seed,
        origin=origin,
    )
    with CaptureWriter(folder, plan, force=force) as writer:
        for batch in writer.pending:

            def of_batch(batch: int = batch) -> Any:
                for index in layers:
                    drawn = layer(index)
                    parts = [drawn.tokens(request) for request in files[batch].requests]
                    yield index, torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts])

            writer.write(batch, of_batch())
        return writer.finish()
