"""Reading a fused layer back: restored blocks, and their error against the layer before fusion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.chunks import blocks_per_chunk
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.rotary import rotate

if TYPE_CHECKING:
    from ratedist.kernels.quantised import QuantisedLayer

__all__ = ["as_read", "block_errors", "read_blocks", "restore_blocks"]


def read_blocks(layer: PagedLayer | FusedLayer, part: str, logical: Tensor) -> Tensor:
    """(n, block_size, kv_heads, head_dim) float32: logical blocks as attention reads them.

    The definition of reading for every implementation: scales, rotary shifts and means included, see
    ``FusedLayer`` and ``ratedist.kernels.reading.Reading``. Blocks with scale 1, shift 0 and no mean are
    the stored values, bit for bit.

    Args:
        layer: the cache.
        part: "k" or "v".
        logical: (n,) int64 flat logical indices, request * max_blocks + block, within the requests' lengths.

    Test: tests/kernels/test_reading.py::test_every_block_is_read_as_the_formula_says.
    """
    pool: Tensor = getattr(layer, part)
    entries = layer.table.entries.flatten()[logical]
    if isinstance(layer, PagedLayer):
        return pool.index_select(0, entries.long()).float()
    return as_read(pool.index_select(0, entries.long()).float(), layer, part, logical)


def as_read(block: Tensor, layer: FusedLayer | QuantisedLayer, part: str, logical: Tensor) -> Tensor:
    """Stored blocks with the scales and the reading of the logical blocks that read them.

    Args:
        block: (n, block_size, kv_heads, head_dim) float32, the caller's own: it is changed in place.
        layer, part, logical: as ``read_blocks``.
    """
    scale: Tensor = getattr(layer, f"{part}_scale").flatten()[logical]
    reading = layer.reading
    if reading is None:
        return block.mul_(scale[:, None, None, None])
    if part == "k" and reading.shift is not None and reading.rotary is not None:
        shift = reading.shift.flatten()[logical]
        turned = torch.nonzero(shift).flatten()
        block[turned] = rotate(block[turned], shift[turned], reading.rotary)
    if reading.means is None:
        return block.mul_(scale[:, None, None, None])
    means: Tensor = getattr(reading.means, part)
    add, subtract = (index.flatten()[logical].long() for index in (reading.means.add, reading.means.subtract))
    centred = torch.nonzero(add >= 0).flatten()
    block[centred] -= means.index_select(0, subtract[centred]).float()
    block.mul_(scale[:, None, None, None])
    block[centred] += means.index_select(0, add[centred]).float()
    return block


def restore_blocks(pool: Tensor, entries: Tensor, scale: Tensor) -> Tensor:
    """(n, block_size, kv_heads, head_dim) float32: ``scale[i] * pool[entries[i]]``.

    Args:
        pool: (blocks, block_size, kv_heads, head_dim).
        entries: (n,) physical ids.
        scale: (n,) float32.
    """
    return pool.index_select(0, entries.long()).float().mul_(scale[:, None, None, None])


def block_errors(original: PagedLayer, fused: FusedLayer) -> tuple[Tensor, Tensor]:
    """Squared relative error of every block, ‖restored − original‖² / ‖original‖², for keys and values.

    Computed from the restored blocks, a few at a time. Of a partly filled block only the tokens within
    the request's length count. The error against zeros is 0 where zeros are restored, else infinite.

    Args:
        original: the layer before fusion.
        fused: the layer after; its pool may be the same, or compacted.

    Returns:
        (requests, max_blocks) float32 for keys and the same for values; 0 beyond the end of a request.

    Raises:
        InputError: the two layers differ in shapes or in the requests' lengths.

    The errors of the scale rules are in ``ratedist.kernels.fusion.scales``;
    tests/kernels/fusion/test_scales.py holds the two together.
    """
    table = original.table
    if fused.table.entries.shape != table.entries.shape or fused.k.shape[1:] != original.k.shape[1:]:
        raise InputError(
            "fused",
            f"table {tuple(fused.table.entries.shape)}, blocks {tuple(fused.k.shape[1:])}",
            f"must be the fused form of original: table {tuple(table.entries.shape)}, "
            f"blocks {tuple(original.k.shape[1:])}",
        )
    if not torch.equal(fused.table.lengths, table.lengths):
        raise InputError("fused", "other lengths", "must be the fused form of original, with its lengths")

    requests, max_blocks = table.entries.shape
    device = original.k.device
    used = torch.nonzero((torch.arange(max_blocks, device=device) < table.used_blocks[:, None]).flatten())
    logical = used.flatten()
    tokens = table.lengths[logical // max(1, max_blocks)] - logical % max(1, max_blocks) * table.block_size

    results = []
    step = blocks_per_chunk(original.k)
    for part in ("k", "v"):
        errors = torch.zeros(requests * max_blocks, dtype=torch.float32, device=device)
        for start in range(0, len(logical), step):
            chunk = slice(start, start + step)
            written = torch.arange(table.block_size, device=device) < tokens[chunk, None]
            expected = read_blocks(original, part, logical[chunk])
            restored = read_blocks(fused, part, logical[chunk])
            # Selected, not multiplied: what lies beyond the length may be NaN.
            expected = torch.where(written[:, :, None, None], expected, 0.0).flatten(1)
            restored = torch.where(written[:, :, None, None], restored, 0.0).flatten(1)
            power = expected.square().sum(1, dtype=torch.float64)
            difference = restored.sub_(expected).square_().sum(1, dtype=torch.float64)
            errors[logical[chunk]] = torch.where(difference == 0, 0.0, difference / power).float()
        results.append(errors.view(requests, max_blocks))
    return results[0], results[1]
