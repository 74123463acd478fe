"""Paged caches for tests: aliased, shuffled, ragged, and poisoned wherever nothing may be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.quantised import Layer, QuantisedLayer
from ratedist.kernels.reading import Means, Reading
from ratedist.kernels.rotary import Rotary


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_layer(
    lengths: Sequence[int],
    *,
    block_size: int = 4,
    kv_heads: int = 2,
    head_dim: int = 24,
    dtype: torch.dtype = torch.float32,
    fused: bool = True,
    seed: int = 0,
) -> PagedLayer | FusedLayer:
    """A layer whose table is shuffled and aliased, with NaN in all that no request holds.

    NaN stands in unused blocks (block 0, which padding tends to read, among them), in the tokens of partly
    filled blocks beyond the length, and in scales beyond the end. Entries beyond the end are stale: some name
    poisoned blocks, the last is UNUSED.
    """
    random = generator(seed)
    requests = len(lengths)
    needed = [-(-length // block_size) for length in lengths]
    max_blocks = max(needed, default=0) + 2
    blocks = 2 * sum(needed) + 3
    k = torch.full((blocks, block_size, kv_heads, head_dim), float("nan"))
    v = k.clone()
    order = (torch.randperm(blocks - 1, generator=random) + 1).tolist()
    stale = order.pop()
    full_blocks: list[int] = []
    entries = torch.full((requests, max_blocks), UNUSED, dtype=torch.int32)
    for request, length in enumerate(lengths):
        entries[request, needed[request] : -1] = stale
        for block in range(needed[request]):
            tokens = min(block_size, length - block * block_size)
            share = (
                tokens == block_size and len(full_blocks) > 0 and float(torch.rand(1, generator=random)) < 0.5
            )
            if share:
                chosen = int(torch.randint(len(full_blocks), (1,), generator=random))
                physical = full_blocks[chosen]
            else:
                physical = order.pop()
                for pool in (k, v):
                    pool[physical, :tokens] = torch.randn(tokens, kv_heads, head_dim, generator=random)
                if tokens == block_size:
                    full_blocks.append(physical)
            entries[request, block] = physical
    table = BlockTable(
        entries,
        torch.tensor(lengths, dtype=torch.int64),
        torch.zeros(requests, dtype=torch.int64),
        block_size,
    )
    k, v = k.to(dtype), v.to(dtype)
    if not fused:
        return PagedLayer(k, v, table)
    scales = []
    for _ in range(2):
        scale = 0.5 + torch.rand(requests, max_blocks, generator=random)
        beyond = torch.arange(max_blocks) >= table.used_blocks[:, None]
        scales.append(scale.masked_fill(beyond, float("nan")))
    return FusedLayer(k, v, table, *scales)


def with_reading(layer: FusedLayer, style: str, rotary_dim: int, seed: int = 0) -> FusedLayer:
    """The layer with a reading: some blocks with a shift, with means, with both or with neither."""
    random = generator(seed + 1)
    shape = layer.table.entries.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, shape, generator=random, dtype=torch.int32)

    centred = draw(2).bool()
    means = Means(
        *(torch.randn(3, *layer.k.shape[1:], generator=random).to(layer.k.dtype) for _ in range(2)),
        add=torch.where(centred, draw(3), -1),
        subtract=torch.where(centred, draw(3), -1),
    )
    rotary = Rotary.from_base(500.0, rotary_dim, style)
    return dataclasses.replace(layer, reading=Reading(draw(2) * (draw(4000) - 2000), rotary, means))


def make_query(layer: PagedLayer | FusedLayer, group: int, seed: int = 1) -> Tensor:
    """(requests, group * kv_heads, head_dim) in the layer's dtype."""
    kv_heads, head_dim = layer.k.shape[2:]
    shape = (layer.table.requests, group * kv_heads, head_dim)
    return torch.randn(shape, generator=generator(seed)).to(layer.k.dtype)


