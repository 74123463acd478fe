"""Ways to make a cache smaller: functions from a layer's cache to what would be read back, and its bytes.

A method shares blocks (exactly, or by fusion), stores what is left in fewer bits, or both; or it evicts
tokens. Bytes are those of ``ratedist.rate``: the uncompressed cache counts by its data alone, and every
method is charged for all that it keeps beside the data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import Fusion, fuse
from ratedist.kernels.fusion.options import FuseOptions
from ratedist.kernels.layout import PagedLayer
from ratedist.kernels.restore import restore_blocks
from ratedist.rate import SCALE_BYTES, TABLE_ENTRY_BYTES
from ratedist.validate.quality.evict import POSITION_BYTES, evict
from ratedist.validate.quality.quantise import (
    GROUP,
    channel_group,
    quantise_keys,
    quantise_per_token,
    quantise_values,
    scalar_bytes,
    token_bytes,
)

__all__ = [
    "BASELINES",
    "CompressedLayer",
    "LayerCache",
    "Method",
    "compress",
    "fusion_methods",
    "parse_method",
    "settings",
    "stored_block_bytes",
]

BASELINES = (
    "nothing",
    "exact",
    "int8",
    "kivi4",
    "kivi3",
    "kivi2",
    "evict0.75",
    "evict0.5",
    "evict0.25",
    "exact+kivi4",
    "exact+kivi3",
    "exact+kivi2",
)
"""What fusion is compared with unless told otherwise."""

_KNOWN = (
    "nothing, exact, fusion, int8, kivi1 to kivi8 (kivi4r64 leaves the last 64 tokens alone), evict0.5 "
    "(keeps half of the tokens), or exact or fusion with bits: exact+kivi4, fusion+int8"
)

_BITS = re.compile(r"(?P<int8>int8)|kivi(?P<bits>[1-8])(?:r(?P<residual>\d+))?")


@dataclass(frozen=True)
class Method:
    """What is done to a cache.

    Attributes:
        sharing: ``""``, ``"exact"`` or ``"fusion"``; in the layers to fuse only.
        coding: ``""``, ``"int8"`` (per token) or ``"kivi"``; in all layers. Of shared layers it codes the
            representatives, and keys are grouped within blocks.
        bits: of ``"kivi"``, else 0.
        residual: last tokens of a request that ``"kivi"`` leaves alone.
        keep: share of the tokens that eviction keeps, per head, in all layers; 1 for none.
        variant, criterion, scale: of fusion.
        threshold: of fusion.
        mode, chunk_blocks: of sharing: ``"bff"``, across requests, or ``"cff"``, across the chunks of each,
            of so many full blocks.
    """

    sharing: str = ""
    coding: str = ""
    bits: int = 0
    residual: int = 0
    keep: float = 1.0
    variant: str = "leader"
    criterion: str = "keys"
    scale: str = "own-norm"
    threshold: float = 1.0
    mode: str = "bff"
    chunk_blocks: int | None = None

    def __post_init__(self) -> None:
        FuseOptions(self.threshold, self.variant, self.criterion, self.scale, self.mode, self.chunk_blocks)
        if self.sharing not in ("", "exact", "fusion") or self.coding not in ("", "int8", "kivi"):
            raise InputError("method", (self.sharing, self.coding), f"unknown; use one of {_KNOWN}")
        if (self.coding == "kivi") != (1 <= self.bits <= 8):
            raise InputError("bits", self.bits, "must lie in 1 … 8 with kivi, and be 0 without")
        if not 0 < self.keep <= 1:
            raise InputError("keep", self.keep, "must lie in (0, 1], the share of tokens that eviction keeps")
        if self.keep < 1 and (self.sharing or self.coding):
            raise InputError(
                "method", self.name, "eviction is measured by itself; leave out sharing and bits"
            )
        if self.residual and self.sharing:
            raise InputError(
                "method", self.name, "blocks that are shared leave no last tokens alone; drop r…"
            )

    @property
    def name(self) -> str:
        """What records call it, without the settings of fusion: ``parse_method`` reads it back."""
        if self.keep < 1:
            return f"evict{self.keep:g}"
        coding = self.coding
        if coding == "kivi":
            coding += f"{self.bits}" + (f"r{self.residual}" if self.residual else "")
        return "+".join(part for part in (self.sharing, coding) if part) or "nothing"

    @property
    def stored_bits(self) -> float:
        """Bits of a stored scalar without its share of scales: 16, 8 or those of ``"kivi"``."""
        return {"": 16, "int8": 8, "kivi": self.bits}[self.coding]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON data, as ``Method(**data)`` takes them.

        Across requests the mode is left out, as it is in the files of versions that knew no other.
        """
        data = asdict(self)
        if self.mode == "bff":
            del data["mode"], data["chunk_blocks"]
        return data


