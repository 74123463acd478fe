"""Synthetic KV blocks: drawn from a model, block by block, each from a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ratedist.errors import InputError
from ratedist.sim.content import Content, block_counts
from ratedist.sim.model import BlockModel, Side
from ratedist.sim.parameters import BlockParameters

__all__ = ["SyntheticLayer", "generate", "synthesise"]

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Normals that open the stream of a node: alignment of keys and of values, norm of keys and of values.
_SCALARS = 4


@dataclass(frozen=True)
class SyntheticLayer:
    """Blocks of one layer, and what is known about them because they were made.

    Attributes:
        k: (requests, max_blocks, block_size, kv_heads, head_dim); zero beyond a request's end.
        v: as ``k``.
        full_blocks: (requests,) int64.
        domains: (requests,) int64.
        identity: (requests, max_blocks) int64; two blocks are byte-equal (keys and values) exactly where
            these are equal; -1 beyond a request's end.
    """

    k: Tensor
    v: Tensor
    full_blocks: Tensor
    domains: Tensor
    identity: Tensor

    @property
    def lengths(self) -> Tensor:
        """(requests,) int64: tokens per request."""
        return self.full_blocks * self.k.shape[2]

    def tokens(self, request: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one request as (tokens, kv_heads, head_dim), the form that captures store."""
        blocks = int(self.full_blocks[request])
        return self.k[request, :blocks].flatten(0, 1), self.v[request, :blocks].flatten(0, 1)


def synthesise(
    parameters: BlockParameters,
    requests: int,
    blocks: int | Sequence[int],
    *,
    seed: int,
    layer: int = 0,
    dtype: torch.dtype = torch.float32,
) -> SyntheticLayer:
    """Blocks by named parameters.

    Args:
        requests: number of requests.
        blocks: full blocks per request, one number or one per request.
        seed: seed of content, directions and everything else. The same seed gives the same bytes on the same
            machine and versions; the first requests are the same whatever number follows (of as many blocks).
        layer: another layer holds the same content under other directions.
        dtype: float32, float16 or bfloat16.

    Raises:
        InputError: an argument outside its domain.
    """
    counts = block_counts(requests, blocks)
    model = BlockModel.from_parameters(parameters, max(counts), seed=seed, layer=layer)
    return generate(model, requests, counts, seed=seed, layer=layer, dtype=dtype)


def generate(
    model: BlockModel,
    requests: int,
    blocks: int | Sequence[int],
    *,
    seed: int,
    layer: int = 0,
    dtype: torch.dtype = torch.float32,
) -> SyntheticLayer:
    """Draw requests from a model; arguments as in ``synthesise``.

    Each node of the content has a stream of normals keyed by (seed, layer, level, node), so what blocks
    share they share by construction. The parts of a block's levels are made orthonormal before they are
    mixed, so that the shares of its levels are exact and not only so in expectation.
    """
    counts = block_counts(requests, blocks)
    if dtype not in _DTYPES:
        raise InputError("dtype", str(dtype), "must be float32, float16 or bfloat16")
    drawn = model.content.draw(counts, seed)
    shape = (requests, max(counts), *model.shape)
    k, v = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    identity = torch.full(shape[:2], -1, dtype=torch.int64)
    first: dict[tuple[int, int], tuple[int, int]] = {}
    streams = _Streams(model, seed, layer)
    for request, content in enumerate(drawn):
        keys, values = streams.request(content)
        count = counts[request]
        k[request, :count] = torch.from_numpy(keys).to(dtype)
        v[request, :count] = torch.from_numpy(values).to(dtype)
        finest = content.nodes[:, -1].tolist()
        for block, key in enumerate(zip(finest, content.homes.tolist(), strict=True)):
            at = first.setdefault(key, (request, block))
            # Copied, not recomputed: a product's rounding may depend on the row it stands in.
            if at != (request, block):
                k[request, block], v[request, block] = k[at], v[at]
            identity[request, block] = at[0] * shape[1] + at[1]
    return SyntheticLayer(
        k=k,
        v=v,
        full_blocks=torch.tensor(counts, dtype=torch.int64),
        domains=torch.arange(requests, dtype=torch.int64) % model.domains,
        identity=identity,
    )