def read_token(layer: Layer, request: int, token: int) -> tuple[Tensor, Tensor]:
    """(kv_heads, head_dim) float64 key and value as the formulas of ``FusedLayer`` and ``Reading`` say."""
    block, slot = divmod(token, layer.k.shape[1])
    physical = int(layer.table.entries[request, block])
    if isinstance(layer, QuantisedLayer):
        key, value = quantised_token(layer, physical, slot)
    else:
        key, value = layer.k[physical, slot].double(), layer.v[physical, slot].double()
    if isinstance(layer, PagedLayer):
        return key, value
    k_scale, v_scale = float(layer.k_scale[request, block]), float(layer.v_scale[request, block])
    reading = layer.reading
    if reading is not None and reading.shift is not None and reading.rotary is not None:
        angles = int(reading.shift[request, block]) * reading.rotary.inverse_frequencies.double()
        half = len(angles)
        turning = key[:, : 2 * half]
        pairs = (
            torch.complex(turning[:, :half], turning[:, half:])
            if reading.rotary.style == "half"
            else torch.view_as_complex(turning.reshape(-1, half, 2))
        ) * torch.polar(torch.ones_like(angles), angles)
        turned = torch.view_as_real(pairs)
        if reading.rotary.style == "half":
            turned = turned.transpose(1, 2)
        key = torch.cat((turned.flatten(1), key[:, 2 * half :]), dim=1)
    if reading is None or reading.means is None or int(reading.means.add[request, block]) < 0:
        return key * k_scale, value * v_scale
    means = reading.means
    add, subtract = int(means.add[request, block]), int(means.subtract[request, block])
    key = means.k[add, slot].double() + k_scale * (key - means.k[subtract, slot].double())
    value = means.v[add, slot].double() + v_scale * (value - means.v[subtract, slot].double())
    return key, value


def quantised_token(layer: QuantisedLayer, physical: int, slot: int) -> tuple[Tensor, Tensor]:
    """(kv_heads, head_dim) float64 key and value of a token, code by code, or from the tail."""
    coded = len(layer.k.codes)
    if physical >= coded:
        return layer.k_tail[physical - coded, slot].double(), layer.v_tail[physical - coded, slot].double()
    read = []
    for pool, per_token in ((layer.k, False), (layer.v, True)):
        row = torch.zeros(pool.shape[2], pool.head_dim, dtype=torch.float64)
        for head in range(pool.shape[2]):
            for channel in range(pool.head_dim):
                where = (physical, slot, head, 0) if per_token else (physical, 0, head, channel)
                if pool.bits == 8:
                    code = int(pool.codes[physical, slot, head, channel])
                else:
                    code = int(pool.codes[physical, slot, head, channel // 2]) // 16 ** (channel % 2) % 16
                row[head, channel] = float(pool.low[where]) + float(pool.step[where]) * code
        read.append(row)
    return read[0], read[1]


def attention_oracle(
    q: Tensor,
    layer: Layer,
    query_lengths: Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention in float64, token by token through the block table: shares no code with what is tested."""
    kv_heads, head_dim = layer.k.shape[2:]
    if softmax_scale is None:
        softmax_scale = head_dim**-0.5
    out = torch.zeros(q.shape, dtype=torch.float64)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=torch.float64)
    group = q.shape[1] // kv_heads
    row = 0
    for request, length in enumerate(layer.table.lengths.tolist()):
        keys = torch.zeros(length, kv_heads, head_dim, dtype=torch.float64)
        values = keys.clone()
        for token in range(length):
            keys[token], values[token] = read_token(layer, request, token)
        queries = 1 if query_lengths is None else int(query_lengths[request])
        for position in range(length - queries, length):
            seen = torch.tensor(
                [t for t in range(position + 1) if window is None or t > position - window], dtype=torch.int64
            )
            for head in range(q.shape[1]):
                score = keys[seen, head // group] @ q[row, head].double() * softmax_scale
                if softcap is not None:
                    score = softcap * (score / softcap).tanh()
                weight = score.exp()
                total = weight.sum() + (0.0 if sinks is None else float(sinks[head].double().exp()))
                lse[row, head] = total.log()
                if len(seen):
                    out[row, head] = weight @ values[seen, head // group] / total
            row += 1
    return out, lse


def decode_oracle(
    q: Tensor, layer: PagedLayer | FusedLayer, softmax_scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """``attention_oracle`` of one query per request."""
    return attention_oracle(q, layer, softmax_scale=softmax_scale)