def parse_method(name: str) -> Method:
    """The method of a name such as ``kivi4``, ``exact+int8`` or ``evict0.5``; fusion with default settings.

    Raises InputError for an unknown name; the message lists what is known.
    """
    kept = re.fullmatch(r"evict(\d*\.?\d+)", name)
    if kept is not None:
        return Method(keep=float(kept.group(1)))
    sharing, plus, coding = name.partition("+")
    if not plus and sharing not in ("exact", "fusion", "nothing"):
        sharing, coding = "", name
    bits = _BITS.fullmatch(coding)
    if not name or sharing not in ("", "exact", "fusion", "nothing") or (bits is None and (coding or plus)):
        raise InputError("method", name, f"unknown; use one of {_KNOWN}")
    sharing = sharing.replace("nothing", "")
    if bits is None:
        return Method(sharing)
    if bits["int8"]:
        return Method(sharing, "int8")
    return Method(sharing, "kivi", int(bits["bits"]), int(bits["residual"] or 0))


def fusion_methods(
    names: Sequence[str],
    thresholds: Sequence[float],
    variants: Sequence[str],
    criteria: Sequence[str],
    scale: str = "own-norm",
) -> list[Method]:
    """Methods of these names, those with fusion once for every variant, criterion and threshold.

    Raises InputError for what is unknown, and where a method would be named twice.
    """
    methods = []
    for name in names:
        method = parse_method(name)
        if method.sharing != "fusion":
            methods.append(method)
            continue
        methods += [
            Method(
                "fusion",
                method.coding,
                method.bits,
                variant=variant,
                criterion=criterion,
                scale=scale,
                threshold=threshold,
            )
            for variant in variants
            for criterion in criteria
            for threshold in thresholds
        ]
    for method in methods:
        if methods.count(method) > 1:
            raise InputError("method", method.name, "is named twice; name each method and threshold once")
    return methods


@dataclass(frozen=True)
class LayerCache:
    """One layer of the cache as a method gets it.

    Attributes:
        index: layer of the model.
        paged: K and V; the physical blocks of request i are i·max_blocks and following, all tokens of a
            request lie one after another, and what lies behind its end is zero.
        shared: whether this is one of the layers to fuse.
        received: attention that each token received, (requests, kv_heads, tokens) float32; only where a
            method evicts.
    """

    index: int
    paged: PagedLayer
    shared: bool
    received: Tensor | None = None


@dataclass(frozen=True)
class CompressedLayer:
    """One layer after a method.

    Attributes:
        k, v: (requests, max_blocks × block_size, kv_heads, head_dim): what would be read back.
        bytes: (requests,) float64: stored for each request; what requests share is split evenly among those
            that read it, so that the sum is what is stored.
        hidden: (requests, kv_heads, max_blocks × block_size) bool, evicted tokens; None where none is.
        fusion: the fusion where there was one.
    """

    k: Tensor
    v: Tensor
    bytes: Tensor
    hidden: Tensor | None = None
    fusion: Fusion | None = None


def compress(method: Method, layer: LayerCache) -> CompressedLayer:
    """Apply a method to one layer.

    Raises InputError where eviction has no attention to go by, or float16 cannot hold a scale.
    """
    paged = layer.paged
    if method.keep < 1:
        return _evict(method, layer)
    if method.sharing and layer.shared:
        return _share(method, layer)
    k, v = (pool.view(paged.table.requests, -1, *pool.shape[2:]) for pool in (paged.k, paged.v))
    lengths = paged.table.lengths
    raw = _raw_bytes(paged)
    if not method.coding:
        return CompressedLayer(k, v, lengths * raw)
    channels = k.shape[2] * k.shape[3]
    if method.coding == "int8":
        size = 2 * channels * token_bytes(k.shape[3])
        return CompressedLayer(quantise_per_token(k), quantise_per_token(v), lengths * size)
    # Keys come in groups along the tokens: what does not fill a group stays as it is, and values with it.
    coded = (lengths - method.residual).clamp(min=0) // GROUP * GROUP
    most = int(coded.max()) if len(coded) else 0
    within = (torch.arange(k.shape[1], device=k.device) < coded[:, None])[:, :, None, None]
    restored = []
    for x, codec in ((k, quantise_keys), (v, quantise_values)):
        read = x.to(torch.float32, copy=True)  # the original stays as it is
        read[:, :most] = torch.where(within[:, :most], codec(x[:, :most], method.bits), read[:, :most])
        restored.append(read)
    size = channels * (scalar_bytes(method.bits, GROUP) + scalar_bytes(method.bits, channel_group(channels)))
    return CompressedLayer(restored[0], restored[1], coded * size + (lengths - coded) * raw)