class _Streams:
    """The random part of every node, and blocks made of them."""

    def __init__(self, model: BlockModel, seed: int, layer: int) -> None:
        self._model = model
        # Philox takes a key of two words: the level's, and the node's number.
        self._words = [
            np.random.SeedSequence([seed, layer, level]).generate_state(1, np.uint64)[0]
            for level in range(len(model.content.shares[0]))
        ]

    def request(self, content: Content) -> tuple[Float32Array, Float32Array]:
        """Keys and values of one request, each (blocks, block_size, kv_heads, head_dim) float32."""
        model = self._model
        shares = model.content.shares
        used = [
            level for level in range(content.nodes.shape[1]) if shares[0][level] > 0 or shares[1][level] > 0
        ]
        size_k, size_v = model.keys.spectrum.size, model.values.spectrum.size
        normals = np.empty((len(content.nodes), len(used), _SCALARS + size_k + size_v), dtype=np.float32)
        for block, row in enumerate(content.nodes[:, used]):
            for index, (level, node) in enumerate(zip(used, row, strict=True)):
                key = np.array([self._words[level], np.uint64(node)], dtype=np.uint64)
                rng = np.random.Generator(np.random.Philox(key=key))
                rng.standard_normal(out=normals[block, index], dtype=np.float32)
        coordinates_k = normals[..., _SCALARS : _SCALARS + size_k]
        coordinates_v = normals[..., _SCALARS + size_k :]
        _couple(coordinates_k, coordinates_v, model.coupling)
        scalars = normals[..., :_SCALARS].astype(np.float64)
        _couple(scalars[..., 2:3], scalars[..., 3:4], model.norm_coupling)
        sides = []
        for side, share, coordinates, aligned, norm in (
            (model.keys, shares[0], coordinates_k, scalars[..., 0], scalars[..., 2]),
            (model.values, shares[1], coordinates_v, scalars[..., 1], scalars[..., 3]),
        ):
            weights = np.sqrt(np.asarray(share)[used])
            sides.append(
                _blocks(
                    side, model.shape, content.homes, weights, coordinates, aligned @ weights, norm @ weights
                )
            )
        return sides[0], sides[1]


def _couple(source: NDArray[np.floating], target: NDArray[np.floating], correlation: float) -> None:
    """Give the first coordinates of ``target`` this correlation with those of ``source``, in place."""
    if correlation:
        size = min(source.shape[-1], target.shape[-1])
        head = target[..., :size]
        head *= np.sqrt(1 - correlation**2)
        head += correlation * source[..., :size]


def _blocks(
    side: Side,
    shape: tuple[int, int, int],
    homes: NDArray[np.int64],
    weights: FloatArray,
    coordinates: Float32Array,
    aligned: FloatArray,
    norm: FloatArray,
) -> Float32Array:
    """(blocks, *shape): n·R(α·m + √(1 − α²)·e), with e mixed from the levels of each block."""
    residual = _mix(coordinates * np.sqrt(side.spectrum).astype(np.float32), weights)
    residual = _embed(side, residual)
    mean = side.mean[np.minimum(homes, len(side.mean) - 1)]
    residual -= np.einsum("br,br->b", residual, mean)[:, None] * mean
    residual /= np.linalg.norm(residual, axis=1, keepdims=True)
    alignment = side.alignment[np.minimum(homes, side.alignment.size - 1)] + side.alignment_spread * aligned
    alignment = np.clip(alignment, -0.999, 0.999)
    across = np.sqrt(1 - alignment**2)
    blocks = alignment.astype(np.float32)[:, None] * mean + across.astype(np.float32)[:, None] * residual
    blocks /= np.linalg.norm(blocks, axis=1, keepdims=True)
    size = np.exp(side.log_norm[np.minimum(homes, side.log_norm.size - 1)] + side.log_norm_spread * norm)
    blocks = (blocks * size.astype(np.float32)[:, None]).reshape(-1, *shape)
    block_size = shape[0]
    return blocks if side.rotary is None else side.rotary.turn(blocks, homes * block_size)


def _embed(side: Side, coordinates: Float32Array) -> Float32Array:
    """(blocks, r) residuals from their (blocks, K + A) coordinates."""
    count = len(side.basis)
    if count == 0 and side.axes.size == coordinates.shape[1] == side.mean.shape[1]:
        return coordinates
    residual = np.zeros((len(coordinates), side.mean.shape[1]), dtype=np.float32)
    residual[:, side.axes] = coordinates[:, count:]
    residual += (coordinates[:, :count] - residual @ side.basis.T) @ side.basis
    return residual


def _mix(levels: Float32Array, weights: FloatArray) -> Float32Array:
    """(blocks, D): Σ_l weights[l]·q_l, with q a block's (blocks, levels, D) made orthonormal."""
    mixed = np.zeros((levels.shape[0], levels.shape[2]), dtype=np.float32)
    done: list[Float32Array] = []
    for level in range(levels.shape[1]):
        if weights[level] == 0:
            continue
        part = levels[:, level].copy()
        for other in done:
            part -= np.einsum("bd,bd->b", part, other)[:, None] * other
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        done.append(part)
        mixed += np.float32(weights[level]) * part
    return mixed
