"""A generator whose similarity and fusion are those of a captured layer, from a sample of its requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ratedist.errors import InputError
from ratedist.sim.atoms import byte_groups, find_atoms
from ratedist.sim.model import BlockModel, Side
from ratedist.sim.prefix_tree import ObservedContent, PrefixTreeContent
from ratedist.sim.rotary import Rotary
from ratedist.sim.spectrum import Spectrum, estimate_spectrum

__all__ = ["Calibration", "calibrate"]

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]
IntArray = NDArray[np.int64]

_RANK = 256
_ROUNDS = 3
_MOST_BLOCKS = 8192


@dataclass(frozen=True)
class Calibration:
    """A calibrated model, and what was found on the way.

    Attributes:
        model: the generator.
        requests: requests it was calibrated on.
        blocks: blocks it was calibrated on.
        distinct: blocks among them that differ in bytes.
        contents: groups of similar blocks among those, at the coarsest level.
        cut: residual correlation above which blocks count as versions of one content.
    """

    model: BlockModel
    requests: int
    blocks: int
    distinct: int
    contents: int
    cut: float


@dataclass(frozen=True)
class _Fit:
    """Means and residuals of one side of a sample."""

    mean: Float32Array
    alignment: FloatArray
    alignment_spread: float
    residuals: Float32Array


def calibrate(
    k: Tensor,
    v: Tensor,
    *,
    full_blocks: Sequence[int] | Tensor | None = None,
    rotary: Rotary | None = None,
    seed: int = 0,
) -> Calibration:
    """Fit a generator to the blocks of one layer.

    What is taken from the sample: per position a mean direction (after turning keys back by their
    position, so that one common mean serves nearly all, each position's own part shrunk by what noise
    explains), the spread of the alignment with it, the spectrum of the residuals, norms, which blocks are
    versions of one content and how alike, and what follows what. No block of the sample is copied.

    Args:
        k: (requests, max_blocks, block_size, kv_heads, head_dim); keys as captured, turned by their
            positions.
        v: as ``k``.
        full_blocks: full blocks of each request; None: all ``max_blocks``.
        rotary: how the keys were turned; None where they were not, or it is not known.
        seed: of what the data leave open (directions of the flat part of the spectrum).

    Raises:
        InputError: fewer than two requests, shapes that do not fit, values that are not finite, a block of
        zero norm.
    """
    counts = _check(k, v, full_blocks)
    request = np.repeat(np.arange(len(counts)), counts)
    position = np.concatenate([np.arange(count) for count in counts])
    shape = (int(k.shape[2]), int(k.shape[3]), int(k.shape[4]))
    raw_k, raw_v = (
        torch.cat([x[i, :count] for i, count in enumerate(counts)]).contiguous().cpu() for x in (k, v)
    )
    exact = byte_groups(_bytes(raw_k), _bytes(raw_v))
    keys, log_norm_k = _directions("k", raw_k, request, position)
    values, log_norm_v = _directions("v", raw_v, request, position)
    if rotary is not None:
        keys = rotary.turn(keys.reshape(-1, *shape), -shape[0] * position).reshape(keys.shape)

    distinct, inverse = np.unique(exact, return_inverse=True)
    if distinct.size > _MOST_BLOCKS:
        raise InputError(
            "k", distinct.size, f"has more than {_MOST_BLOCKS} distinct blocks; calibrate on fewer requests"
        )
    keys, values = keys[distinct], values[distinct]
    log_norm_k, log_norm_v = log_norm_k[distinct], log_norm_v[distinct]
    owner, place = request[distinct], position[distinct]
    # Means need to know what is repeated, and what is repeated is seen in what means leave: in rounds.
    group, kappa = np.arange(distinct.size), 0.0
    for _ in range(_ROUNDS):
        effects = _Effects(group, place, max(counts), kappa)
        of_keys, of_values = (_fit_means(x, effects, max(counts), seed) for x in (keys, values))
        atoms = find_atoms(of_keys.residuals, of_values.residuals)
        group, kappa = atoms.groups[:, 0], _within(of_keys.residuals, atoms.groups[:, 0])
    _, first = np.unique(group, return_index=True)
    spectra = [
        estimate_spectrum(fit.residuals[first], owner[first], rank=_RANK) for fit in (of_keys, of_values)
    ]
    rng = np.random.default_rng([seed, 0xCA])
    sides = [
        _side(fit, spectrum, rng, _by_position(norms, effects, max(counts)), turned)
        for fit, spectrum, norms, turned in (
            (of_keys, spectra[0], log_norm_k, rotary),
            (of_values, spectra[1], log_norm_v, None),
        )
    ]
    starts = np.cumsum([0, *counts])
    observed = ObservedContent(
        exact=[exact[a:b] for a, b in pairwise(starts)],
        groups=[atoms.groups[inverse[a:b]] for a, b in pairwise(starts)],
        positions=[position[a:b] for a, b in pairwise(starts)],
    )
    content = PrefixTreeContent(observed, tuple(atoms.keys.tolist()), tuple(atoms.values.tolist()))
    model = BlockModel(
        shape,
        sides[0],
        sides[1],
        content,
        coupling=_coupling(of_keys, of_values, first, owner, sides[0], sides[1]),
        norm_coupling=_correlation(log_norm_k, log_norm_v, place),
    )
    return Calibration(model, len(counts), len(exact), distinct.size, first.size, float(atoms.cuts[0]))


class _Effects:
    """Least squares for the effects of positions, where blocks of one group are correlated by ``kappa``.

    Without the correlation, what requests happen to speak of at a position would pass for an effect of the
    position: with it, a group that stands at several positions tells them apart by itself. All results are
    linear in the data, so this holds weights and no data.
    """

    def __init__(self, group: IntArray, place: IntArray, positions: int, kappa: float) -> None:
        _, of, size = np.unique(group, return_inverse=True, return_counts=True)
        self.group, self.place = group, place
        self.used = np.flatnonzero(np.bincount(place, minlength=positions))
        design = (place[:, None] == self.used).astype(np.float64)
        sums = np.zeros((size.size, self.used.size))
        np.add.at(sums, of, design)
        share = kappa / (1 - kappa + kappa * size[of])
        weighted = (design - share[:, None] * sums[of]) / (1 - kappa)
        self.total = weighted.sum(axis=1)
        self.total /= self.total.sum()
        inverse = np.linalg.pinv(design.T @ weighted, hermitian=True)
        self.weights = inverse @ weighted.T
        # Variance of each position's effect, per variance of one block.
        self.noise = np.diag(inverse).copy()
        self.design = design

    def fit(self, y: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating], float]:
        """Common mean (m,), effects of the used positions (used, m), variance of one block (over all m)."""
        weights = self.weights.astype(y.dtype)
        common = self.total.astype(y.dtype) @ y
        effects = weights @ (y - common)
        left = y - common - self.design.astype(y.dtype) @ effects
        degrees = max(len(y) - self.used.size, 1)
        return common, effects, float(np.square(left).sum() / degrees)

    def elsewhere(self, shrink: FloatArray) -> Float32Array:
        """(n, n) weights of the mean that fits each block, without blocks of its own group; rows sum to 1."""
        weights = self.design @ (shrink[:, None] * (self.weights - self.total)) + self.total
        weights[self.group[:, None] == self.group[None, :]] = 0
        total = weights.sum(axis=1, keepdims=True)
        # Where nothing else informs the mean (one group in all), the block itself does.
        alone = np.abs(total[:, 0]) < 1e-9
        weights[alone], total[alone] = self.total, 1
        return (weights / total).astype(np.float32)


def _fit_means(x: Float32Array, effects: _Effects, positions: int, seed: int) -> _Fit:
    """Means by position, each shrunk towards the common mean by what noise explains, and unit residuals.

    A block's residual is taken from a mean that its own group had no part in.
    """
    common, apart, scatter = effects.fit(x)
    energy = np.square(apart).sum(axis=1).astype(np.float64)
    expected = effects.noise * scatter
    informed = effects.noise < 0.5  # less than two independent blocks say nothing about a position
    shrink = np.where(informed, np.maximum(0, 1 - expected / np.maximum(energy, 1e-30)), 0.0)

    weights = effects.elsewhere(shrink)
    without = weights @ x
    size = np.linalg.norm(without, axis=1).astype(np.float64)
    # Norm of the mean without the noise of its estimate, which would make blocks look less aligned.
    size_of_truth = np.sqrt(
        np.maximum(size**2 - scatter * np.square(weights, dtype=np.float64).sum(axis=1), 1e-12)
    )
    direction = without / np.maximum(size, 1e-12)[:, None].astype(np.float32)
    cosine = np.einsum("nr,nr->n", x, direction).astype(np.float64)
    alignment, spread = _by_position(np.clip(cosine * size / size_of_truth, -1, 1), effects, positions)
    residual = x - cosine[:, None].astype(np.float32) * direction
    residual /= np.maximum(np.linalg.norm(residual, axis=1, keepdims=True), 1e-12)

    # The part of a position's mean that the sample leaves open is drawn, so that means are as far apart
    # as they were estimated to be.
    rng = np.random.default_rng([seed, 0x3EA7])
    rows = np.tile(common, (positions + 1, 1))
    for index, position in enumerate(effects.used):
        rows[position] += np.float32(shrink[index]) * apart[index]
        missing = np.sqrt((1 - shrink[index]) * shrink[index] * energy[index])
        if missing > 0:
            drawn = rng.standard_normal(len(x)).astype(np.float32) @ residual
            rows[position] += np.float32(missing) * drawn / np.linalg.norm(drawn)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return _Fit(rows, alignment, spread, residual)


def _by_position(y: FloatArray, effects: _Effects, positions: int) -> tuple[FloatArray, float]:
    """(positions + 1,) mean of y by position, shrunk towards the overall mean, and the spread about it.

    The last entry is the overall mean, for positions beyond the sample.
    """
    common, apart, variance = effects.fit(y[:, None])
    difference = apart[:, 0]
    noise = variance * effects.noise
    informed = effects.noise < 0.5
    between = max(float(np.mean(difference[informed] ** 2 - noise[informed])), 0.0) if informed.any() else 0.0
    keep = np.where(informed, between / np.maximum(between + noise, 1e-30), 0.0)
    # The first position is unlike the others in many models (attention sinks): it keeps its own mean.
    if informed[0] and difference[0] ** 2 > 9 * noise[0]:
        keep[0] = 1.0
    means = np.full(positions + 1, float(common[0]))
    means[effects.used] += keep * difference
    return means, float(np.sqrt(variance))


def _within(residuals: Float32Array, group: IntArray) -> float:
    """Mean correlation of residuals of one group, 0 where no group has two blocks."""
    _, of, size = np.unique(group, return_inverse=True, return_counts=True)
    sums = np.zeros((size.size, residuals.shape[1]), dtype=np.float32)
    np.add.at(sums, of, residuals)
    pairs = float(np.square(size, dtype=np.float64).sum() - len(group))
    return float(np.clip((np.square(sums).sum() - len(group)) / pairs, 0, 0.95)) if pairs > 0 else 0.0


def _side(
    fit: _Fit,
    spectrum: Spectrum,
    rng: np.random.Generator,
    norms: tuple[FloatArray, float],
    rotary: Rotary | None,
) -> Side:
    r = fit.mean.shape[1]
    rest = max(0.0, 1 - float(spectrum.shares.sum()))
    axes = np.sort(rng.choice(r, size=spectrum.rest_dimension, replace=False))
    return Side(
        mean=fit.mean,
        alignment=fit.alignment,
        alignment_spread=fit.alignment_spread,
        spectrum=np.concatenate([spectrum.shares, np.full(axes.size, rest / axes.size)]),
        basis=spectrum.basis,
        axes=axes,
        log_norm=norms[0],
        log_norm_spread=norms[1],
        rotary=rotary,
    )


def _coupling(
    keys: _Fit, values: _Fit, first: IntArray, owner: IntArray, side_k: Side, side_v: Side
) -> float:
    """Correlation of coordinates that gives the similarities of keys and of values their covariance.

    With coordinates coupled by κ, Cov(⟨e, e'⟩_K, ⟨e, e'⟩_V) = κ² Σ_j λ_j μ_j over the shared coordinates.
    """
    alike = [(fit.residuals[first] @ fit.residuals[first].T).astype(np.float64) for fit in (keys, values)]
    between = owner[first][:, None] != owner[first][None, :]
    if not between.any():
        return 0.0
    covariance = float(np.mean((alike[0] * alike[1])[between]))
    size = min(side_k.spectrum.size, side_v.spectrum.size)
    possible = float(side_k.spectrum[:size] @ side_v.spectrum[:size])
    return float(np.sqrt(np.clip(covariance / possible, 0, 1)))


def _correlation(a: FloatArray, b: FloatArray, place: IntArray) -> float:
    """Correlation within positions, 0 where either does not vary."""
    a, b = (x - (np.bincount(place, weights=x) / np.maximum(np.bincount(place), 1))[place] for x in (a, b))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip((a @ b) / scale, -1, 1)) if scale > 1e-12 else 0.0


def _bytes(x: Tensor) -> NDArray[np.generic]:
    return np.asarray(x.view(torch.uint8).numpy()).reshape(len(x), -1)


def _directions(
    name: str, x: Tensor, request: IntArray, position: IntArray
) -> tuple[Float32Array, FloatArray]:
    """Unit rows (n, r) float32 and the logarithms of their norms (n,)."""
    flat = x.flatten(1).float().numpy()
    bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
    if bad.size:
        where = f"request {request[bad[0]]}, block {position[bad[0]]}"
        raise InputError(name, where, "holds NaN or infinity; capture again, or leave the request out")
    norms = np.linalg.norm(flat.astype(np.float64), axis=1)
    if (norms == 0).any():
        at = int(np.argmin(norms))
        raise InputError(
            name,
            f"request {request[at]}, block {position[at]}",
            "has norm zero and no direction; leave the request out",
        )
    return (flat / norms[:, None]).astype(np.float32), np.log(norms)


def _check(k: Tensor, v: Tensor, full_blocks: Sequence[int] | Tensor | None) -> tuple[int, ...]:
    if k.ndim != 5:
        raise InputError(
            "k", tuple(k.shape), "must have shape (requests, max_blocks, block_size, kv_heads, head_dim)"
        )
    if v.shape != k.shape:
        raise InputError("v", tuple(v.shape), f"must have the shape of k, {tuple(k.shape)}")
    if k.shape[0] < 2:
        raise InputError("k", k.shape[0], "must hold at least two requests: similarity is between requests")
    if full_blocks is None:
        counts = (int(k.shape[1]),) * int(k.shape[0])
    else:
        given = full_blocks.tolist() if isinstance(full_blocks, Tensor) else full_blocks
        counts = tuple(int(count) for count in given)
    if len(counts) != k.shape[0]:
        raise InputError("full_blocks", len(counts), f"must hold one count for each of {k.shape[0]} requests")
    if min(counts) < 1 or max(counts) > k.shape[1]:
        raise InputError(
            "full_blocks", counts, f"must lie in 1 … {k.shape[1]}; leave requests without a full block out"
        )
    return counts
