"""One layer of a cache that a model fills: a pool that grows with its requests, fused once in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ratedist.kernels.compact import compact
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.quantised import Layer, QuantisedLayer, quantise
from ratedist.kernels.reading import NO_MEAN, Reading

__all__ = ["ForwardPass", "GrowingLayer", "Outcome", "storage_bytes"]

_SPARE_COLUMNS = 8
"""Columns by which a block table grows at least."""


@dataclass(frozen=True)
class ForwardPass:
    """The tokens that one forward pass brings, padding left out: the same for every layer.

    Attributes:
        columns: tokens per request as the model counts them, padding included.
        valid: (requests, columns) bool, which of them are tokens; None where all are.
        query_lengths: (requests,) int64; tokens per request.
        request, block, slot: (tokens,) int64; where each goes, requests one after another.
        new_request, new_block: (new blocks,) int64; logical blocks that begin in this pass.
        blocks: logical blocks of the longest request after it.
        first: whether the cache was empty before.
    """

    columns: int
    valid: Tensor | None
    query_lengths: Tensor
    request: Tensor
    block: Tensor
    slot: Tensor
    new_request: Tensor
    new_block: Tensor
    blocks: int
    first: bool

    @classmethod
    def plan(
        cls, lengths: Tensor, columns: int, valid: Tensor | None, block_size: int, first: bool
    ) -> ForwardPass:
        """Lay out a pass over requests that hold ``lengths`` (requests,) int64 tokens."""
        device = lengths.device
        if valid is None:
            column = torch.arange(columns, device=device)
            position = (lengths[:, None] + column).flatten()
            request = torch.arange(len(lengths), device=device).repeat_interleave(columns)
            counts = torch.full_like(lengths, columns)
        else:
            position = (lengths[:, None] + valid.cumsum(1) - 1)[valid]
            request = torch.nonzero(valid)[:, 0]
            counts = valid.sum(1)
        held, needed = ((n + block_size - 1) // block_size for n in (lengths, lengths + counts))
        blocks = int(needed.max())
        index = torch.arange(blocks, device=device)
        new = torch.nonzero((index >= held[:, None]) & (index < needed[:, None]))
        return cls(
            columns=columns,
            valid=valid,
            query_lengths=counts,
            request=request,
            block=position // block_size,
            slot=position % block_size,
            new_request=new[:, 0],
            new_block=new[:, 1],
            blocks=blocks,
            first=first,
        )

    def pack(self, x: Tensor) -> Tensor:
        """(tokens, heads, head_dim) of (requests, heads, columns, head_dim), padding left out."""
        by_token = x.transpose(1, 2)
        return by_token.flatten(0, 1) if self.valid is None else by_token[self.valid]

    def unpack(self, x: Tensor) -> Tensor:
        """(requests, columns, heads, head_dim) of (tokens, heads, head_dim), zero where padding is."""
        shape = (len(self.query_lengths), self.columns, *x.shape[1:])
        if self.valid is None:
            return x.view(shape)
        result = x.new_zeros(shape)
        result[self.valid] = x
        return result


@dataclass(frozen=True)
class Outcome:
    """What fusion did to a layer.

    Attributes:
        candidates, kept, exact: as ``ratedist.kernels.fusion.result.Fusion`` counts them.
        bytes_before, bytes_after: of all that the layer held before and holds after, tables included.
    """

    candidates: int
    kept: int
    exact: int
    bytes_before: int
    bytes_after: int


class GrowingLayer:
    """Keys and values of one layer in paged blocks; tokens are appended, and blocks are fused once.

    Attributes:
        columns: tokens per request written so far as the model counts them, padding included.
    """

    def __init__(
        self, lengths: Tensor, domains: Tensor, block_size: int, transient: Callable[[int], None]
    ) -> None:
        """Start empty; the pool is made with the first tokens.

        Args:
            lengths: (requests,) int64, shared by all layers: the cache raises it in place before the
                layers are written.
            domains: (requests,) int64.
            block_size: tokens per block.
            transient: called with the bytes that are about to be dropped while their successors exist.
        """
        self.columns = 0
        self._lengths = lengths
        self._domains = domains
        self._block_size = block_size
        self._transient = transient
        self._layer: Layer | None = None
        self._taken = 0

    @property
    def layer(self) -> Layer:
        """The cache as attention reads it, valid until the next write."""
        assert self._layer is not None, "nothing was written yet"
        return self._layer

    def write(self, step: ForwardPass, k: Tensor, v: Tensor) -> None:
        """Append the tokens of a pass, k and v (requests, kv_heads, columns, head_dim).

        Only the last, partly filled block of a request and new blocks are written. Fusion takes full
        blocks alone, so none of these is shared.
        """
        if self._layer is None:
            self._start(step, k)
        self._make_room(step)
        layer = self.layer
        entries = layer.table.entries
        new = torch.arange(self._taken, self._taken + len(step.new_block), device=entries.device)
        entries[step.new_request, step.new_block] = new.int()
        self._taken += len(step.new_block)
        physical = entries[step.request, step.block].long() - _quantised_blocks(layer)
        for name, tokens in zip(_written(layer), (k, v), strict=True):
            getattr(layer, name)[physical, step.slot] = step.pack(tokens.detach())
        self.columns += step.columns

    def fuse(self, options: Mapping[str, Any], bits: int | None = None) -> Outcome:
        """Fuse the blocks held so far, and drop the pool that they came in for one with what is in use.

        With ``bits``, 8 or 4, the full blocks that are kept are quantised then.
        """
        before = sum(map(storage_bytes, self.tensors()))
        held = self.layer
        assert not isinstance(held, QuantisedLayer), "a layer is fused once"
        fusion = fuse(held, **options)
        # Where nothing was absorbed the layer stays as it is, without scales.
        if fusion.absorbed:
            self._put(compact(fusion.layer))
        if bits is not None:
            self._put(quantise(fusion.layer if fusion.absorbed else held, bits))
        after = sum(map(storage_bytes, self.tensors()))
        return Outcome(fusion.candidates, fusion.kept, fusion.exact, before, after)

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that the layer keeps; ``lengths`` and ``domains`` belong to the cache."""
        layer = self._layer
        if layer is None:
            return
        yield layer.table.entries
        if isinstance(layer, QuantisedLayer):
            for pool in (layer.k, layer.v):
                yield from (pool.codes, pool.low, pool.step)
            yield from (layer.k_tail, layer.v_tail)
        else:
            yield from (layer.k, layer.v)
        if isinstance(layer, FusedLayer | QuantisedLayer):
            yield from (layer.k_scale, layer.v_scale)
            if layer.reading is not None:
                yield from _tensors_of(layer.reading)

    def _put(self, layer: FusedLayer | QuantisedLayer) -> None:
        """Go on with a layer whose blocks are all in use."""
        pools = [getattr(layer, name) for name in _written(layer)]
        if isinstance(layer, QuantisedLayer):
            pools += [tensor for pool in (layer.k, layer.v) for tensor in (pool.codes, pool.low, pool.step)]
        self._transient(sum(map(storage_bytes, pools)))
        self._layer = layer
        self._taken = _blocks(layer)

    def _start(self, step: ForwardPass, k: Tensor) -> None:
        requests, kv_heads, _, head_dim = k.shape
        pool = k.new_zeros(len(step.new_block), self._block_size, kv_heads, head_dim)
        entries = torch.full((requests, step.blocks), UNUSED, dtype=torch.int32, device=k.device)
        # Entries are set by the first write, but the table insists on them wherever there are tokens.
        entries[step.new_request, step.new_block] = 0
        self._layer = PagedLayer(
            pool, torch.zeros_like(pool), BlockTable(entries, self._lengths, self._domains, self._block_size)
        )

    def _make_room(self, step: ForwardPass) -> None:
        layer = self.layer
        held, width = _blocks(layer), layer.table.entries.shape[1]
        blocks = self._taken + len(step.new_block)
        if blocks <= held and step.blocks <= width:
            return
        changes: dict[str, Any] = {}
        if blocks > held:
            # In decoding every request needs another block within the next block_size steps: room for all
            # of them at once, so that the pool is copied once in so many steps.
            grown = max(blocks, held + len(self._lengths)) if step.columns == 1 else blocks
            for name in _written(layer):
                pool: Tensor = getattr(layer, name)
                larger = pool.new_zeros(grown - _quantised_blocks(layer), *pool.shape[1:])
                larger[: len(pool)] = pool
                changes[name] = larger
            self._transient(sum(map(storage_bytes, changes.values())))
        columns = max(step.blocks - width, _SPARE_COLUMNS) if step.blocks > width else 0
        entries = _widen(layer.table.entries, columns, UNUSED)
        # The table insists on entries wherever there are tokens; the write sets those of the new blocks.
        entries[step.new_request, step.new_block] = 0
        changes["table"] = BlockTable(entries, self._lengths, self._domains, self._block_size)
        if isinstance(layer, FusedLayer | QuantisedLayer):
            changes["k_scale"] = _widen(layer.k_scale, columns, 1.0)
            changes["v_scale"] = _widen(layer.v_scale, columns, 1.0)
            if layer.reading is not None:
                changes["reading"] = _widen_reading(layer.reading, columns)
        self._layer = replace(layer, **changes)


