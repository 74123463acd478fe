"""The Triton kernels of attention over a paged cache, and the one that merges parts of a sequence.

One program takes a tile of rows: query tokens of one request times the query heads that share one KV head.
Causality, the window and the request's end are masks on scores and loads; loops begin and end where the
masks leave something. What the launcher passes is described in
``ratedist.kernels.attention._attention_triton``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ratedist.kernels._launch_triton import kernel
from ratedist.kernels._turning_triton import turned

__all__ = ["attention_kernel", "merge_kernel"]


@triton.jit
def _within(x: tl.tensor, FLOAT16: tl.constexpr) -> tl.tensor:
    """``x``, cut off where float16 ends: a restored cache that was stored would end there too."""
    if FLOAT16:
        x = tl.minimum(tl.maximum(x, -65504.0), 65504.0)
    return x


@triton.jit
def _unpacked(codes: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """(BLOCK_N, BLOCK_D) float32 codes; two to a byte, the lower half first, where there are 4 bits."""
    if BITS == 4:
        codes = tl.join(codes & 15, codes >> 4).reshape([codes.shape[0], 2 * codes.shape[1]])
    return codes.to(tl.float32)


@kernel(
    *("q", "k_pool", "v_pool", "k_mean_pool", "v_mean_pool", "out", "partial", "cosine", "sine"),
    *("k_tail_pool", "v_tail_pool", "k_low", "k_step"),
)
def attention_kernel(
    q: tl.tensor,  # (queries, kv_heads * group, head_dim), dense in head_dim
    # (blocks, block_size, kv_heads, head_dim), dense in head_dim; with BITS, rows of codes
    k_pool: tl.tensor,
    v_pool: tl.tensor,  # as k_pool, with its own strides
    k_low: tl.tensor,  # (coded_blocks, kv_heads, head_dim) float16, dense
    k_step: tl.tensor,  # as k_low
    v_low: tl.tensor,  # (coded_blocks, block_size, kv_heads) float16, dense
    v_step: tl.tensor,  # as v_low
    k_tail_pool: tl.tensor,  # (tails, block_size, kv_heads, head_dim), dense
    v_tail_pool: tl.tensor,  # as k_tail_pool
    k_scale: tl.tensor,  # (requests, max_blocks) float32
    v_scale: tl.tensor,  # (requests, max_blocks) float32
    table: tl.tensor,  # (requests, max_blocks) int32
    lengths: tl.tensor,  # (requests,) int64
    first_query: tl.tensor,  # (requests + 1,) int64; rows of q before each request
    tile_request: tl.tensor,  # (tiles,) int32; request of each tile of rows
    first_tile: tl.tensor,  # (requests,) int64; tiles before each request
    sinks: tl.tensor,  # (kv_heads * group,) float32; -inf for none
    turn: tl.tensor,  # (requests, max_blocks) int32; row of the tables of cosines and sines
    cosine: tl.tensor,  # (turns, head_dim) float32
    sine: tl.tensor,  # (turns, head_dim) float32
    k_mean_pool: tl.tensor,  # (means, block_size, kv_heads, head_dim), dense
    v_mean_pool: tl.tensor,  # as k_mean_pool
    mean_add: tl.tensor,  # (requests, max_blocks) int32; -1 for none
    mean_subtract: tl.tensor,  # (requests, max_blocks) int32; -1 for none
    out: tl.tensor,  # (queries, kv_heads * group, head_dim), dense; written where splits is 1
    partial: tl.tensor,  # (splits, queries, kv_heads * group, head_dim) float32; written elsewhere
    lse: tl.tensor,  # (splits, queries, kv_heads * group) float32, dense
    softmax_scale: tl.float32,
    softcap: tl.float32,  # 0 for none
    window: tl.int32,
    group: tl.int32,
    head_units: tl.int32,
    pair_distance: tl.int32,
    row_count: tl.int64,
    q_row_units: tl.int64,
    q_head_units: tl.int64,
    block_size: tl.int32,
    k_block_units: tl.int64,
    k_token_units: tl.int64,
    k_head_units: tl.int64,
    v_block_units: tl.int64,
    v_token_units: tl.int64,
    v_head_units: tl.int64,
    table_stride: tl.int64,
    scale_request_stride: tl.int64,
    scale_block_stride: tl.int64,
    coded_blocks: tl.int64,
    row_units: tl.int32,
    UNIT: tl.constexpr,
    POOL_UNIT: tl.constexpr,
    BITS: tl.constexpr,
    UPCAST: tl.constexpr,
    FLOAT16: tl.constexpr,
    READING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    request = tl.load(tile_request + tl.program_id(0)).to(tl.int64)
    kv_head = tl.program_id(1)
    kv_heads = tl.num_programs(1)
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    head_dim = head_units * UNIT
    before = tl.load(first_query + request)
    queries = (tl.load(first_query + request + 1) - before).to(tl.int32)
    length = tl.load(lengths + request).to(tl.int32)

    rows = queries * group
    first_row = (tl.program_id(0) - tl.load(first_tile + request)).to(tl.int32) * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    in_rows = row < rows
    position = length - queries + row // group
    head = kv_head * group + row % group
    out_row = (before + row // group) * (kv_heads * group) + head  # of (queries, query_heads)
    scalar = tl.arange(0, BLOCK_D)
    in_head = scalar < head_dim
    byte = tl.arange(0, BLOCK_D // 2 if BITS == 4 else BLOCK_D)
    in_query = in_rows[:, None] & in_head[None, :]
    q_at = ((before + row // group) * q_row_units + head * q_head_units) * UNIT
    query = tl.load(q + q_at[:, None] + scalar[None, :], mask=in_query, other=0.0)
    if UPCAST:
        query = query.to(tl.float32)

    # Tokens that a row of this tile may attend to, and this split's share of them in whole tiles.
    begin = tl.maximum(length - queries + first_row // group - window + 1, 0)
    end = length - queries + (tl.minimum(first_row + BLOCK_M, rows) - 1) // group + 1
    share = tl.cdiv(tl.cdiv(end - begin, BLOCK_N), splits) * BLOCK_N
    begin += split * share
    end = tl.minimum(begin + share, end)

    # A sink is a token of value 0 that the first split has seen already.
    sink = tl.load(sinks + head, mask=in_rows, other=float("-inf"))
    greatest = tl.where(split == 0, sink, float("-inf"))
    total = tl.where(greatest > float("-inf"), 1.0, 0.0)
    weighted = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    unit = tl.full([BLOCK_M], 1.0, dtype=tl.float32)
    for start in range(begin, end, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        exists = token < end
        # Masked by token too: what lies in a block beyond the length may be anything, NaN included.
        inside = exists[:, None] & in_head[None, :]
        logical = token // block_size
        slot = (token % block_size).to(tl.int64)
        table_at = request * table_stride + logical
        physical = tl.load(table + table_at, mask=exists, other=0).to(tl.int64)
        scale_at = request * scale_request_stride + logical * scale_block_stride
        of_key = tl.load(k_scale + scale_at, mask=exists, other=0.0)
        of_value = tl.load(v_scale + scale_at, mask=exists, other=0.0)

        k_at = (physical * k_block_units + slot * k_token_units + kv_head * k_head_units) * POOL_UNIT
        if BITS == 0:
            key = tl.load(k_pool + k_at[:, None] + scalar[None, :], mask=inside, other=0.0)
        else:
            coded = exists & (physical < coded_blocks)
            in_codes = coded[:, None] & (byte < row_units * POOL_UNIT)[None, :]
            dequantised = coded[:, None] & in_head[None, :]
            codes = tl.load(k_pool + k_at[:, None] + byte[None, :], mask=in_codes, other=0)
            at = ((physical * kv_heads + kv_head) * head_units * UNIT)[:, None] + scalar[None, :]
            low = tl.load(k_low + at, mask=dequantised, other=0.0).to(tl.float32)
            step = tl.load(k_step + at, mask=dequantised, other=0.0).to(tl.float32)
            # What is not among the codes stands in the tail; each of the two is 0 where the other is read.
            tail_token = ((physical - coded_blocks) * block_size + slot) * kv_heads + kv_head
            tail_at = (tail_token * head_units * UNIT)[:, None] + scalar[None, :]
            in_tail = inside & (physical >= coded_blocks)[:, None]
            tail = tl.load(k_tail_pool + tail_at, mask=in_tail, other=0.0).to(tl.float32)
            key = low + step * _unpacked(codes, BITS) + tail
        if READING:
            turn_of = tl.load(turn + table_at, mask=exists, other=0)
            add = tl.load(mean_add + table_at, mask=exists, other=-1).to(tl.int64)
            subtract = tl.load(mean_subtract + table_at, mask=exists, other=-1).to(tl.int64)
            centred = inside & (add >= 0)[:, None]
            mean_at = (slot * kv_heads + kv_head) * head_units
            mean_block = block_size * kv_heads.to(tl.int64) * head_units
            add_at = ((add * mean_block + mean_at) * UNIT)[:, None] + scalar[None, :]
            subtract_at = ((subtract * mean_block + mean_at) * UNIT)[:, None] + scalar[None, :]
            back = tl.load(k_mean_pool + add_at, mask=centred, other=0.0)
            away = tl.load(k_mean_pool + subtract_at, mask=centred, other=0.0)
            if UPCAST:
                key = key.to(tl.float32)
            key = turned(key, turn_of, cosine, sine, head_dim, pair_distance, scalar, inside)
            restored = _within(back.to(tl.float32) + of_key[:, None] * (key - away.to(tl.float32)), FLOAT16)
            key = restored.to(query.dtype)
            score = tl.dot(query, tl.trans(key), input_precision="ieee")
            if query.dtype != tl.float32:
                # What rounding takes from a restored block is multiplied too.
                rest = (restored - key.to(tl.float32)).to(query.dtype)
                score = tl.dot(query, tl.trans(rest), score, input_precision="ieee")
            score *= softmax_scale
        else:
            if UPCAST:
                key = key.to(tl.float32)
            score = tl.dot(query, tl.trans(key), input_precision="ieee")
            score *= (softmax_scale * of_key)[None, :]
        if softcap > 0:
            # tanh x = 1 - 2 / (exp 2x + 1), which is right where exp overflows too.
            score = softcap - 2 * softcap / (tl.exp(score * (2 / softcap)) + 1)
        seen = exists[None, :] & (token[None, :] <= position[:, None])
        seen &= token[None, :] > (position - window)[:, None]
        score = tl.where(seen, score, float("-inf"))

        higher = tl.maximum(greatest, tl.max(score, axis=1))
        # exp(-inf - -inf) is NaN: where nothing was seen yet subtract 0, and every weight is 0.
        level = tl.where(higher == float("-inf"), 0.0, higher)
        faded = tl.exp(greatest - level)
        weight = tl.exp(score - level[:, None])
        greatest = higher
        total = total * faded + tl.sum(weight, axis=1)

        v_at = (physical * v_block_units + slot * v_token_units + kv_head * v_head_units) * POOL_UNIT
        if BITS == 0:
            value = tl.load(v_pool + v_at[:, None] + scalar[None, :], mask=inside, other=0.0)
            if UPCAST:
                value = value.to(tl.float32)
        else:
            codes = tl.load(v_pool + v_at[:, None] + byte[None, :], mask=in_codes, other=0)
            at = (physical * block_size + slot) * kv_heads + kv_head
            low = tl.load(v_low + at, mask=coded, other=0.0).to(tl.float32)
            step = tl.load(v_step + at, mask=coded, other=0.0).to(tl.float32)
            tail = tl.load(v_tail_pool + tail_at, mask=in_tail, other=0.0).to(tl.float32)
            value = low[:, None] + step[:, None] * _unpacked(codes, BITS) + tail
        if not READING:
            weight = weight * of_value[None, :]
            if FLOAT16:
                # A scale is any number and float16 ends at 65504: weights and sums are in units, of which
                # every row has its own, that keep the weights within 1.
                faded = unit * faded
                unit = tl.maximum(faded, tl.max(tl.abs(weight), axis=1))
                divisor = tl.where(unit > 0, unit, 1.0)
                faded = faded / divisor
                weight = weight / divisor[:, None]
        weighted = weighted * faded[:, None]
        if READING:
            back = tl.load(v_mean_pool + add_at, mask=centred, other=0.0).to(tl.float32)
            away = tl.load(v_mean_pool + subtract_at, mask=centred, other=0.0).to(tl.float32)
            restored = _within(back + of_value[:, None] * (value.to(tl.float32) - away), FLOAT16)
            value = restored.to(query.dtype)
            weight = weight.to(query.dtype)
            weighted = tl.dot(weight, value, weighted, input_precision="ieee")
            if query.dtype != tl.float32:
                rest = (restored - value.to(tl.float32)).to(query.dtype)
                weighted = tl.dot(weight, rest, weighted, input_precision="ieee")
        else:
            weighted = tl.dot(weight.to(value.dtype), value, weighted, input_precision="ieee")

    attended = total > 0
    total = tl.where(attended, total, 1.0)
    weighted = weighted * (unit / total)[:, None]
    log_sum = tl.where(attended, greatest + tl.log(total), float("-inf"))
    tl.store(lse + split * row_count + out_row, log_sum, mask=in_rows)
    if splits == 1:
        tl.store(out + out_row[:, None] * head_dim + scalar[None, :], weighted, mask=in_query)
    else:
        at = (split * row_count + out_row)[:, None] * head_dim + scalar[None, :]
        tl.store(partial + at, weighted, mask=in_query)


@kernel("partial_pool", "out")
def merge_kernel(
    partial_pool: tl.tensor,  # (splits, rows, head_dim) float32, dense
    partial_lse: tl.tensor,  # (splits, rows) float32, dense
    out: tl.tensor,  # (rows, head_dim), dense
    lse: tl.tensor,  # (rows,) float32
    row_count: tl.int64,
    splits: tl.int32,
    head_units: tl.int32,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """out = sum exp(partial_lse) partial / sum exp(partial_lse), lse = ln of the latter, over the splits."""
    head_dim = head_units * UNIT
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows = row < row_count
    scalar = tl.arange(0, BLOCK_D)
    inside = in_rows[:, None] & (scalar < head_dim)[None, :]
    greatest = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    weighted = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for split in range(splits):
        at = split * row_count + row
        part_lse = tl.load(partial_lse + at, mask=in_rows, other=float("-inf"))
        part = tl.load(partial_pool + (at * head_dim)[:, None] + scalar[None, :], mask=inside, other=0.0)
        higher = tl.maximum(greatest, part_lse)
        level = tl.where(higher == float("-inf"), 0.0, higher)
        faded = tl.exp(greatest - level)
        weight = tl.exp(part_lse - level)
        greatest = higher
        total = total * faded + weight
        weighted = weighted * faded[:, None] + part * weight[:, None]
    attended = total > 0
    total = tl.where(attended, total, 1.0)
    tl.store(out + (row * head_dim)[:, None] + scalar[None, :], weighted / total[:, None], mask=inside)
    tl.store(lse + row, tl.where(attended, greatest + tl.log(total), float("-inf")), mask=in_rows)
