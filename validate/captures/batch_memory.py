"""How much memory a batch takes while it is captured, and how many requests fit."""

from __future__ import annotations

from ratedist.errors import InputError
from ratedist.validate.captures.manifest import DTYPES
from ratedist.validate.models import LoadedModel

__all__ = ["batch_bytes", "fitting_batch", "readable_bytes"]


def batch_bytes(
    loaded: LoadedModel, rows: int, tokens: int, *, chunk_tokens: int, decode: int = 0, queries: int = 0
) -> int:
    """Estimate of the bytes that capturing one batch takes beside the model's weights, rather too high.

    Counted are K and V of all layers up to the end of the last chunk, one layer of them twice more (while it
    grows, and while it is written), once more per query head (attention repeats them for grouped heads), the
    activations of one chunk, its mask, logits where tokens are decoded, and the queries that are kept.
    tests/validate/captures/test_batch_memory.py compares it with what torch allocates.

    Args:
        loaded: the model; its weights are not needed.
        rows: requests of the batch.
        tokens: of the longest prompt.
        chunk_tokens: per request and pass.
        decode: tokens generated after each prompt.
        queries: last tokens of which queries are kept.
    """
    text = loaded.config.get_text_config(decoder=True)
    size = DTYPES[loaded.dtype].itemsize
    hidden = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    width = -(-tokens // chunk_tokens) * chunk_tokens + decode
    per_head = 2 * rows * width * loaded.head_dim * size
    layer = per_head * loaded.kv_heads
    cache = loaded.layers * layer + 2 * layer + per_head * loaded.query_heads
    # Residual, normalised, q, k, v, attention output, and the MLP's gate, up, activation and product.
    heads = (2 * loaded.query_heads + 2 * loaded.kv_heads) * loaded.head_dim
    activations = rows * chunk_tokens * (4 * hidden + heads + 4 * inner) * size
    # Some implementations compute in float32 for a moment.
    activations += rows * chunk_tokens * max(hidden, inner) * 4
    mask = rows * chunk_tokens * width * max(size, 4)
    logits = 3 * rows * text.vocab_size * 4 if decode else 0
    kept = rows * queries * loaded.layers * loaded.query_heads * loaded.head_dim * size
    return cache + activations + mask + logits + kept


def fitting_batch(
    loaded: LoadedModel,
    tokens: int,
    *,
    wanted: int,
    fixed: bool,
    memory_limit: int | None,
    chunk_tokens: int,
    decode: int = 0,
    queries: int = 0,
) -> int:
    """Requests per batch: ``wanted``, or as many of them as fit into a limit.

    Args:
        loaded, tokens, chunk_tokens, decode, queries: as in ``batch_bytes``.
        wanted: at most so many.
        fixed: refuse where so many do not fit, instead of taking fewer.
        memory_limit: bytes beside the model's weights; None for no limit.

    Raises:
        InputError: the limit does not admit ``wanted`` requests (where fixed) or not even one; the message
            says what is needed and what would fit.
    """
    if memory_limit is None:
        return wanted

    def needed(rows: int) -> int:
        return batch_bytes(loaded, rows, tokens, chunk_tokens=chunk_tokens, decode=decode, queries=queries)

    limit = readable_bytes(memory_limit)
    fit = next((rows for rows in range(wanted, 0, -1) if needed(rows) <= memory_limit), 0)
    if fit == 0:
        raise InputError(
            "memory_limit",
            limit,
            f"one request of {tokens} tokens takes about {readable_bytes(needed(1))} beside the model's "
            "weights; raise the limit, or shorten the prompts (--tokens) or the passes (--chunk-tokens)",
        )
    if fixed and fit < wanted:
        raise InputError(
            "batch_size",
            wanted,
            f"takes about {readable_bytes(needed(wanted))} beside the model's weights, and the memory limit "
            f"is {limit}; {fit} would fit",
        )
    return fit


def readable_bytes(count: int) -> str:
    """A number of bytes with a unit, as in ``1.5 GB``."""
    value, power = float(count), 0
    while value >= 999.5 and power < 4:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
