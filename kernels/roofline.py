"""What a kernel can at best take, from bytes, operations and published peaks: an estimate, no measurement.

Every kernel is given a nominal problem of ordinary size. Its bytes are compulsory traffic: everything that
the kernel needs read once and everything that it makes written once, as if caches caught every second read.
Its operations come in two kinds: useful ones, which the definition asks for, and performed ones, which also
count rows that fill up a tile and the second product that carries what rounding takes from a restored block.
The time is that of the busiest of memory, matrix units and vector units, each at its published peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ratedist.errors import InputError
from ratedist.gpus import GPUS

if TYPE_CHECKING:
    from ratedist.kernels._launch_triton import Specialisation

__all__ = ["PEAKS", "Problem", "Roofline", "estimate", "nominal_problem"]


PEAKS = {"cuda:80": GPUS["a100"], "cuda:90": GPUS["h100"], "hip:gfx942": GPUS["mi300x"]}
"""By target of ``ratedist.kernels.compile``."""


@dataclass(frozen=True)
class Problem:
    """A nominal problem of one kernel.

    Attributes:
        name: what it is, with its sizes.
        bytes: that must pass between memory and GPU.
        operations: useful ones, a multiply-add as two.
        products: operations performed in products of matrices.
        others: operations performed one by one; an exponential counts as one.
    """

    name: str
    bytes: float
    operations: float
    products: float
    others: float


@dataclass(frozen=True)
class Roofline:
    """An estimate from published peaks; nothing here was measured.

    Attributes:
        gpu: whose peaks.
        problem: nominal problem.
        bound: "memory", "matrix" or "vector": what is busy longest.
        share: of the peak rate of its products (or of its vector operations, where it has no products) that
            the kernel can attain before another limit binds.
        seconds: for the problem.
    """

    gpu: str
    problem: str
    bound: str
    share: float
    seconds: float


_BLOCKS, _ROWS, _BLOCK_DIM = 8192, 1024, 3072
_KV_HEADS, _GROUP, _BLOCK_SIZE, _LENGTH = 8, 4, 16, 4096
_DECODED, _PREFILLED, _CHUNK, _SPLITS = 64, 8, 512, 8

_PER_SCORE = 6
"""Scale, compare, subtract, exponential, sum and mask."""

_PER_RESTORED = 6
"""Operations per restored scalar: turn (3) or dequantise (2), take a mean away, scale, put a mean back."""


def nominal_problem(specialisation: Specialisation) -> Problem:
    """The problem that stands for one form of one kernel.

    Raises:
        InputError: a kernel that none was thought of for.
    """
    family = specialisation.name.partition("[")[0]
    size = specialisation.dtype.itemsize
    if family == "block_norms":
        scalars = _BLOCKS * _BLOCK_DIM
        name = f"norms of {_BLOCKS} blocks of {_BLOCK_DIM}"
        return Problem(name, scalars * size + 4 * _BLOCKS, 2 * scalars, 0, 2 * scalars)
    if family == "gather_blocks":
        return Problem(
            f"copy of {_BLOCKS} blocks of {_BLOCK_DIM}",
            2 * _BLOCKS * _BLOCK_DIM * size + 8 * _BLOCKS,
            0,
            0,
            0,
        )
    if family in ("matched_blocks", "group_sums"):
        return _space(specialisation)
    if family in ("best_match", "lowest_label"):
        constexprs = specialisation.constexprs
        # Keys alone, or keys and values.
        terms = 2 if constexprs["TWO_TERMS"] or constexprs["MANY"] else 1
        products = 2 * _ROWS * _BLOCKS * _BLOCK_DIM * terms
        traffic = (_ROWS + _BLOCKS) * (_BLOCK_DIM * size * terms + 8) + 8 * _ROWS
        name = f"{_ROWS} against {_BLOCKS} blocks of {_BLOCK_DIM}"
        return Problem(name, traffic, products, products, 3 * _ROWS * _BLOCKS * terms)
    if family == "attention_merge":
        rows = _DECODED * _KV_HEADS * _GROUP
        scalars = rows * 128
        return Problem(
            f"{_SPLITS} parts of {rows} rows of 128",
            scalars * (4 * _SPLITS + size) + 4 * rows * (_SPLITS + 1),
            2 * _SPLITS * scalars,
            0,
            2 * _SPLITS * scalars,
        )
    if family.startswith("attention"):
        return _attention(specialisation)
    raise InputError(
        "kernel", specialisation.name, "has no nominal problem; give it one in kernels/roofline.py"
    )


def _space(specialisation: Specialisation) -> Problem:
    """Float32 copies without means, or sums, of one group per position of a request; an add per scalar."""
    constexprs, size = specialisation.constexprs, specialisation.dtype.itemsize
    scalars, groups = _BLOCKS * _BLOCK_DIM, _LENGTH // _BLOCK_SIZE
    turned = bool(constexprs["TURN"])
    # Of every block its id and, where keys turn, their row of the tables; then the tables, where all
    # blocks of a position share a row.
    traffic = scalars * size + 8 * _BLOCKS
    if turned:
        traffic += 4 * _BLOCKS + 2 * groups * 4 * int(constexprs["BLOCK_D"] or 0)
    per_scalar = (3 if turned else 0) + 1
    work = per_scalar * scalars
    if specialisation.name.startswith("group_sums"):
        name = f"sums of {groups} groups of {_BLOCKS} blocks of {_BLOCK_DIM}"
        return Problem(name, traffic + groups * _BLOCK_DIM * 8, work, 0, work)
    traffic += scalars * 4 + 8 * _BLOCKS + groups * _BLOCK_DIM * size
    return Problem(f"{_BLOCKS} blocks of {_BLOCK_DIM} without means", traffic, work, 0, work)


def _attention(specialisation: Specialisation) -> Problem:
    """A step of decoding, or a chunk of prefill for the forms with taller tiles."""
    constexprs, size = specialisation.constexprs, specialisation.dtype.itemsize
    block_m, head_dim, bits = (int(constexprs[name] or 0) for name in ("BLOCK_M", "BLOCK_D", "BITS"))
    restores = bool(constexprs["READING"])
    prefill = block_m > 16 and not restores
    requests, queries = (_PREFILLED, _CHUNK) if prefill else (_DECODED, 1)
    # Query j of a chunk of n that ends a request of length l attends to l - n + j + 1 tokens.
    pairs = requests * (queries * (_LENGTH - queries) + queries * (queries + 1) // 2)
    rows = queries * _GROUP
    filled = -(-rows // block_m) * block_m / rows
    scores = pairs * _KV_HEADS * _GROUP
    tokens = requests * _LENGTH
    blocks = tokens // _BLOCK_SIZE
    heads = requests * queries * _KV_HEADS * _GROUP

    scalar_bytes = bits / 8 if bits else size
    traffic = 2 * tokens * _KV_HEADS * head_dim * scalar_bytes
    # Entry of the table and two scales; with a reading a turn, two means and a row of cosines and sines.
    traffic += blocks * (12 + (12 + 8 * head_dim if restores else 0))
    if bits:
        # Low and step in float16: of every channel of a block's keys, of every token of its values.
        traffic += 4 * _KV_HEADS * (blocks * head_dim + tokens)
    traffic += heads * (2 * head_dim * size + 4)
    useful = 4 * head_dim * scores
    twice = 2 if restores and size < 4 else 1
    tiles = requests * -(-rows // block_m)
    restored = 2 * _PER_RESTORED * tiles * _LENGTH * _KV_HEADS * head_dim if restores else 0
    return Problem(
        f"{'prefill of ' + str(_CHUNK) if prefill else 'decoding'}, {requests} requests of {_LENGTH}, "
        f"{_KV_HEADS * _GROUP}/{_KV_HEADS} heads of {head_dim}",
        traffic,
        useful,
        useful * filled * twice,
        _PER_SCORE * scores * filled + restored,
    )


def estimate(specialisation: Specialisation, target: str) -> tuple[float, Roofline]:
    """Useful operations per byte of the nominal problem, and the roofline over it.

    With traffic B, products P and other operations O, and peaks b, m and v: seconds = max(B/b, P/m, O/v),
    and the share is P/m (O/v without products) of that. float32 products run on the vector units.

    Args:
        specialisation: form of a kernel.
        target: one of ``PEAKS``.

    Test: tests/kernels/test_roofline.py::test_seconds_are_of_the_busiest_unit.
    """
    peaks, problem = PEAKS[target], nominal_problem(specialisation)
    on_vectors = specialisation.dtype == torch.float32
    matrix = 0.0 if on_vectors else problem.products / peaks.matrix
    vector = (problem.others + (problem.products if on_vectors else 0.0)) / peaks.vector
    times = {"memory": problem.bytes / peaks.bandwidth, "matrix": matrix, "vector": vector}
    bound = max(times, key=lambda unit: times[unit])
    share = (matrix or vector) / times[bound]
    return problem.operations / problem.bytes, Roofline(peaks.name, problem.name, bound, share, times[bound])
