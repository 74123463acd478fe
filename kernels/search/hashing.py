"""Random-hyperplane hashing: how many tables of how many bits, and the recall that they give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from ratedist.errors import InputError

__all__ = ["MOST_BITS", "Hashing", "choose_hashing"]

MOST_BITS = 30
"""Bits that a key may have: keys are int32, and 2^30 buckets separate more blocks than a pool holds."""

_MOST_TABLES = 4096

# Work of the parts of a search in multiply-adds of a matrix product, as seen on a CPU. They steer the
# choice of bits alone; the recall does not depend on them.
_PER_KEY = 10_000  # packing the bits of a block's key in one table, and sorting it
_PER_PAIR = 1_000  # listing a candidate pair
_PER_PAIR_SCALAR = 400  # fetching one scalar of both of its blocks from far apart


@dataclass(frozen=True)
class Hashing:
    """Tables of keys made of the sides on which a block lies of random hyperplanes through the mean.

    Two blocks are compared where at least one table gives both the same key.

    Attributes:
        tables: hash tables, 1 to 4096. More find more pairs, and take time and no memory.
        bits: hyperplanes per table, 1 to 30. More leave fewer pairs of unlike blocks to be compared.
        seed: seed of the hyperplanes; they are the same on every device.
        centre: measure sides from the mean direction of the blocks of a domain. Without it a mean that the
            blocks share puts most of them on one side of most hyperplanes, and candidates explode.

    Raises:
        InputError: a number outside these ranges.
    """

    tables: int
    bits: int
    seed: int = 0
    centre: bool = True

    def __post_init__(self) -> None:
        _whole("tables", self.tables, 1, _MOST_TABLES)
        _whole("bits", self.bits, 1, MOST_BITS)
        _whole("seed", self.seed, 0, 2**63 - 1)
        if not isinstance(self.centre, bool):
            raise InputError("centre", self.centre, "must be True or False")

    def recall(self, similarity: float) -> float:
        """Chance that a pair is compared, 1 − (1 − (1 − arccos(s)/π)^bits)^tables, over draws of the planes.

        With ``centre``, s is the similarity of the directions after their mean was taken off, which is
        lower than the cosine: a share c of common similarity leaves about (cosine − c)/(1 − c). Test:
        tests/kernels/search/test_search.py::test_recall_follows_the_thinning_curve.

        Args:
            similarity: s, within [-1, 1].
        """
        _within("similarity", similarity, -1.0, 1.0)
        same = (1 - math.acos(similarity) / math.pi) ** self.bits
        return 1.0 if same == 1 else -math.expm1(self.tables * math.log1p(-same))


def choose_hashing(
    recall: float,
    similarity: float,
    blocks: int,
    *,
    dim: int = 1024,
    common: float = 0.0,
    seed: int = 0,
) -> Hashing:
    """The hashing of least work that compares a pair of this similarity with at least this chance.

    Per number of bits, the recall sets the number of tables; work is that of the keys, which grows with
    the tables, and that of comparing unlike blocks that share a key by chance, blocks²/2 · tables/2^bits.
    The best number of bits grows like log2(blocks), so that the whole grows like
    blocks^(1 + ρ), ρ = ln(1 − arccos(s)/π)/ln(1/2): 1.22 at s = 0.9.

    Args:
        recall: wanted chance, above 0 and below 1.
        similarity: cosine of the pair, above 0 and below 1; pairs that are nearer are found more often.
        blocks: full blocks in the pool (of one domain), at least 1.
        dim: r, scalars of a block's keys.
        common: similarity of unrelated blocks, which centring takes away; below ``similarity``.
        seed: seed of the hyperplanes.

    Raises:
        InputError: an argument outside its range, or a recall that no 4096 tables reach.
    """
    _within("recall", recall, 0.0, 1.0, open_ends=True)
    _within("similarity", similarity, 0.0, 1.0, open_ends=True)
    _whole("blocks", blocks, 1, 2**40)
    _whole("dim", dim, 1, 2**40)
    _within("common", common, -1.0, 1.0, open_ends=True)
    if common >= similarity:
        raise InputError(
            "common", common, f"must be below similarity = {similarity}: such pairs are not special"
        )
    centred = (similarity - common) / (1 - common)
    # Below a common similarity of 0 nothing is to be won by centring.
    side = 1 - math.acos(min(centred, similarity)) / math.pi
    best, least = None, math.inf
    for bits in range(1, MOST_BITS + 1):
        tables = math.ceil(math.log1p(-recall) / math.log1p(-(side**bits)))
        if tables > _MOST_TABLES:
            break
        keys = blocks * (dim * bits + _PER_KEY)
        pairs = blocks**2 / 2 / 2**bits * (_PER_PAIR_SCALAR * dim + _PER_PAIR)
        work = tables * (keys + pairs)
        if work < least:
            best, least = Hashing(tables, bits, seed), work
    if best is None:
        raise InputError("recall", recall, f"needs more than {_MOST_TABLES} tables at this similarity")
    return best


def _whole(argument: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(argument, value, f"must be a whole number from {low} to {high}")


def _within(argument: str, value: object, low: float, high: float, *, open_ends: bool = False) -> None:
    inside = isinstance(value, Real) and not isinstance(value, bool)
    if inside:
        number = float(value)  # type: ignore[arg-type]
        inside = low < number < high if open_ends else low <= number <= high
    if not inside:
        between = f"above {low:g} and below {high:g}" if open_ends else f"from {low:g} to {high:g}"
        raise InputError(argument, value, f"must be a number {between}")
