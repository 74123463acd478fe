"""Capturing the K and V of prompts run through a real model, and of what it writes after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.validate.captures.batch_memory import fitting_batch
from ratedist.validate.captures.manifest import BatchFile, Manifest, token_hash
from ratedist.validate.captures.passes import check_decoding, generate, prefill
from ratedist.validate.captures.queries import QueryRecorder
from ratedist.validate.captures.store import Capture
from ratedist.validate.captures.writer import CaptureWriter, finished_capture
from ratedist.validate.models import LoadedModel
from ratedist.validate.workloads.prompts import PromptSet

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
    batch_size: int | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    block_size: int = 16,
    decode: int = 0,
    queries: int = 0,
    memory_limit: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Capture:
    """Prefill prompts batch by batch and write their K and V, without padding, rotary positions included.

    The same call goes on where an earlier one was interrupted, and returns a finished capture without
    loading the model's weights. Memory holds one batch: K and V of all its layers, and the activations of
    one chunk.

    With ``decode`` the capture is one taken during decoding: the model continues every prompt greedily, and
    what it wrote is captured behind the prompt, with its tokens (see ``generate``).

    Args:
        loaded: from ``load_model``.
        prompts: from ``build_prompts`` or ``read_prompts``.
        folder: where to write; created where it does not exist.
        layers: layers to keep; default all.
        dtype: storage type, a key of ``DTYPES``; default the type that the model computes in.
        batch_size: requests per batch and file; default ``BATCH_SIZE``, or what ``memory_limit`` admits.
        chunk_tokens: tokens of each request per forward pass, see ``prefill``.
        block_size: default block size that the capture records.
        decode: tokens that the model generates after each prompt.
        queries: at how many of each request's last tokens, generated ones included, the query vectors
            are stored too.
        memory_limit: bytes that a batch may take beside the model's weights, by estimate (``batch_bytes``).
        force: replace another capture in the folder, or write beside other files.
        progress: called after every forward pass.

    Raises:
        InputError: bad arguments, a prompt longer than the model takes, a folder that holds anything
            else (without ``force``), a model without K and V per head, or K or V with NaN or infinity; logits
            that are not finite, or a model that cannot decode these prompts together; a model whose queries
            cannot be taken; or a batch beyond the memory limit.
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
        decode=decode,
        queries=queries,
        memory_limit=memory_limit,
    )
    finished = finished_capture(folder, plan)
    if finished is not None:
        return finished
    model = loaded.model  # before the folder is touched: a model may be refused here
    for file in plan.files:
        check_decoding(
            model, [prompts.prompts[request].token_ids for request in file.requests], decode, loaded.name
        )
    total = sum(plan.lengths)
    with ExitStack() as stack:
        recorder: QueryRecorder | None = None
        if queries:
            recorder = stack.enter_context(QueryRecorder(model, plan.layers, loaded.name))
            recorder.check(plan.query_heads, plan.head_dim)
        writer = stack.enter_context(CaptureWriter(folder, plan, force=force))
        pending = writer.pending
        left = [request for batch in pending for request in plan.files[batch].requests]
        done = total - sum(plan.lengths[request] for request in left)
        for batch in pending:
            requests = plan.files[batch].requests
            ids = [prompts.prompts[request].token_ids for request in requests]
            lengths = [len(request) + decode for request in ids]
            start, tokens = done, sum(lengths)

            def report(share: float, start: int = start, tokens: int = tokens) -> None:
                if progress is not None:
                    progress(start + round(share * tokens), total)

            if recorder is not None:
                recorder.begin([range(length - queries, length) for length in lengths])
            made = generate(
                model,
                ids,
                decode,
                rows=plan.origin["batch_size"],
                chunk_tokens=chunk_tokens,
                max_tokens=loaded.max_tokens,
                recorder=recorder,
                progress=report,
                name=loaded.name,
            )
            written = zip(ids, made.tokens.tolist(), strict=True)
            flat = torch.tensor([token for parts in written for part in parts for token in part])
            kept = _queries(recorder, plan.layers) if recorder is not None else ()
            writer.write(batch, _unpadded(made.kv, lengths, plan.layers), flat.to(torch.int32), kept)
            done += tokens
        return writer.finish()


