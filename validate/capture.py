"""Capturing the K and V of prompts run through a real model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.validate.manifest import BatchFile, Manifest, token_hash
from ratedist.validate.models import LoadedModel
from ratedist.validate.prompts import PromptSet
from ratedist.validate.store import Capture
from ratedist.validate.writer import CaptureWriter, finished_capture

__all__ = ["BATCH_SIZE", "CHUNK_TOKENS", "capture_cache", "plan_capture", "prefill"]

BATCH_SIZE = 8
CHUNK_TOKENS = 128

Progress = Callable[[int, int], None]
"""Called with the tokens done and the tokens in total, as they grow."""


def capture_cache(
    loaded: LoadedModel,
    prompts: PromptSet,
    folder: str | Path,
    *,
    layers: Sequence[int] | None = None,
    dtype: str | None = None,
    batch_size: int = BATCH_SIZE,
    chunk_tokens: int = CHUNK_TOKENS,
    block_size: int = 16,
    force: bool = False,
    progress: Progress | None = None,
) -> Capture:
    """Prefill prompts batch by batch and write their K and V, without padding, rotary positions included.

    The same call goes on where an earlier one was interrupted, and returns a finished capture without
    loading the model's weights. Memory holds one batch: K and V of all its layers, and the activations of
    one chunk.

    Args:
        loaded: from ``load_model``.
        prompts: from ``build_prompts`` or ``read_prompts``.
        folder: where to write; created where it does not exist.
        layers: layers to keep; default all.
        dtype: storage type, a key of ``DTYPES``; default the type that the model computes in.
        batch_size: requests per batch and file.
        chunk_tokens: tokens of each request per forward pass, see ``prefill``.
        block_size: default block size that the capture records.
        force: replace another capture in the folder, or write beside other files.
        progress: called after every forward pass.

    Raises:
        InputError: bad arguments, a prompt longer than the model takes, a folder that holds anything
            else (without ``force``), a model without K and V per head, or K or V with NaN or infinity.
        CaptureError: no space left, or the folder cannot be written; what was finished stays.
    """
    plan = plan_capture(
        loaded,
        prompts,
        layers=layers,
        dtype=dtype,
        batch_size=batch_size,
        chunk_tokens=chunk_tokens,
        block_size=block_size,
    )
    finished = finished_capture(folder, plan)
    if finished is not None:
        return finished
    model = loaded.model  # before the folder is touched: a model may be refused here
    total = sum(plan.lengths)
    with CaptureWriter(folder, plan, force=force) as writer:
        pending = writer.pending
        left = [request for batch in pending for request in plan.files[batch].requests]
        done = total - sum(plan.lengths[request] for request in left)
        for batch in pending:
            requests = plan.files[batch].requests
            ids = [prompts.prompts[request].token_ids for request in requests]
            start, tokens = done, sum(map(len, ids))

            def report(share: float, start: int = start, tokens: int = tokens) -> None:
                if progress is not None:
                    progress(start + round(share * tokens), total)

            kv = prefill(
                model,
                ids,
                rows=batch_size,
                chunk_tokens=chunk_tokens,
                max_tokens=loaded.max_tokens,
                progress=report,
            )
            flat = torch.tensor([token for request in ids for token in request], dtype=torch.int32)
            writer.write(batch, _unpadded(kv, list(map(len, ids)), plan.layers), flat)
            done += tokens
        return writer.finish()


def plan_capture(
    loaded: LoadedModel,
    prompts: PromptSet,
    *,
    layers: Sequence[int] | None = None,
    dtype: str | None = None,
    batch_size: int = BATCH_SIZE,
    chunk_tokens: int = CHUNK_TOKENS,
    block_size: int = 16,
) -> Manifest:
    """The manifest that ``capture_cache`` will write, files still unwritten; arguments and errors as there.

    Batches take the requests from the longest to the shortest (in index order where equal), so that little
    is padded and a batch that does not fit into memory fails first.
    """
    for argument, value in (("batch_size", batch_size), ("chunk_tokens", chunk_tokens)):
        if value < 1:
            raise InputError(argument, value, "must be at least 1")
    if not prompts.prompts:
        raise InputError("prompts", prompts.name, "holds no request")
    lengths = tuple(len(prompt.token_ids) for prompt in prompts.prompts)
    longest = max(range(len(lengths)), key=lambda request: lengths[request])
    if loaded.max_tokens is not None and lengths[longest] > loaded.max_tokens:
        raise InputError(
            "tokens",
            lengths[longest],
            f"request {longest} is longer than {loaded.name} takes ({loaded.max_tokens} tokens); shorten it",
        )
    _check_rotary(loaded, lengths[longest], chunk_tokens)
    chosen = tuple(range(loaded.layers)) if layers is None else tuple(sorted(set(layers)))
    order = sorted(range(len(lengths)), key=lambda request: (-lengths[request], request))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return Manifest(
        model=loaded.name,
        weights_hash=loaded.weights_hash,
        dtype=dtype or loaded.dtype,
        layers=chosen,
        model_layers=loaded.layers,
        kv_heads=loaded.kv_heads,
        query_heads=loaded.query_heads,
        head_dim=loaded.head_dim,
        lengths=lengths,
        domains=tuple(prompt.domain for prompt in prompts.prompts),
        workload=prompts.name,
        files=tuple(
            BatchFile(f"batch-{number:05d}.safetensors", tuple(sorted(batch)))
            for number, batch in enumerate(batches)
        ),
        rotary=loaded.rotary,
        layer_types=tuple(loaded.layer_types[layer] for layer in chosen if layer < loaded.layers),
        sliding_window=loaded.sliding_window,
        block_size=block_size,
        seed=prompts.seed,
        token_hashes=tuple(token_hash(prompt.token_ids) for prompt in prompts.prompts),
        origin={
            **prompts.origin,
            "compute_dtype": loaded.dtype,
            "device": loaded.device.type,
            "batch_size": batch_size,
            "chunk_tokens": chunk_tokens,
        },
        versions={name: metadata.version(name) for name in ("ratedist", "torch", "transformers")},
    )


def prefill(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    rows: int,
    chunk_tokens: int,
    max_tokens: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Run prompts through a model and return its cache.

    Every forward pass has the same shape, ``rows`` × ``chunk_tokens``: missing rows and what lies behind the
    end of a prompt are filled with token 0, which no token before it attends to. Matrix products of another
    shape may round differently, and prompts that share a beginning would then get caches that differ in the
    last bit, where a server with a prefix cache has the same bytes.

    Args:
        model: a Hugging Face causal LM.
        prompts: at most ``rows`` lists of token ids.
        rows: requests per forward pass.
        chunk_tokens: tokens per request and forward pass.
        max_tokens: the model's longest sequence, which the last pass must not exceed; None for no limit.
        progress: called with the share of the passes that are done.

    Returns:
        Per layer K and V of shape (len(prompts), kv_heads, tokens, head_dim), tokens up to the longest
        prompt's end and a little beyond. Sliding layers keep all tokens too.
    """
    from transformers.cache_utils import Cache, DynamicLayer

    passes = -(-max(map(len, prompts)) // chunk_tokens)
    width = passes * chunk_tokens
    ids = torch.zeros(rows, width if max_tokens is None else min(width, max_tokens), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids = ids.to(model.device)
    cache = Cache(layer_class_to_replicate=DynamicLayer)
    # Without the language model's head: its logits are not needed and the largest product of small models.
    decoder = model.base_model
    with torch.inference_mode():
        for number, chunk in enumerate(ids.split(chunk_tokens, dim=1), start=1):
            decoder(input_ids=chunk, past_key_values=cache, use_cache=True)
            if progress is not None:
                progress(number / passes)
    held: list[Any] = cache.layers
    return [(layer.keys[: len(prompts)], layer.values[: len(prompts)]) for layer in held]


def _check_rotary(loaded: LoadedModel, longest: int, chunk_tokens: int) -> None:
    """Refuse lengths at which some rotary embeddings change their frequencies, in the middle of a prompt."""
    kind = loaded.rotary.get("rope_type")
    if kind not in ("dynamic", "longrope"):
        return
    limit = loaded.rotary.get("original_max_position_embeddings") or loaded.max_tokens
    if limit is not None and -(-longest // chunk_tokens) * chunk_tokens > limit:
        raise InputError(
            "tokens",
            longest,
            f"{loaded.name} has a rotary embedding of type {kind}, which changes beyond {limit} tokens "
            "(whole chunks counted); shorten the prompts or the chunks",
        )


def _unpadded(
    kv: list[tuple[Tensor, Tensor]], lengths: Sequence[int], layers: Sequence[int]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(layer, k, v) with k and v (tokens, kv_heads, head_dim): the requests' tokens one after another."""
    for layer in layers:
        k, v = (
            torch.cat([tensor[row, :, :length].transpose(0, 1) for row, length in enumerate(lengths)])
            for tensor in kv[layer]
        )
        yield layer, k, v