def _share(method: Method, layer: LayerCache) -> CompressedLayer:
    """Fuse (at threshold 1 where only exact duplicates are to share), then code the representatives."""
    paged = layer.paged
    table, block_size = paged.table, paged.table.block_size
    threshold = 1.0 if method.sharing == "exact" else method.threshold
    fusion = fuse(
        paged,
        threshold=threshold,
        variant=method.variant,
        criterion=method.criterion,
        scale=method.scale,
        mode=method.mode,
        chunk_blocks=method.chunk_blocks,
        layer_name=layer.index,
    )
    pools: dict[str, Tensor] = {"k": fusion.layer.k, "v": fusion.layer.v}
    heads, head_dim = paged.k.shape[2:]
    coded = stored_block_bytes(method, block_size, heads, head_dim, paged.k.element_size())
    # A partly filled block is still written to: it is not coded, like the tokens that fill no group.
    full = torch.arange(table.entries.shape[1], device=paged.k.device) < table.full_blocks[:, None]
    used = fusion.layer.table.entries >= 0
    if method.coding:
        if method.coding == "int8":
            read = {name: quantise_per_token(pool) for name, pool in pools.items()}
        else:
            read = {
                "k": quantise_keys(pools["k"], method.bits, block_size),
                "v": quantise_values(pools["v"], method.bits),
            }
        partial = fusion.layer.table.entries[used & ~full].long()
        for name, pool in pools.items():
            read[name][partial] = pool[partial].float()
        pools = read
    entries = torch.where(used, fusion.layer.table.entries.long(), 0)
    restored = {
        name: torch.where(
            used.flatten()[:, None, None, None],
            restore_blocks(pools[name], entries.flatten(), scale.flatten()),
            0.0,
        ).view(table.requests, -1, heads, head_dim)
        for name, scale in (("k", fusion.layer.k_scale), ("v", fusion.layer.v_scale))
    }
    readers = torch.zeros(len(fusion.layer.k), dtype=torch.float64, device=paged.k.device)
    ones = (used & full).double()
    readers.index_add_(0, entries.flatten(), ones.flatten())
    share = torch.where(used & full, coded / readers[entries].clamp(min=1), 0.0)
    size = (share + (used & full) * float(TABLE_ENTRY_BYTES + SCALE_BYTES)).sum(1)
    size += (table.lengths - table.full_blocks * block_size) * _raw_bytes(paged)
    return CompressedLayer(restored["k"], restored["v"], size, fusion=fusion)


def stored_block_bytes(
    method: Method, block_size: int, heads: int, head_dim: int, element_size: int
) -> float:
    """Bytes of the keys and values of one full block that a method which shares keeps.

    Test: tests/validate/planning/test_plan_bytes.py::test_bytes_are_those_of_the_cache_that_was_compressed.
    """
    channels = heads * head_dim
    if method.coding == "int8":
        return 2 * channels * token_bytes(head_dim) * block_size
    if method.coding == "kivi":
        scalar = scalar_bytes(method.bits, block_size) + scalar_bytes(method.bits, channel_group(channels))
        return block_size * channels * scalar
    return 2.0 * block_size * channels * element_size


def _evict(method: Method, layer: LayerCache) -> CompressedLayer:
    if layer.received is None:
        raise InputError("received", None, "eviction needs the attention that tokens received in the prefill")
    paged = layer.paged
    k, v = (pool.view(paged.table.requests, -1, *pool.shape[2:]) for pool in (paged.k, paged.v))
    kept = evict(layer.received, paged.table.lengths, method.keep)
    hidden = torch.nn.functional.pad(~kept, (0, k.shape[1] - kept.shape[2]), value=False)
    tokens = kept.sum((1, 2))
    size = tokens * (_raw_bytes(paged) / k.shape[2] + POSITION_BYTES)
    return CompressedLayer(k, v, size.double(), hidden)


def _raw_bytes(paged: PagedLayer) -> float:
    """Bytes of the keys and values of one uncompressed token."""
    return 2.0 * paged.k.shape[2] * paged.k.shape[3] * paged.k.element_size()


def settings(method: Method) -> dict[str, Any]:
    """The fields of a row that say what was done."""
    fused = method.sharing == "fusion"
    return {
        "method": method.name,
        "variant": method.variant if fused else None,
        "criterion": method.criterion if fused else None,
        "scale": method.scale if fused else None,
        "mode": method.mode if method.sharing else None,
        "threshold": method.threshold if fused else None,
        "bits": method.stored_bits,
    }