def _written(layer: Layer) -> tuple[str, str]:
    """The pools that tokens are written to: quantised blocks never are."""
    return ("k_tail", "v_tail") if isinstance(layer, QuantisedLayer) else ("k", "v")


def _quantised_blocks(layer: Layer) -> int:
    """Blocks whose physical ids come before those of the pools that are written to."""
    return len(layer.k.codes) if isinstance(layer, QuantisedLayer) else 0


def _blocks(layer: Layer) -> int:
    """Physical blocks, in use or not."""
    return _quantised_blocks(layer) + len(getattr(layer, _written(layer)[0]))


def storage_bytes(tensor: Tensor) -> int:
    """Bytes of the storage that a tensor keeps alive, all of it even where the tensor is a part."""
    return tensor.untyped_storage().nbytes()


def _tensors_of(reading: Reading) -> Iterator[Tensor]:
    if reading.shift is not None:
        yield reading.shift
    if reading.rotary is not None:
        yield reading.rotary.inverse_frequencies
    if reading.means is not None:
        means = reading.means
        yield from (means.k, means.v, means.add, means.subtract)


def _widen(table: Tensor, columns: int, fill: float) -> Tensor:
    return torch.cat((table, table.new_full((len(table), columns), fill)), dim=1)


def _widen_reading(reading: Reading, columns: int) -> Reading:
    """New blocks are read as they are stored: no shift, no mean."""
    means = reading.means
    if means is not None:
        means = replace(
            means,
            add=_widen(means.add, columns, NO_MEAN),
            subtract=_widen(means.subtract, columns, NO_MEAN),
        )
    shift = None if reading.shift is None else _widen(reading.shift, columns, 0)
    return replace(reading, shift=shift, means=means)
