"""Generating with the unmodified model and through the fused cache, in one run, and comparing the two."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.huggingface import CacheReport, FusedCache
from ratedist.records import Record, provenance
from ratedist.validate.models import LoadedModel
from ratedist.validate.planning.layer_settings import layer_settings
from ratedist.validate.planning.plan_file import CachePlan
from ratedist.validate.workloads.prompts import PromptSet

__all__ = ["SCHEMA", "generate_both_ways", "live_tensor_bytes"]

SCHEMA = "ratedist/generate/1"
"""Schema of the record that ``generate_both_ways`` returns."""

_LIKELIEST = 16
"""Tokens of each step whose logits are compared: all of a vocabulary would take too much memory to keep."""

Progress = Callable[[str], None]
"""Called with what is about to run."""


@dataclass
class _Run:
    """What one generation gave.

    Attributes:
        tokens: (requests, new_tokens) int64.
        prefill_seconds, fuse_seconds, decode_seconds: decoding is what follows the first token.
        logits: per step (requests, ``_LIKELIEST``) at the tokens that the unmodified model finds likeliest.
        likeliest: per step those tokens.
        claimed: bytes that the cache says it holds.
        held: bytes of tensors that vanish with the cache.
        report: of a fused cache.
    """

    tokens: Tensor
    prefill_seconds: float
    fuse_seconds: float
    decode_seconds: float
    logits: list[Tensor]
    likeliest: list[Tensor]
    claimed: int
    held: int
    report: CacheReport | None


def generate_both_ways(
    loaded: LoadedModel,
    prompts: PromptSet,
    *,
    new_tokens: int,
    threshold: float | None = None,
    layers: Sequence[int] | None = None,
    block_size: int = 16,
    plan: CachePlan | None = None,
    progress: Progress | None = None,
    command: list[str] | None = None,
    **fuse_options: Any,
) -> Record:
    """Greedy generation three times: the unmodified model, a paged cache without fusion, a fused cache.

    All prompts make one batch, padded on the left. End-of-text tokens are suppressed, so that every
    request gets as many tokens. Each way runs once; its times are those of this machine as it was.

    The record has a row per way, named ``unmodified``, ``paged`` and ``fused``: seconds of prefill, fusing
    and decoding; decoded tokens per second over all requests; ``cache_bytes`` as the cache reports them and
    ``held_bytes``, those of the tensors that vanish from the process with the cache; per request the
    first new token that differs from the unmodified model's (None where none does); the largest
    difference of logits of the likeliest tokens while tokens agree; and what fusion did. Its summary has
    ``unfused_identical``: whether the paged cache gave every token of the unmodified model;
    ``bytes_as_reported``: whether the two counts of bytes agree for both; and texts.

    Args:
        loaded: from ``load_model``.
        prompts: from ``build_prompts`` or ``read_prompts``.
        new_tokens: tokens to generate per request, at least 2.
        threshold, layers, block_size, fuse_options: as ``ratedist.kernels.huggingface.FusedCache``; to be
            left out, all of them, where there is a plan.
        plan: a setting per layer, for this model.
        progress: called before each way.
        command: what the record says made it.

    Raises:
        InputError: arguments outside of that, not one of threshold and plan, a plan for another model or one
            that the cache cannot follow, or prompts too long for the model with what is generated.
    """
    if (threshold is None) == (plan is None):
        raise InputError("threshold", threshold, "give either a threshold or a plan")
    if plan is not None:
        plan.check(loaded)
        block_size = plan.block_size
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, int) or new_tokens < 2:
        raise InputError("new_tokens", new_tokens, "must be an integer of at least 2")
    if not prompts.prompts:
        raise InputError("prompts", prompts.name, "holds no request")
    longest = max(len(prompt.token_ids) for prompt in prompts.prompts)
    if loaded.max_tokens is not None and longest + new_tokens > loaded.max_tokens:
        raise InputError(
            "new_tokens",
            new_tokens,
            f"with a prompt of {longest} tokens this exceeds the {loaded.max_tokens} of {loaded.name}",
        )
    domains = [prompt.domain for prompt in prompts.prompts]
    paged_options: dict[str, Any] = {"threshold": None, "domains": domains, "block_size": block_size}
    what: dict[str, Any] = {"threshold": threshold} if plan is None else {"plan": layer_settings(plan)}
    fused_options: dict[str, Any] = {"domains": domains, "block_size": block_size, "layers": layers}
    fused_options |= what | fuse_options
    # Before the weights are loaded: a wrong option should not take as long.
    FusedCache(loaded.config, **fused_options)
    inputs = _left_padded([prompt.token_ids for prompt in prompts.prompts], loaded.device)
    runs: dict[str, _Run] = {}
    for name, options in (("unmodified", None), ("paged", paged_options), ("fused", fused_options)):
        if progress is not None:
            progress(name)
        likeliest = runs["unmodified"].likeliest if runs else None
        runs[name] = _generate(loaded, inputs, new_tokens, options, likeliest)
    rows = [_row(name, run, runs["unmodified"], len(domains), new_tokens) for name, run in runs.items()]
    summary = {
        "unfused_identical": bool(torch.equal(runs["paged"].tokens, runs["unmodified"].tokens)),
        "bytes_as_reported": all(runs[name].claimed == runs[name].held for name in ("paged", "fused")),
        "requests_unchanged": sum(first is None for first in rows[2]["first_difference"]),
        "compression": rows[2]["fusion"]["compression"],
        "cache_bytes_saved": 1 - runs["fused"].claimed / runs["paged"].claimed,
        "texts": [
            {name: loaded.tokenizer.decode(runs[name].tokens[row]) for name in ("unmodified", "fused")}
            for row in range(min(2, len(domains)))
        ],
    }
    settings = {
        "model": loaded.name,
        "weights_hash": loaded.weights_hash,
        "dtype": loaded.dtype,
        "device": loaded.device.type,
        "threads": torch.get_num_threads(),
        "workload": prompts.name,
        "seed": prompts.seed,
        "requests": len(domains),
        "prompt_tokens": [len(prompt.token_ids) for prompt in prompts.prompts],
        "new_tokens": new_tokens,
        "threshold": threshold,
        "block_size": block_size,
        "fuse_options": fuse_options,
        "plan": None if plan is None else {"goal": plan.goal, "predicted": plan.predicted},
    }
    return Record(SCHEMA, provenance(command, **settings), rows, [summary])


def live_tensor_bytes() -> int:
    """Bytes of the storages of all tensors in the process, ``gc.freeze``'s permanent generation left out."""
    gc.collect()
    storages: dict[tuple[str, int], int] = {}
    for thing in gc.get_objects():
        # By type: isinstance would wake up lazily loaded modules.
        if issubclass(type(thing), Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            storages[str(thing.device), storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class _Watch:
    """A logits processor that changes nothing: takes the time of every step, and keeps logits.

    Fuses after the prompt by itself, which decoding would do, to take the time of that alone.
    """

    def __init__(self, cache: Any, device: torch.device, likeliest: list[Tensor] | None) -> None:
        self.cache = cache
        self.device = device
        self.expected = likeliest
        self.times: list[float] = []
        self.fuse_seconds = 0.0
        self.likeliest: list[Tensor] = []
        self.logits: list[Tensor] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.times.append(_now(self.device))
        if self.cache is not None:
            self.cache.fuse()
            self.cache = None
            self.fuse_seconds = _now(self.device) - self.times[0]
        if self.expected is None:
            likeliest = scores.topk(min(_LIKELIEST, scores.shape[1])).indices
        else:
            likeliest = self.expected[len(self.likeliest)]
        self.likeliest.append(likeliest)
        self.logits.append(scores.gather(1, likeliest))
        return scores


def _generate(
    loaded: LoadedModel,
    inputs: dict[str, Tensor],
    new_tokens: int,
    options: dict[str, Any] | None,
    likeliest: list[Tensor] | None,
) -> _Run:
    model = loaded.model
    # What exists already need not be looked through for tensors: that would take longer than generating.
    gc.freeze()
    try:
        return _generate_and_count(loaded, model, inputs, new_tokens, options, likeliest)
    finally:
        gc.unfreeze()


def _generate_and_count(
    loaded: LoadedModel,
    model: Any,
    inputs: dict[str, Tensor],
    new_tokens: int,
    options: dict[str, Any] | None,
    likeliest: list[Tensor] | None,
) -> _Run:
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=loaded.config) if options is None else FusedCache(model, **options)
    fuses = options is not None and options.get("threshold", options.get("plan")) is not None
    watch = _Watch(cache if fuses else None, loaded.device, likeliest)
    start = _now(loaded.device)
    sequences = model.generate(
        **inputs,
        past_key_values=cache,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
        logits_processor=[watch],
    )
    report = None if options is None else cache.report()
    claimed = _dense_bytes(cache) if report is None else report.resident_bytes
    before = live_tensor_bytes()
    del cache
    held = before - live_tensor_bytes()
    return _Run(
        tokens=sequences[:, -new_tokens:].cpu(),
        prefill_seconds=watch.times[0] - start,
        fuse_seconds=watch.fuse_seconds,
        decode_seconds=watch.times[-1] - watch.times[0] - watch.fuse_seconds,
        logits=watch.logits,
        likeliest=watch.likeliest,
        claimed=claimed,
        held=held,
        report=report,
    )


def _row(name: str, run: _Run, expected: _Run, requests: int, new_tokens: int) -> dict[str, Any]:
    differs = run.tokens != expected.tokens
    first = [int(row.int().argmax()) if bool(row.any()) else None for row in differs]
    # The logits of step i follow the tokens before i, so they are comparable up to the first difference.
    largest = max(
        float((ours - theirs)[row].abs().max())
        for step, (ours, theirs) in enumerate(zip(run.logits, expected.logits, strict=True))
        for row in range(requests)
        if (until := first[row]) is None or step <= until
    )
    return {
        "name": name,
        "prefill_seconds": run.prefill_seconds,
        "fuse_seconds": run.fuse_seconds,
        "decode_seconds": run.decode_seconds,
        "tokens_per_second": requests * (new_tokens - 1) / run.decode_seconds,
        "cache_bytes": run.claimed,
        "held_bytes": run.held,
        "same_tokens": int((~differs).sum()),
        "tokens": differs.numel(),
        "first_difference": first,
        "largest_logit_difference": largest,
        "fusion": None if run.report is None else run.report.as_dict(),
    }


def _dense_bytes(cache: Any) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    )


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
