"""Forward passes of one shape: prefill in chunks, then greedy decoding, over a batch of prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.validate.captures.queries import QueryRecorder

__all__ = ["Generated", "check_decoding", "generate", "prefill"]

Progress = Callable[[float], None]
"""Called with the share of the work that is done."""


def prefill(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    rows: int,
    chunk_tokens: int,
    max_tokens: int | None = None,
    progress: Progress | None = None,
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
        progress: called after every pass.

    Returns:
        Per layer K and V of shape (len(prompts), kv_heads, tokens, head_dim), tokens up to the longest
        prompt's end and a little beyond. Sliding layers keep all tokens too.
    """
    cache, _ = _fill(
        model,
        prompts,
        rows=rows,
        chunk_tokens=chunk_tokens,
        max_tokens=max_tokens,
        recorder=None,
        progress=progress,
    )
    return _held(cache, len(prompts))


@dataclass(frozen=True)
class Generated:
    """Prompts with what a model wrote after them.

    Attributes:
        kv: per layer K and V (prompts, kv_heads, tokens, head_dim); a prompt and its new tokens are the
            last length + new entries of its row.
        tokens: (prompts, new) int64, the new ids.
    """

    kv: list[tuple[Tensor, Tensor]]
    tokens: Tensor


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    rows: int,
    chunk_tokens: int,
    max_tokens: int | None = None,
    recorder: QueryRecorder | None = None,
    progress: Progress | None = None,
    name: str = "model",
) -> Generated:
    """Prefill prompts as ``prefill`` does, then let the model continue each greedily.

    Every step is a pass of ``rows`` × 1 tokens, and the last new token is run too, so that all have K and V.
    Tokens that end a text are never chosen: every prompt gets exactly ``new_tokens``, as in a generation
    with as many tokens at least as at most. Before the first step, caches of prompts of different lengths
    are moved so that they end together, and what lies before a shorter one is masked; prompts of one length
    need no mask, and equal ones then get equal bytes.

    Args:
        model, prompts, rows, chunk_tokens, max_tokens, progress: as in ``prefill``; ``max_tokens`` must
            leave room for the new tokens.
        new_tokens: to be generated after each prompt; with 0, this is ``prefill`` (moved to a common end).
        recorder: an entered one keeps the queries that it wants; its rows are the prompts.
        name: what messages call the model.

    Raises:
        InputError: logits that are not finite (with request and step), or a model that cannot decode such
            prompts, see ``check_decoding``.
    """
    check_decoding(model, prompts, new_tokens, name)
    steps = -(-max(map(len, prompts)) // chunk_tokens) + new_tokens
    passes = steps - new_tokens

    def filling(share: float) -> None:
        if progress is not None:
            progress(share * passes / steps)

    cache, hidden = _fill(
        model,
        prompts,
        rows=rows,
        chunk_tokens=chunk_tokens,
        max_tokens=max_tokens,
        recorder=recorder,
        progress=filling,
    )
    lengths = [len(prompt) for prompt in prompts]
    _end_together(cache, lengths)
    # A missing row is as long as the longest: nothing in it is masked, nothing of it is used.
    longest = max(lengths)
    padded = torch.tensor(lengths + [longest] * (rows - len(lengths)), device=model.device)
    even = min(lengths) == longest
    mask = torch.arange(longest + new_tokens, device=model.device) >= (longest - padded)[:, None]
    ends = _ending_tokens(model)
    tokens = torch.empty(len(prompts), new_tokens, dtype=torch.long)
    decoder, head = model.base_model, model.get_output_embeddings()
    with torch.inference_mode():
        for step in range(new_tokens):
            logits = head(hidden).float()
            _check_logits(logits[: len(prompts)], step, name)
            logits[:, [token for token in ends if token < logits.shape[1]]] = -torch.inf
            chosen = logits.argmax(-1)
            tokens[:, step] = chosen[: len(prompts)].cpu()
            options: dict[str, Any] = {}
            if not even:
                options = {
                    "attention_mask": mask[:, : longest + step + 1].long(),
                    "position_ids": (padded + step)[:, None],
                }
            if recorder is not None:
                recorder.first = [length + step for length in lengths]
            result = decoder(input_ids=chosen[:, None], past_key_values=cache, use_cache=True, **options)
            hidden = result.last_hidden_state[:, -1]
            if progress is not None:
                progress((passes + step + 1) / steps)
    return Generated(_held(cache, len(prompts)), tokens)


def check_decoding(
    model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, name: str = "model"
) -> None:
    """Raise InputError where a model cannot continue such prompts together.

    It needs output embeddings, and position ids where the prompts' lengths differ.
    """
    if not new_tokens:
        return
    if model.get_output_embeddings() is None:
        raise InputError(
            "model",
            name,
            "has no output embeddings to decode with; capture without --decode, or another model",
        )
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    if shortest < longest and "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise InputError(
            "model",
            name,
            f"takes no position ids, so prompts of {shortest} and {longest} tokens cannot be decoded in one "
            "batch; pass --batch-size 1, or prompts of one length (--tokens)",
        )


def _fill(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    rows: int,
    chunk_tokens: int,
    max_tokens: int | None,
    recorder: QueryRecorder | None,
    progress: Progress | None,
) -> tuple[Any, Tensor]:
    """The cache of ``prefill``, and the decoder's output (rows, hidden) at each prompt's last token."""
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
    last: Tensor | None = None
    with torch.inference_mode():
        for number, chunk in enumerate(ids.split(chunk_tokens, dim=1)):
            if recorder is not None:
                recorder.first = [number * chunk_tokens] * len(prompts)
            output = decoder(input_ids=chunk, past_key_values=cache, use_cache=True)[0]
            last = output[:, -1].clone() if last is None else last
            for row, prompt in enumerate(prompts):
                place, offset = divmod(len(prompt) - 1, chunk_tokens)
                if place == number:
                    last[row] = output[row, offset]
            if progress is not None:
                progress((number + 1) / passes)
    assert last is not None
    return cache, last


def _end_together(cache: Any, lengths: Sequence[int]) -> None:
    """Move each row of a cache so that all prompts end at the end; what lay behind one comes before it."""
    longest = max(lengths)
    for layer in cache.layers:
        for name in ("keys", "values"):
            held = getattr(layer, name)[:, :, :longest]
            if min(lengths) < longest:
                held = held.clone()
                for row, length in enumerate(lengths):
                    held[row] = held[row].roll(longest - length, dims=1)
            setattr(layer, name, held)


def _held(cache: Any, count: int) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys[:count], layer.values[:count]) for layer in cache.layers]


def _ending_tokens(model: Any) -> list[int]:
    """Ids of the tokens that end a text, as the model's configuration names them."""
    for config in (getattr(model, "generation_config", None), model.config.get_text_config(decoder=True)):
        named = getattr(config, "eos_token_id", None)
        if named is not None:
            return [int(token) for token in (named if isinstance(named, Sequence) else [named])]
    return []


def _check_logits(logits: Tensor, step: int, name: str) -> None:
    """Refuse NaN or +∞, and a row of −∞ alone; −∞ for some tokens is how models rule them out."""
    finite = torch.isfinite(logits.max(-1).values)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise InputError(
            "model",
            name,
            f"gives logits that are not finite for prompt {row} of the batch at new token {step}; compute in "
            "float32 (--dtype float32), or leave that request out",
        )
