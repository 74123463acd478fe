"""What fusion is to do to each layer of a model: checked when a cache is made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.huggingface._model import Shape
from ratedist.kernels.layout import BlockTable, PagedLayer
from ratedist.kernels.quantised import BITS

__all__ = ["LayerSetting", "default_layers", "settings_by_layer", "settings_for_all"]

_ALONE_AT_EACH_END = 2
"""Layers at either end of a model that are not fused by default."""


@dataclass(frozen=True)
class LayerSetting:
    """What is done to one layer.

    Attributes:
        options: arguments of ``ratedist.kernels.fusion.fuse.fuse``.
        bits: 8 or 4 to quantise the full blocks that are kept; None to leave them.
    """

    options: Mapping[str, Any]
    bits: int | None


def settings_for_all(
    options: Mapping[str, Any], layers: Sequence[int] | None, bits: int | None, shape: Shape, block_size: int
) -> dict[int, LayerSetting]:
    """The same setting for the layers to fuse, by default all but the first and last two.

    Raises InputError where ``fuse`` would at the first decoding step, and for layers or bits there are not.
    """
    _try_options(options, shape, block_size)
    chosen = default_layers(shape.layers) if layers is None else _layers(layers, shape.layers)
    _check_bits(bits)
    return dict.fromkeys(chosen, LayerSetting(options, bits))


def settings_by_layer(
    plan: Mapping[int, Mapping[str, Any]], shape: Shape, block_size: int
) -> dict[int, LayerSetting]:
    """A plan's setting of each layer that it names.

    Raises InputError as ``settings_for_all``, and for a plan that is no mapping of mappings or gives no
    threshold; the layer is named.
    """
    form = "must map layer indices to settings, as in {4: {'threshold': 0.9, 'criterion': 'both'}}"
    if not isinstance(plan, Mapping) or not all(isinstance(given, Mapping) for given in plan.values()):
        raise InputError("plan", type(plan).__name__, form)
    settings: dict[int, LayerSetting] = {}
    for layer in _layers(list(plan), shape.layers):
        options = {name: value for name, value in plan[layer].items() if name != "bits"}
        bits = plan[layer].get("bits")
        try:
            if options.get("threshold") is None:
                raise InputError("threshold", None, "give one; 1 shares exact duplicates alone")
            _try_options(options, shape, block_size)
            _check_bits(bits)
        except InputError as error:
            raise InputError(f"plan, layer {layer}: {error.argument}", error.value, error.remedy) from error
        settings[layer] = LayerSetting(options, bits)
    return settings


def default_layers(layers: int) -> tuple[int, ...]:
    """All layers but the first and last two; raises InputError where none is left."""
    chosen = tuple(range(_ALONE_AT_EACH_END, layers - _ALONE_AT_EACH_END))
    if not chosen:
        raise InputError(
            "layers",
            None,
            f"all of the model's {layers} layers are among the first or last {_ALONE_AT_EACH_END}; name the "
            "layers to fuse",
        )
    return chosen


def _check_bits(bits: int | None) -> None:
    if bits is not None and bits not in BITS:
        raise InputError("bits", bits, f"must be one of {', '.join(map(str, BITS))}, or None")


def _try_options(options: Mapping[str, Any], shape: Shape, block_size: int) -> None:
    """Raise now what ``fuse`` would raise at the first decoding step."""
    known = set(inspect.signature(fuse).parameters) - {"layer", "layer_name"}
    for name in options:
        if name not in known:
            raise InputError(
                name, options[name], f"is no option of fusion; there are {', '.join(sorted(known))}"
            )
    # Two requests of one block each, all equal: every option is looked at.
    pool = torch.ones(2, block_size, shape.kv_heads, shape.head_dim)
    lengths = torch.full((2,), block_size, dtype=torch.int64)
    table = BlockTable(
        torch.tensor([[0], [1]], dtype=torch.int32), lengths, torch.zeros_like(lengths), block_size
    )
    fuse(PagedLayer(pool, pool.clone(), table), **options)


def _layers(layers: Sequence[int], count: int) -> tuple[int, ...]:
    chosen = list(layers)
    for layer in chosen:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < count:
            raise InputError("layers", chosen, f"must be indices of the model's {count} layers, from 0")
    if len(set(chosen)) < len(chosen):
        raise InputError("layers", chosen, "names a layer twice")
    return tuple(sorted(chosen))
