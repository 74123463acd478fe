"""What one merge in one layer does to the model's own predictions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.layout import FusedLayer
from ratedist.kernels.restore import read_blocks
from ratedist.validate.captures.store import Capture
from ratedist.validate.models import LoadedModel

__all__ = ["check_effect", "merge_effect"]


def check_effect(capture: Capture, loaded: LoadedModel) -> None:
    """Raise InputError where a model cannot be run on a capture's cache."""
    manifest = capture.manifest
    if loaded.weights_hash != manifest.weights_hash:
        raise InputError(
            "model",
            loaded.name,
            f"has other weights than the model of the capture, {manifest.model}; name that one",
        )
    missing = sorted(set(range(manifest.model_layers)) - set(manifest.layers))
    if missing:
        raise InputError(
            "effect", f"layers {missing}", "are not in the capture, which needs all of them; capture again"
        )
    if manifest.sliding_window is not None:
        raise InputError(
            "effect",
            manifest.sliding_window,
            "is a sliding window: what a merge does depends on what is in it; leave the effect out",
        )


def merge_effect(
    capture: Capture, loaded: LoadedModel, layer: int, fused: FusedLayer, merge: dict[str, Any], request: int
) -> dict[str, float] | None:
    """How far the predictions of a request's last block move when a single block of one layer is merged.

    The request's last block of tokens is fed, in float32, over the captured cache of all before it: once as
    it is, once with the merged block as fusion reads it. Everything else stays, all other layers and all
    other merges: this is the merge's own share.

    Args:
        capture: of all the model's layers.
        loaded: the model, see ``check_effect``.
        layer: in which the merge took place.
        fused: that layer after fusion.
        merge: from ``worst_merges``.
        request: index in the capture of the merge's request.

    Returns:
        ``kl_mean`` and ``kl_largest`` over the fed tokens, in nats; None where the merged block is not
        before them.

    Test: tests/validate/inspection/test_inspection.py::test_effect_of_a_merge_is_that_of_the_cache_with_it.
    """
    manifest = capture.manifest
    size = manifest.block_size
    tokens = capture.tokens(request).long()
    start = (len(tokens) - 1) // size * size
    if (merge["block"] + 1) * size > start:
        return None
    width = fused.table.entries.shape[1]
    logical = torch.tensor([merge["request"] * width + merge["block"]])
    pairs = [_prefix(capture, index, request, start) for index in range(manifest.model_layers)]
    before = _predictions(loaded, pairs, tokens[start:])
    place = slice(merge["block"] * size, (merge["block"] + 1) * size)
    k, v = (tensor.clone() for tensor in pairs[layer])
    k[place], v[place] = read_blocks(fused, "k", logical)[0], read_blocks(fused, "v", logical)[0]
    pairs[layer] = (k, v)
    after = _predictions(loaded, pairs, tokens[start:])
    kl = (before.exp() * (before - after)).sum(-1).clamp(min=0.0)
    return {"kl_mean": float(kl.mean()), "kl_largest": float(kl.max())}


def _prefix(capture: Capture, layer: int, request: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values of a request's first tokens, (tokens, kv_heads, head_dim) float32 each."""
    held = capture.layer(layer, [request])
    k, v = (pool.flatten(0, 1)[:tokens].float() for pool in (held.k, held.v))
    return k, v


@torch.inference_mode()
def _predictions(loaded: LoadedModel, pairs: list[tuple[Tensor, Tensor]], tokens: Tensor) -> Tensor:
    """(tokens, vocabulary) float64 log probabilities of what follows each of ``tokens``, over a cache."""
    from transformers.cache_utils import Cache, DynamicLayer

    model = loaded.model
    cache = Cache(layer_class_to_replicate=DynamicLayer)
    for layer, (k, v) in enumerate(pairs):
        key, value = (part.transpose(0, 1)[None].to(model.device, model.dtype) for part in (k, v))
        cache.update(key, value, layer)
    start = len(pairs[0][0])
    positions = torch.arange(start, start + len(tokens), device=model.device)[None]
    result = model(
        input_ids=tokens[None].to(model.device),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    logits: Tensor = result.logits[0].double()
    return logits.log_softmax(-1).cpu()
