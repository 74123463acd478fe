"""What a compressed cache does to a model's output: continuations over it and over the original.

Every request is a prefix, whose cache is compressed, and a continuation: its tokens are fed in one pass over
either cache (teacher forcing), in the same batches and by the same code, and the predictions for the token
after each are compared. Nothing compressed therefore gives a divergence of exactly 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import Fusion
from ratedist.kernels.layout import UNUSED, BlockTable, PagedLayer
from ratedist.validate.captures.capture import BATCH_SIZE, CHUNK_TOKENS, prefill
from ratedist.validate.captures.manifest import DTYPES
from ratedist.validate.compare import ALONE_AT_EACH_END
from ratedist.validate.models import LoadedModel
from ratedist.validate.quality.attention_probe import AttentionCall, AttentionProbe
from ratedist.validate.quality.methods import LayerCache, Method, compress
from ratedist.validate.workloads.prompts import PromptSet

__all__ = ["LayerTrial", "Quality", "QualitySession", "divergence"]

FloatArray = NDArray[np.float64]

Progress = Callable[[float], None]
"""Called with the share that is done."""


@dataclass(frozen=True)
class Quality:
    """What one method did; R requests, m tokens of continuation, L layers to fuse.

    Attributes:
        kl: (R, m) KL divergence of the next-token distribution over the compressed cache from that over the
            original, in nats.
        same_top1: (R, m) bool: both find the same token most likely.
        delta_nll: (R, m): how much less likely the text's own next token became, in nats; its mean is the
            change in log perplexity.
        k_error2, v_error2: (L, R): mean over a request's full blocks of ‖restored − original‖² / ‖original‖²;
            None where tokens are hidden rather than changed.
        attention_error2: (L, R): ‖o′ − o‖² / ‖o‖² of the attention output over all of a request's
            continuation, with the queries of the original; the same queries over both caches.
        bytes: (R,): what the whole cache takes for each request, what is shared split evenly.
        unfused_bytes: (R,): what the original takes.
        fusions: fusion by layer, where there was one.
    """

    kl: FloatArray
    same_top1: NDArray[np.bool_]
    delta_nll: FloatArray
    k_error2: FloatArray | None
    v_error2: FloatArray | None
    attention_error2: FloatArray
    bytes: FloatArray
    unfused_bytes: FloatArray
    fusions: dict[int, Fusion]

    @property
    def compression(self) -> float:
        """Bytes of the whole original cache over those of the compressed one."""
        return float(self.unfused_bytes.sum() / self.bytes.sum())


@dataclass(frozen=True)
class LayerTrial:
    """What compressing one layer alone gives.

    Attributes:
        bytes: of the layer, over all requests.
        attention_error2: (R,) as in ``Quality``.
    """

    bytes: float
    attention_error2: FloatArray


class QualitySession:
    """A model, requests with their original cache, and the model's predictions over it.

    Memory holds the original cache, one restored one, and the predictions of every continuation
    (requests × tokens × vocabulary in float32).

    Attributes:
        loaded: the model.
        prompts: the requests.
        continuation: tokens fed after each prefix.
        layers: layers to fuse.
        dtype: type in which the original cache is stored.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: PromptSet,
        *,
        continuation: int = 32,
        layers: tuple[int, ...] | None = None,
        block_size: int = 16,
        store_dtype: str | None = None,
        eviction: bool = False,
        batch_size: int = BATCH_SIZE,
        chunk_tokens: int = CHUNK_TOKENS,
        progress: Progress | None = None,
    ) -> None:
        """Prefill the prefixes (all but the last ``continuation`` + 1 tokens of every request) and run the
        continuations over the original cache.

        Args:
            loaded: from ``load_model``.
            prompts: requests; the token after the continuation is only compared with.
            continuation: tokens fed after the prefix.
            layers: layers to fuse; default all but the model's first and last two.
            block_size: tokens per block.
            store_dtype: type that the original cache is stored in; default the model's where it has 16 bits,
                else bfloat16, so that compression is counted from 16 bits a scalar.
            eviction: also sum up the attention that tokens receive, which methods that evict go by.
            batch_size, chunk_tokens: of the prefill, as in ``ratedist.validate.captures.capture.prefill``.
            progress: called as the prefill goes on.

        Raises:
            InputError: a request too short for a block and its continuation or longer than the model takes; a
                model that takes no position ids, whose attention cannot be watched, or that gives logits
                that are not finite; unknown layers or dtype.
        """
        self.loaded, self.prompts, self.continuation = loaded, prompts, continuation
        self.block_size, self.batch_size = block_size, batch_size
        self.layers = _checked_layers(loaded, layers)
        self.dtype = store_dtype or (loaded.dtype if loaded.dtype != "float32" else "bfloat16")
        if self.dtype not in DTYPES:
            raise InputError("store_dtype", self.dtype, f"must be one of {', '.join(DTYPES)}")
        _check_prompts(loaded, prompts, continuation, block_size)
        ids = [prompt.token_ids for prompt in prompts.prompts]
        self.lengths = [len(tokens) - continuation - 1 for tokens in ids]
        self.model = loaded.model
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            raise InputError(
                "model",
                loaded.name,
                "takes no position ids, so a continuation cannot be put behind a restored cache; take a "
                "model with rotary or learned positions",
            )
        self._ids = torch.tensor([tokens[-continuation - 1 :] for tokens in ids])
        self._probe = AttentionProbe(self.model, loaded.name)
        self._received: list[Tensor] | None = [] if eviction else None
        self._prefill(ids, chunk_tokens, progress)
        # Requests of one length go together, so that nothing is padded in front of the continuation.
        by_length: dict[int, list[int]] = {}
        for request, length in enumerate(self.lengths):
            by_length.setdefault(length, []).append(request)
        self._batches = [
            rows[start : start + batch_size]
            for rows in by_length.values()
            for start in range(0, len(rows), batch_size)
        ]
        self._calls: list[dict[int, AttentionCall]] = []
        self._reference: list[Tensor] = []
        original = [self._dense(self._k[layer], self._v[layer]) for layer in range(loaded.layers)]
        with self._probe as probe:
            for rows in self._batches:
                probe.calls = {}
                self._reference.append(self._run(rows, original, {}, "the original cache"))
                self._calls.append({layer: probe.calls[layer] for layer in self.layers})
            probe.calls = None

    @property
    def requests(self) -> int:
        """Number of requests."""
        return len(self.lengths)

    @property
    def log_perplexity(self) -> float:
        """Mean over all continuations of −ln p of the text's own next token, over the original cache."""
        total = 0.0
        for rows, logits in zip(self._batches, self._reference, strict=True):
            for request, predicted in zip(rows, logits, strict=True):
                following = self._ids[request, 1:].to(predicted.device)
                total -= float(torch.log_softmax(predicted.double(), -1).gather(1, following[:, None]).sum())
        return total / (self.requests * self.continuation)

    def layer(self, index: int) -> LayerCache:
        """One layer of the original cache, as methods get it."""
        blocks = self._k[index].shape[1] // self.block_size
        lengths = torch.tensor(self.lengths)
        entries = torch.arange(self.requests * blocks, dtype=torch.int32).view(self.requests, blocks)
        used = torch.arange(blocks) < (-(-lengths // self.block_size))[:, None]
        device = self._k[index].device
        table = BlockTable(
            torch.where(used, entries, UNUSED).to(device),
            lengths.to(device),
            torch.tensor([prompt.domain for prompt in self.prompts.prompts], device=device),
            self.block_size,
        )
        k, v = (
            x.reshape(self.requests * blocks, self.block_size, *x.shape[2:])
            for x in (self._k[index], self._v[index])
        )
        received = None if self._received is None else self._received[index]
        return LayerCache(index, PagedLayer(k, v, table), index in self.layers, received)

    def measure(self, method: Method | Mapping[int, Method]) -> Quality:
        """Compress the cache by a method, and compare with the original.

        Args:
            method: for all layers, or one per layer; layers that are not named stay as they are.

        Raises InputError where the method cannot be applied, or makes the model's logits infinite or NaN.
        """
        methods = method if isinstance(method, Mapping) else dict.fromkeys(range(self.loaded.layers), method)
        name = "the plan" if isinstance(method, Mapping) else method.name
        size = np.zeros(self.requests)
        unfused = np.zeros(self.requests)
        errors: list[list[FloatArray]] = [[], []]
        hidden: dict[int, Tensor] = {}
        fusions: dict[int, Fusion] = {}
        restored: list[tuple[Tensor, Tensor]] = []
        for index in range(self.loaded.layers):
            layer = self.layer(index)
            touched = methods.get(index, Method()) != Method()
            result = compress(methods.get(index, Method()), layer)
            size += result.bytes.cpu().numpy()
            row = 2 * self._k[index].shape[2] * self._k[index].shape[3] * self._k[index].element_size()
            unfused += np.array(self.lengths, dtype=np.float64) * row
            if result.hidden is not None:
                hidden[index] = result.hidden
            elif layer.shared:
                for found, before, after in zip(
                    errors, (self._k[index], self._v[index]), (result.k, result.v), strict=True
                ):
                    found.append(self._block_error2(before, after) if touched else np.zeros(self.requests))
            if result.fusion is not None:
                fusions[index] = result.fusion
            restored.append(self._dense(result.k, result.v))
        parts: list[tuple[FloatArray, NDArray[np.bool_], FloatArray]] = []
        attention = np.zeros((len(self.layers), self.requests))
        with self._probe as probe:
            for rows, calls, reference in zip(self._batches, self._calls, self._reference, strict=True):
                masks = {index: mask[rows, :, : self.lengths[rows[0]]] for index, mask in hidden.items()}
                for position, index in enumerate(self.layers):
                    if methods.get(index, Method()) == Method():
                        continue  # read as it was: its errors are 0
                    pair = self._rows(restored[index], rows)
                    attention[position, rows] = self._attention_error2(
                        probe, calls[index], pair, masks.get(index)
                    )
                logits = self._run(rows, restored, masks, f"the cache after {name}")
                parts.append(divergence(reference, logits, self._ids[rows, 1:]))
        order = np.argsort([request for rows in self._batches for request in rows])
        kl, same, delta = (np.concatenate(column)[order] for column in zip(*parts, strict=True))
        return Quality(
            kl=kl,
            same_top1=same,
            delta_nll=delta,
            k_error2=None if hidden else np.stack(errors[0]),
            v_error2=None if hidden else np.stack(errors[1]),
            attention_error2=attention,
            bytes=size,
            unfused_bytes=unfused,
            fusions=fusions,
        )

    def try_layer(self, index: int, method: Method) -> LayerTrial:
        """Compress one layer alone, without running the model.

        Args:
            index: one of ``layers``.
            method: what to do to it.
        """
        layer = self.layer(index)
        result = compress(method, layer)
        k, v = self._dense(result.k, result.v)
        attention = np.zeros(self.requests)
        with self._probe as probe:
            for rows, calls in zip(self._batches, self._calls, strict=True):
                mask = None if result.hidden is None else result.hidden[rows, :, : self.lengths[rows[0]]]
                attention[rows] = self._attention_error2(probe, calls[index], self._rows((k, v), rows), mask)
        return LayerTrial(float(result.bytes.sum()), attention)

    def _attention_error2(
        self, probe: AttentionProbe, call: AttentionCall, pair: tuple[Tensor, Tensor], hidden: Tensor | None
    ) -> FloatArray:
        """(rows,) squared relative error of the attention output over other keys and values."""
        output = probe.replay(call, *pair, hidden).double().flatten(1)
        expected = call.output.double().flatten(1)
        error2: FloatArray = ((output - expected).square().sum(1) / expected.square().sum(1)).cpu().numpy()
        return error2

    def _prefill(self, ids: list[tuple[int, ...]], chunk_tokens: int, progress: Progress | None) -> None:
        blocks = -(-max(self.lengths) // self.block_size)
        shape = (self.requests, blocks * self.block_size, self.loaded.kv_heads, self.loaded.head_dim)
        self._k, self._v = (
            [
                torch.zeros(shape, dtype=DTYPES[self.dtype], device=self.loaded.device)
                for _ in range(self.loaded.layers)
            ]
            for _ in range(2)
        )
        received = (self.requests, self.loaded.kv_heads, max(self.lengths))
        if self._received is not None:
            self._received = [
                torch.zeros(received, device=self.loaded.device) for _ in range(self.loaded.layers)
            ]
        batches = range(0, self.requests, self.batch_size)
        for number, start in enumerate(batches):
            rows = range(start, min(start + self.batch_size, self.requests))
            lengths = [self.lengths[request] for request in rows]

            def report(share: float, number: int = number) -> None:
                if progress is not None:
                    progress((number + share) / len(batches))

            def run(rows: range = rows, report: Progress = report) -> list[tuple[Tensor, Tensor]]:
                return prefill(
                    self.model,
                    [ids[request][: self.lengths[request]] for request in rows],
                    rows=self.batch_size,
                    chunk_tokens=chunk_tokens,
                    max_tokens=self.loaded.max_tokens,
                    progress=report,
                )

            if self._received is None:
                held = run()
            else:
                with self._probe as probe:
                    probe.received = {}
                    probe.lengths = torch.tensor(lengths + [0] * (self.batch_size - len(lengths)))
                    held = run()
                    for layer, mass in probe.received.items():
                        tokens = min(mass.shape[2], max(self.lengths))
                        self._received[layer][rows.start : rows.stop, :, :tokens] = mass[
                            : len(rows), :, :tokens
                        ]
                    probe.received = None
            for layer, pair in enumerate(held):
                for kept, new in zip((self._k[layer], self._v[layer]), pair, strict=True):
                    for row, (request, length) in enumerate(zip(rows, lengths, strict=True)):
                        kept[request, :length] = new[row, :, :length].transpose(0, 1)
                    if not bool(torch.isfinite(kept[rows.start : rows.stop]).all()):
                        raise InputError(
                            "model",
                            self.loaded.name,
                            f"gives NaN or infinity in the cache of layer {layer}; load it with "
                            "--dtype float32",
                        )

    def _dense(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(requests, kv_heads, tokens, head_dim) in the model's type."""
        dtype = DTYPES[self.loaded.dtype]
        return k.to(dtype).transpose(1, 2), v.to(dtype).transpose(1, 2)

    def _rows(self, pair: tuple[Tensor, Tensor], rows: list[int]) -> tuple[Tensor, Tensor]:
        """K and V of requests of one length, without what lies behind their end."""
        length = self.lengths[rows[0]]
        k, v = (x[rows, :, :length].contiguous() for x in pair)
        return k, v

    def _block_error2(self, before: Tensor, after: Tensor) -> FloatArray:
        """(requests,) mean relative squared error of full blocks; 0 for a block of zeros that stays so."""
        shape = (self.requests, -1, self.block_size * before.shape[2] * before.shape[3])
        expected, restored = before.float().reshape(shape), after.float().reshape(shape)
        power = expected.square().sum(2, dtype=torch.float64)
        difference = (restored - expected).square_().sum(2, dtype=torch.float64)
        error2 = torch.where(difference == 0, 0.0, difference / power)
        full = torch.tensor(self.lengths, device=before.device) // self.block_size
        within = torch.arange(error2.shape[1], device=before.device) < full[:, None]
        mean: FloatArray = (torch.where(within, error2, 0.0).sum(1) / full).cpu().numpy()
        return mean

    def _run(
        self, rows: list[int], caches: list[tuple[Tensor, Tensor]], hidden: dict[int, Tensor], over: str
    ) -> Tensor:
        """Logits (requests, continuation, vocabulary) float32 of the continuations over a cache."""
        from transformers.cache_utils import Cache, DynamicLayer

        cache = Cache(layer_class_to_replicate=DynamicLayer)
        for layer, pair in enumerate(caches):
            cache.update(*self._rows(pair, rows), layer)
        length = self.lengths[rows[0]]
        positions = torch.arange(length, length + self.continuation, device=self.loaded.device)
        self._probe.hidden = hidden
        try:
            with torch.inference_mode():
                result = self.model(
                    input_ids=self._ids[rows, :-1].to(self.loaded.device),
                    position_ids=positions.expand(len(rows), -1),
                    past_key_values=cache,
                    use_cache=True,
                )
        finally:
            self._probe.hidden = {}
        logits: Tensor = result.logits.float()
        finite = torch.isfinite(logits).all(2)
        if not bool(finite.all()):
            row, token = torch.nonzero(~finite)[0].tolist()
            raise InputError(
                "model",
                self.loaded.name,
                f"gives logits that are not finite over {over} (request {rows[row]}, token {token} of the "
                "continuation); load it with --dtype float32",
            )
        return logits


def divergence(
    reference: Tensor, logits: Tensor, following: Tensor
) -> tuple[FloatArray, NDArray[np.bool_], FloatArray]:
    """How far predictions moved: (kl, same_top1, delta_nll), each (requests, tokens), in nats.

    kl = Σ p·(ln p − ln q) with p = softmax(reference), q = softmax(logits), in float64; delta_nll =
    ln p − ln q of the token that follows.

    Test: tests/validate/quality/test_quality.py::test_divergence_against_scipy.

    Args:
        reference, logits: (requests, tokens, vocabulary) float32.
        following: (requests, tokens) int64: the text's next token.
    """
    kl, same, delta = [], [], []
    for before, after, token in zip(reference, logits, following.to(reference.device), strict=True):
        p = torch.log_softmax(before.double(), dim=-1)
        q = torch.log_softmax(after.double(), dim=-1)
        # Rounding may leave a divergence of equal distributions at -1e-17.
        kl.append((p.exp() * (p - q)).sum(-1).clamp_(min=0))
        same.append(p.argmax(-1) == q.argmax(-1))
        delta.append((p - q).gather(1, token[:, None])[:, 0])
    return (
        torch.stack(kl).cpu().numpy(),
        torch.stack(same).cpu().numpy(),
        torch.stack(delta).cpu().numpy(),
    )


def _checked_layers(loaded: LoadedModel, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    if layers is None:
        layers = tuple(range(ALONE_AT_EACH_END, loaded.layers - ALONE_AT_EACH_END))
        if not layers:
            raise InputError(
                "layers",
                None,
                f"{loaded.name} has {loaded.layers} layers, and its first and last {ALONE_AT_EACH_END} are "
                "left alone; name the layers to fuse",
            )
    for layer in layers:
        if not 0 <= layer < loaded.layers:
            raise InputError("layers", layer, f"must lie in 0 … {loaded.layers - 1}")
    if not layers or len(set(layers)) < len(layers):
        raise InputError("layers", list(layers), "must name at least one layer, and each once")
    return tuple(sorted(layers))


def _check_prompts(loaded: LoadedModel, prompts: PromptSet, continuation: int, block_size: int) -> None:
    if continuation < 1:
        raise InputError("continue", continuation, "must be at least 1 token")
    if not prompts.prompts:
        raise InputError("prompts", prompts.name, "holds no request")
    for request, prompt in enumerate(prompts.prompts):
        tokens = len(prompt.token_ids)
        if tokens < block_size + continuation + 1:
            raise InputError(
                "tokens",
                tokens,
                f"request {request} of {prompts.name} is too short for a block of {block_size} tokens, a "
                f"continuation of {continuation} and the token after it; take longer prompts or a shorter "
                "continuation",
            )
        if loaded.max_tokens is not None and tokens - 1 > loaded.max_tokens:
            raise InputError(
                "continue",
                continuation,
                f"request {request} of {prompts.name} and its continuation take {tokens - 1} tokens, "
                f"{loaded.name} at most {loaded.max_tokens}; shorten either",
            )
