"""Several layers that the same requests enter and leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.layout import FusedLayer
from ratedist.kernels.resident.layer import ResidentFusion, ResidentLayer

__all__ = ["ResidentCache"]


class ResidentCache:
    """Several layers that the same requests enter and leave; each fuses by itself, with its own tables.

    The layers may take their blocks from one pool or from several. A call that any layer refuses changes
    none.
    """

    def __init__(self, layers: Sequence[ResidentLayer]) -> None:
        """Args:
            layers: at least one, all without requests.

        Raises:
            InputError: no layers, one that stands twice, or one that has had requests.
        """
        if not layers:
            raise InputError("layers", layers, "must hold at least one ResidentLayer")
        if len({id(layer) for layer in layers}) < len(layers):
            raise InputError("layers", f"{len(layers)} layers", "must hold each layer once")
        self._layers = tuple(layers)
        for index, layer in enumerate(self._layers):
            if layer.admitted:
                raise InputError("layers", index, "must not have had requests of its own")

    @property
    def layers(self) -> tuple[ResidentLayer, ...]:
        """The layers; read them, but let requests in and out through the cache only."""
        return self._layers

    @property
    def requests(self) -> tuple[int, ...]:
        """The resident requests, in order of admission."""
        return self._layers[0].requests

    def admit(self, k: Sequence[Tensor], v: Sequence[Tensor], *, domain: int = 0) -> int:
        """As ``ResidentLayer.admit``, with keys and values per layer."""
        self._check(k, v, None)
        for layer, *tokens in zip(self._layers, k, v, strict=True):
            request = layer.admit(*tokens, domain=domain)
        return request

    def append(self, request: int, k: Sequence[Tensor], v: Sequence[Tensor]) -> None:
        """As ``ResidentLayer.append``, with keys and values per layer."""
        self._check(k, v, request)
        for layer, *tokens in zip(self._layers, k, v, strict=True):
            layer.append(request, *tokens)

    def open(self, *, domain: int = 0) -> int:
        """Admit a request without tokens, whose layers are then written one by one as a model computes them.

        ``require`` beforehand; ``ResidentLayer.extend`` of the layers then cannot run out of blocks.
        """
        for layer in self._layers:
            nothing = layer.pool.k.new_empty(0, *layer.pool.k.shape[2:])
            request = layer.admit(nothing, nothing, domain=domain)
        return request

    def require(self, requests: Sequence[int], tokens: Sequence[int]) -> None:
        """Raise PoolExhaustedError unless every layer can be extended by so many tokens of each request."""
        needed: dict[int, int] = {}
        for layer in self._layers:
            pool = id(layer.pool)
            needed[pool] = needed.get(pool, 0) + layer.blocks_to_extend(requests, tokens)
            layer.pool.require(needed[pool], "tokens", list(tokens))

    def fork(self, request: int, blocks: int | None = None) -> int:
        """As ``ResidentLayer.fork``."""
        for layer in self._layers:
            fork = layer.fork(request, blocks)
        return fork

    def fuse(self, requests: Iterable[int] | None = None) -> tuple[ResidentFusion, ...]:
        """As ``ResidentLayer.fuse``, one result per layer."""
        chosen = list(self.requests) if requests is None else list(requests)
        for layer in self._layers:
            layer.measure(chosen)
        return tuple(layer.fuse(chosen) for layer in self._layers)

    def release(self, request: int) -> tuple[int, ...]:
        """As ``ResidentLayer.release``; blocks that became free, per layer."""
        return tuple(layer.release(request) for layer in self._layers)

    def layer(self, index: int, requests: Sequence[int] | None = None) -> FusedLayer:
        """One layer as attention reads it, see ``ResidentLayer.layer``."""
        return self._layers[index].layer(requests)

    def _check(self, k: Sequence[Tensor], v: Sequence[Tensor], request: int | None) -> None:
        for name, tensors in (("k", k), ("v", v)):
            if len(tensors) != len(self._layers):
                raise InputError(
                    name, f"{len(tensors)} tensors", f"must hold one per layer, {len(self._layers)}"
                )
        needed: dict[int, int] = {}
        for layer, keys, values in zip(self._layers, k, v, strict=True):
            if request is not None:
                layer.length(request)
            layer.check_tokens(keys, values)
            if len(keys) != len(k[0]):
                raise InputError("k", tuple(keys.shape), f"must hold {len(k[0])} tokens in every layer")
            pool = id(layer.pool)
            needed[pool] = needed.get(pool, 0) + layer.blocks_for(len(keys), request)
            layer.pool.require(needed[pool], "k", tuple(keys.shape))
