"""A fused cache for Hugging Face models: what ``model.generate(past_key_values=…)`` takes.

    cache = FusedCache(model, threshold=0.9)
    model.generate(**inputs, past_key_values=cache, max_new_tokens=64)
    print(cache.report())

Keys and values live in paged blocks. The prompts of the batch are prefilled as they are, in one pass or in
chunks; before the first decoding step similar blocks are fused, layer by layer, and what is no longer
needed is given back. Decoding reads the fused blocks through a block table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from ratedist.errors import InputError, RatedistError
from ratedist.kernels.attention.operations import BACKENDS, paged_attention
from ratedist.kernels.huggingface._attention import ATTENTION, HANDLE, dense_attention, register
from ratedist.kernels.huggingface._layer import ForwardPass, GrowingLayer, Outcome, storage_bytes
from ratedist.kernels.huggingface._model import (
    attention_switched,
    follow_forward_passes,
    shape_of,
    text_config,
)
from ratedist.kernels.huggingface._settings import (
    LayerSetting,
    default_layers,
    settings_by_layer,
    settings_for_all,
)
from ratedist.kernels.layout import BlockTable
from ratedist.kernels.quantised import Layer
from ratedist.kernels.rotary import Rotary

__all__ = ["ATTENTION", "CacheReport", "FusedCache", "LayerReport", "default_layers", "fused_generation"]

_NOT_GIVEN: Any = object()


@dataclass(frozen=True)
class LayerReport:
    """What fusion did to one layer.

    Attributes:
        layer: its index in the model.
        candidates: full blocks at the time.
        kept: candidates that still have a physical block of their own.
        exact: candidates that share because they are byte-equal.
        bytes_before: all that the layer held before: pool and tables.
        bytes_after: the same right after.
    """

    layer: int
    candidates: int
    kept: int
    exact: int
    bytes_before: int
    bytes_after: int

    @property
    def compression(self) -> float:
        """Candidates per kept candidate; 1 where there are none."""
        return self.candidates / self.kept if self.kept else 1.0


@dataclass(frozen=True)
class CacheReport:
    """The state of a ``FusedCache``.

    Attributes:
        requests: rows of the batch.
        tokens: tokens held of all requests, padding left out.
        layers: one per layer that was fused, ascending; empty before fusion.
        resident_bytes: storage of every tensor that the cache holds now.
        peak_bytes: the most that this has been, counting a pool and its successor while both existed, but
            not what fusing takes as working memory.
        unfused_bytes: keys and values of the same tokens in unshared blocks, all layers.
    """

    requests: int
    tokens: int
    layers: tuple[LayerReport, ...]
    resident_bytes: int
    peak_bytes: int
    unfused_bytes: int

    @property
    def candidates(self) -> int:
        """Of all fused layers."""
        return sum(layer.candidates for layer in self.layers)

    @property
    def kept(self) -> int:
        """Of all fused layers."""
        return sum(layer.kept for layer in self.layers)

    @property
    def exact(self) -> int:
        """Of all fused layers."""
        return sum(layer.exact for layer in self.layers)

    @property
    def compression(self) -> float:
        """Candidates per kept candidate over all fused layers; 1 where there are none."""
        return self.candidates / self.kept if self.kept else 1.0

    def as_dict(self) -> dict[str, Any]:
        """As JSON data, with the derived numbers."""
        data = asdict(self)
        data["layers"] = [asdict(layer) | {"compression": layer.compression} for layer in self.layers]
        totals = {name: getattr(self, name) for name in ("candidates", "kept", "exact", "compression")}
        return data | totals


class FusedCache:
    """Keys and values of a batch in paged blocks, fused before the first decoding step.

    An instance is a ``transformers.Cache`` as well; its class is made on first use, so that importing this
    module does not load transformers.

    The first pass and further passes of several tokens are the prompt; the first pass of one token after
    them begins decoding, and fuses. Passes of several tokens after that continue the conversation: their
    blocks are not fused. Left padding is not stored: blocks are counted from each request's first token,
    so that equal beginnings fall on equal blocks. All tokens of a layer with a sliding window are kept.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> FusedCache:
        return object.__new__(_as_transformers_cache(cls))

    def __init__(
        self,
        model_or_config: Any,
        *,
        threshold: float | None = _NOT_GIVEN,
        layers: Sequence[int] | None = None,
        domains: Sequence[int] | None = None,
        block_size: int = 16,
        attention_backend: str = "auto",
        bits: int | None = None,
        plan: Mapping[int, Mapping[str, Any]] | None = None,
        **fuse_options: Any,
    ) -> None:
        """Start empty, for one batch.

        Args:
            model_or_config: the model, which then uses the fused cache's attention whenever it is called
                with one; or its configuration, where you set ``ATTENTION`` as the model's attention
                implementation yourself.
            threshold: as ``ratedist.kernels.fusion.fuse.fuse``; None fuses nothing. To be given, unless there
                is a plan.
            layers: indices of the layers to fuse; by default all but the first and last two. Layers that are
                not fused are paged all the same.
            domains: one integer per request; blocks of different domains never share. By default all
                requests are in one.
            block_size: tokens per block.
            attention_backend: as ``ratedist.kernels.attention.operations.paged_attention``.
            bits: 8 or 4 to quantise the full blocks that fusion keeps, see ``ratedist.kernels.quantised``;
                None leaves them as they are.
            plan: a setting for every layer that is to be fused, in the place of ``threshold``, ``layers``,
                ``bits`` and further options: by the layer's index, arguments of ``fuse`` with at least
                ``threshold``, and ``bits`` where it is to be quantised.
            **fuse_options: further arguments of ``fuse`` (variant, criterion, scale, backend …).

        Raises:
            InputError: an argument outside what is listed, or a model without K and V per head.
        """
        if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
            raise InputError("block_size", block_size, "must be an integer of at least 1")
        if attention_backend not in BACKENDS:
            raise InputError("attention_backend", attention_backend, f"must be one of {', '.join(BACKENDS)}")
        shape = shape_of(model_or_config)
        self._config = text_config(model_or_config)
        self._sliding = shape.sliding
        self._block_size = block_size
        self._backend = attention_backend
        self._settings: dict[int, LayerSetting] = {}
        if plan is not None:
            given = {"layers": layers, "bits": bits} | fuse_options
            if threshold is not _NOT_GIVEN:
                given["threshold"] = threshold
            for name, value in given.items():
                if value is not None:
                    raise InputError(name, value, "is the plan's to say; leave it out, or the plan")
            self._settings = settings_by_layer(plan, shape, block_size)
        elif threshold is _NOT_GIVEN:
            raise InputError("threshold", "missing", "give one, None to fuse nothing, or a plan")
        elif threshold is not None:
            options = {"threshold": threshold, **fuse_options}
            self._settings = settings_for_all(options, layers, bits, shape, block_size)
        elif layers is not None or bits is not None or fuse_options:
            raise InputError("threshold", None, "fuses nothing; give one, or neither layers nor options")
        self._fuses = plan is not None or threshold is not None
        self._domains = None if domains is None else _domains(domains)
        # What transformers' Cache looks at where this class does not override it.
        self.offloading = False
        self.layer_class_to_replicate = None
        self.reset()
        register()
        if isinstance(model_or_config, torch.nn.Module):
            follow_forward_passes(model_or_config)

    def reset(self) -> None:
        """Forget all tokens, for another batch."""
        self.layers: list[GrowingLayer] = []
        self._outcomes: dict[int, Outcome] = {}
        self._fused = False
        self._columns = 0
        self._before = 0
        self._step: ForwardPass | None = None
        self._padded = False
        self._waiting: int | None = None
        self._peak = 0
        self._lengths = torch.empty(0, dtype=torch.int64)
        self._domain_ids = torch.empty(0, dtype=torch.int64)

    # What is there

    @property
    def fused(self) -> bool:
        """Whether fusion has run."""
        return self._fused

    @property
    def lengths(self) -> list[int]:
        """Tokens held of each request, padding left out."""
        return [int(length) for length in self._lengths.tolist()]

    def layer(self, index: int) -> Layer:
        """One layer as attention reads it now: the pool itself with a copy of the table.

        Raises:
            InputError: no such layer, or nothing cached yet.
        """
        if not self.layers or self._columns == 0:
            raise InputError("index", index, "the cache is empty; run the model first")
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.layers):
            raise InputError("index", index, f"must be one of the {len(self.layers)} layers")
        layer = self.layers[index].layer
        table = layer.table
        copy = BlockTable(table.entries.clone(), table.lengths.clone(), table.domains, table.block_size)
        return replace(layer, table=copy)

    def resident_bytes(self) -> int:
        """Bytes of the storages of all tensors that the cache holds: pools, tables, scales and lengths."""
        storages = {
            tensor.untyped_storage().data_ptr(): storage_bytes(tensor)
            for tensor in (*self._own_tensors(), *self._layer_tensors())
            if tensor.numel()
        }
        return sum(storages.values())

    def report(self) -> CacheReport:
        """What fusion did, and what the cache holds now."""
        unfused = 0
        if self._columns:
            blocks = int(((self._lengths + self._block_size - 1) // self._block_size).sum())
            for growing in self.layers:
                pool = growing.layer.k
                unfused += 2 * blocks * math.prod(pool.shape[1:]) * pool.dtype.itemsize
        resident = self.resident_bytes()
        return CacheReport(
            requests=len(self._lengths),
            tokens=int(self._lengths.sum()),
            layers=tuple(LayerReport(index, **asdict(self._outcomes[index])) for index in self._outcomes),
            resident_bytes=resident,
            peak_bytes=max(self._peak, resident),
            unfused_bytes=unfused,
        )

    def fuse(self) -> None:
        """Fuse now what the prompts hold; decoding does so by itself.

        Raises:
            InputError: nothing to fuse: no threshold, no tokens, or fused before.
        """
        if not self._fuses:
            raise InputError("threshold", None, "fuses nothing; make the cache with a threshold")
        if self._columns == 0:
            raise InputError("cache", "empty", "run the prompts through the model before fusing")
        if self._fused:
            raise InputError("cache", "fused", "is fused once per batch; reset() it for another")
        self._fuse()

    # What transformers calls

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand new keys and values (requests, kv_heads, tokens, head_dim) on to the attention function."""
        if torch.compiler.is_compiling():
            raise InputError(
                "model",
                "compiled",
                "a fused cache changes shape as it decodes; call the model without torch.compile",
            )
        implementation = self._config._attn_implementation
        if implementation != ATTENTION:
            raise InputError(
                "attn_implementation",
                implementation,
                "would not read the fused cache: give FusedCache the model that you call, use "
                f"fused_generation(model, …), or call model.set_attn_implementation({ATTENTION!r})",
            )
        if self._waiting is not None:
            raise InputError(
                "past_key_values",
                f"layer {self._waiting}",
                "did not read the fused cache that it was given: the cache was made for another model, or "
                "an exception stopped an earlier pass (then reset() the cache)",
            )
        if not 0 <= layer_idx < len(self._sliding):
            raise InputError("layer_idx", layer_idx, f"the model has {len(self._sliding)} layers")
        if key_states.ndim != 4 or value_states.shape != key_states.shape:
            raise InputError(
                "value_states",
                tuple(value_states.shape),
                f"K and V must be of one shape per head, K is {tuple(key_states.shape)}: this model's cannot "
                "be fused",
            )
        if key_states.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise InputError("key_states", str(key_states.dtype), "must be float32, float16 or bfloat16")
        self._waiting = layer_idx
        setattr(key_states, HANDLE, (self, layer_idx))
        return key_states, value_states

    def attend(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        softmax_scale: float | None,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Write new keys and values and attend to all: called by the attention function.

        Args:
            layer_idx: layer.
            query: (requests, query_heads, columns, head_dim).
            key, value: (requests, kv_heads, columns, head_dim).
            mask: (requests, columns so far) bool, false at padding; None where there is none.
            softmax_scale, window, softcap, sinks: as in
                ``ratedist.kernels.attention.operations.paged_attention``.

        Returns:
            (requests, columns, query_heads, head_dim).
        """
        self._waiting = None
        step = self._pass(layer_idx, key, mask)
        growing = self.layers[layer_idx]
        self._check_like(growing, key)
        growing.write(step, key, value)
        if step.first:
            return dense_attention(
                query,
                key,
                value,
                step,
                softmax_scale=softmax_scale,
                window=window,
                softcap=softcap,
                sinks=sinks,
            )
        out, _ = paged_attention(
            step.pack(query),
            growing.layer,
            None if step.columns == 1 and step.valid is None else step.query_lengths,
            softmax_scale=softmax_scale,
            window=window,
            softcap=softcap,
            sinks=sinks,
            backend=self._backend,
        )
        return step.unpack(out)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens per request as the model counts them, padding included."""
        return self.layers[layer_idx].columns if layer_idx < len(self.layers) else 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(tokens with those of this pass, 0): no layer drops tokens."""
        return self.get_seq_length(layer_idx) + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: the cache grows."""
        return -1

    @property
    def is_sliding(self) -> list[bool]:
        """Per layer, whether it attends within a window."""
        return list(self._sliding)

    @property
    def is_linear(self) -> list[bool]:
        """Per layer, whether it keeps a recurrent state: never."""
        return [False] * len(self._sliding)

    @property
    def is_dummy(self) -> list[bool]:
        """Per layer, whether it keeps nothing: never."""
        return [False] * len(self._sliding)

    @property
    def is_compileable(self) -> bool:
        """False: shapes change as the cache grows."""
        return False

    @property
    def is_croppable(self) -> bool:
        """False: fused blocks cannot be taken apart."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether there are tokens."""
        return self._columns > 0

    @property
    def batch_size(self) -> int:
        """Requests, -1 while there are no tokens."""
        return len(self._lengths) if self._columns else -1

    def __len__(self) -> int:
        """Layers of the model."""
        return len(self._sliding)

    def __repr__(self) -> str:
        state = "fused" if self._fused else "not fused"
        return (
            f"FusedCache({len(self._sliding)} layers, {len(self._lengths)} requests, "
            f"{int(self._lengths.sum())} tokens, {state}, {self.resident_bytes()} bytes)"
        )

    def reorder_cache(self, beam_idx: Tensor) -> NoReturn:
        """Refuse beam search."""
        raise InputError(
            "num_beams",
            "more than 1",
            "beam search would reorder fused requests; use greedy search or sample",
        )

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Refuse to take tokens back."""
        raise InputError(
            "tokens_to_remove",
            tokens_to_remove,
            "a fused cache cannot be cropped; reset() it and prefill again",
        )

    def activate_past_recording(self) -> NoReturn:
        """Refuse assisted decoding, which takes rejected tokens back."""
        raise InputError(
            "assistant_model",
            "assisted decoding",
            "takes tokens back, which a fused cache cannot do; generate without assistant_model and "
            "prompt_lookup_num_tokens",
        )

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        """Refuse to multiply the requests."""
        raise InputError(
            "repeats", repeats, "a fused cache cannot multiply its requests; repeat the prompts instead"
        )

    def batch_select_indices(self, indices: Tensor) -> NoReturn:
        """Refuse to drop requests."""
        raise InputError(
            "indices",
            f"{len(indices)} rows",
            "a fused cache keeps the requests it began with; make a new one",
        )

    def early_initialization(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse static shapes."""
        raise InputError(
            "cache", "early_initialization", "a fused cache grows and cannot be exported or compiled"
        )

    # How

    def _pass(self, layer_idx: int, key: Tensor, mask: Tensor | None) -> ForwardPass:
        """The plan of the running pass, made by the first layer that is called in it."""
        requests, _, columns, _ = key.shape
        running = self._step
        if (
            running is not None
            and self.layers[layer_idx].columns == self._before
            and any(growing.columns == self._columns for growing in self.layers)
        ):
            return running
        if any(growing.columns != self._columns for growing in self.layers):
            raise RatedistError(
                "an earlier forward pass stopped before its last layer, so the cache holds parts of it; "
                "reset() the cache, or make a new one, and prefill again"
            )
        first = self._columns == 0
        if first:
            self._begin(requests, key.device)
        elif requests != len(self._lengths):
            raise InputError(
                "batch size",
                requests,
                f"the cache holds {len(self._lengths)} requests; make a new cache for another batch",
            )
        valid = self._check_mask(mask, requests, columns)
        if columns == 1 and not first and not self._fused and self._fuses:
            self._fuse()
        step = ForwardPass.plan(self._lengths, columns, valid, self._block_size, first)
        self._lengths += step.query_lengths
        self._before = self._columns
        self._columns += columns
        self._step = step
        return step

    def _begin(self, requests: int, device: torch.device) -> None:
        domains = self._domains
        if domains is not None and len(domains) != requests:
            raise InputError(
                "domains",
                list(domains),
                f"must hold one per request: there are {requests} (num_return_sequences counts)",
            )
        self._lengths = torch.zeros(requests, dtype=torch.int64, device=device)
        self._domain_ids = (
            torch.zeros_like(self._lengths)
            if domains is None
            else torch.tensor(domains, dtype=torch.int64, device=device)
        )
        self.layers = [
            GrowingLayer(self._lengths, self._domain_ids, self._block_size, self._note_peak)
            for _ in self._sliding
        ]

    def _check_mask(self, mask: Tensor | None, requests: int, columns: int) -> Tensor | None:
        """(requests, columns) bool: which new columns are tokens; None where all are."""
        if mask is None:
            if self._padded:
                raise InputError(
                    "attention_mask",
                    None,
                    "the prompts were padded: pass the mask of all tokens so far with every pass",
                )
            return None
        seen = self._columns + columns
        if mask.ndim != 2 or tuple(mask.shape) != (requests, seen):
            raise InputError(
                "attention_mask",
                tuple(mask.shape),
                f"must be two-dimensional, ({requests}, {seen}): all tokens so far",
            )
        mask = mask.bool()
        # One transfer for all questions: whether padding stands left of all tokens, and only as before.
        problems = torch.stack(
            (
                (mask[:, 1:] < mask[:, :-1]).any(1),
                mask[:, : self._columns].sum(1) != self._lengths,
                ~mask.all(1),
                ~mask[:, self._columns :].all(1),
            )
        ).tolist()
        for request, (hole, changed, padded, _) in enumerate(zip(*problems, strict=True)):
            if hole:
                raise InputError(
                    "attention_mask",
                    f"request {request} has padding behind tokens",
                    "pad on the left (tokenizer.padding_side = 'left')",
                )
            if changed:
                raise InputError(
                    "attention_mask",
                    f"request {request}",
                    "must mask the tokens of earlier passes as they were then",
                )
            self._padded |= padded
        return mask[:, self._columns :] if any(problems[3]) else None

    def _check_like(self, growing: GrowingLayer, key: Tensor) -> None:
        if growing.columns == 0:
            return
        pool = growing.layer.k
        for name, value, expected in (
            ("dtype", key.dtype, pool.dtype),
            ("device", key.device, pool.device),
            ("heads", (key.shape[1], key.shape[3]), (pool.shape[2], pool.shape[3])),
        ):
            if value != expected:
                raise InputError(
                    f"key_states {name}",
                    str(value),
                    f"the cache holds {expected}; use the model that it was filled by",
                )

    def _fuse(self) -> None:
        for index, setting in self._settings.items():
            options = {**setting.options, "layer_name": index}
            self._outcomes[index] = self.layers[index].fuse(options, setting.bits)
        self._fused = True

    def _note_peak(self, transient: int) -> None:
        self._peak = max(self._peak, self.resident_bytes() + transient)

    def _layer_tensors(self) -> Iterator[Tensor]:
        for growing in self.layers:
            yield from growing.tensors()

    def _own_tensors(self) -> Iterator[Tensor]:
        """What does not belong to a layer: lengths, domains, the plan of the last pass, fusion's options."""
        yield from (self._lengths, self._domain_ids)
        held = [] if self._step is None else list(vars(self._step).values())
        for setting in self._settings.values():
            held += setting.options.values()
        for value in held:
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, Rotary):
                yield value.inverse_frequencies


@contextmanager
def fused_generation(model: Any, **options: Any) -> Iterator[FusedCache]:
    """A ``FusedCache`` for the model, whose attention reads it until the end of the ``with`` block.

        with fused_generation(model, threshold=0.9) as cache:
            model.generate(**inputs, past_key_values=cache)

    Within the block the model refuses every other cache, so that one forgotten is noticed. Its attention
    implementation is restored at the end, after an exception too.

    Args:
        model: a Hugging Face causal language model.
        **options: as ``FusedCache``.

    Raises:
        InputError: as ``FusedCache``; or no model.
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError("model", type(model).__name__, "must be a Hugging Face model with its weights")
    cache = FusedCache(model, **options)
    with attention_switched(text_config(model)):
        yield cache


_CLASSES: dict[str, type[FusedCache]] = {}


def _as_transformers_cache(cls: type[FusedCache]) -> type[FusedCache]:
    """``cls`` as a subclass of transformers' Cache too, by which generation and models know a cache."""
    from transformers import Cache

    if issubclass(cls, Cache):
        return cls
    name = f"{cls.__module__}.{cls.__qualname__}"
    if name not in _CLASSES:
        _CLASSES[name] = type(cls.__name__, (cls, Cache), {})
    return _CLASSES[name]


def _domains(domains: Sequence[int]) -> tuple[int, ...]:
    for domain in domains:
        if isinstance(domain, bool) or not isinstance(domain, int):
            raise InputError("domains", list(domains), "must be integers, one per request")
    return tuple(domains)