def plan_capture(
    loaded: LoadedModel,
    prompts: PromptSet,
    *,
    layers: Sequence[int] | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    block_size: int = 16,
    decode: int = 0,
    queries: int = 0,
    memory_limit: int | None = None,
) -> Manifest:
    """The manifest that ``capture_cache`` will write, files still unwritten; arguments and errors as there.

    Batches take the requests from the longest to the shortest (in index order where equal), so that little
    is padded and a batch that does not fit into memory fails first.
    """
    wanted = BATCH_SIZE if batch_size is None else batch_size
    for argument, value, least in (
        ("batch_size", wanted, 1),
        ("chunk_tokens", chunk_tokens, 1),
        ("decode", decode, 0),
        ("queries", queries, 0),
    ):
        if value < least:
            raise InputError(argument, value, f"must be at least {least}")
    if not prompts.prompts:
        raise InputError("prompts", prompts.name, "holds no request")
    lengths = tuple(len(prompt.token_ids) + decode for prompt in prompts.prompts)
    longest = max(range(len(lengths)), key=lambda request: lengths[request])
    if loaded.max_tokens is not None and lengths[longest] > loaded.max_tokens:
        raise InputError(
            "tokens",
            lengths[longest],
            f"request {longest} is longer than {loaded.name} takes ({loaded.max_tokens} tokens); shorten it"
            + (f", or generate fewer than {decode} tokens" if decode else ""),
        )
    _check_rotary(loaded, lengths[longest], decode, chunk_tokens)
    batch_size = fitting_batch(
        loaded,
        lengths[longest] - decode,
        wanted=wanted,
        fixed=batch_size is not None,
        memory_limit=memory_limit,
        chunk_tokens=chunk_tokens,
        decode=decode,
        queries=queries,
    )
    chosen = tuple(range(loaded.layers)) if layers is None else tuple(sorted(set(layers)))
    decisive = [[list(span) for span in prompt.decisive] for prompt in prompts.prompts]
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
        generated=(decode,) * len(lengths) if decode else (),
        queries=queries,
        origin={
            **prompts.origin,
            **({"decisive": decisive} if any(decisive) else {}),
            "compute_dtype": loaded.dtype,
            "device": loaded.device.type,
            "batch_size": batch_size,
            "chunk_tokens": chunk_tokens,
        },
        versions={name: metadata.version(name) for name in ("ratedist", "torch", "transformers")},
    )


def _check_rotary(loaded: LoadedModel, longest: int, decode: int, chunk_tokens: int) -> None:
    """Refuse lengths at which some rotary embeddings change their frequencies, in the middle of a request."""
    kind = loaded.rotary.get("rope_type")
    if kind not in ("dynamic", "longrope"):
        return
    limit = loaded.rotary.get("original_max_position_embeddings") or loaded.max_tokens
    filled = -(-(longest - decode) // chunk_tokens) * chunk_tokens
    if limit is not None and max(filled, longest) > limit:
        raise InputError(
            "tokens",
            longest,
            f"{loaded.name} has a rotary embedding of type {kind}, which changes beyond {limit} tokens "
            "(whole chunks counted); shorten the prompts or the chunks",
        )


def _unpadded(
    kv: list[tuple[Tensor, Tensor]], lengths: Sequence[int], layers: Sequence[int]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(layer, k, v) with k and v (tokens, kv_heads, head_dim): the requests' tokens one after another.

    A request is the end of its row.
    """
    for layer in layers:
        k, v = (
            torch.cat([tensor[row, :, -length:].transpose(0, 1) for row, length in enumerate(lengths)])
            for tensor in kv[layer]
        )
        yield layer, k, v


def _queries(recorder: QueryRecorder, layers: Sequence[int]) -> Iterator[tuple[int, Tensor, float]]:
    """(layer, q, scale) with q (requests · queries, query_heads, head_dim)."""
    for layer in layers:
        yield layer, recorder.found.pop(layer).flatten(0, 1), recorder.scale[layer]
