"""What a synthetic cache is made of, as named numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, Self

from ratedist.errors import InputError

__all__ = ["BlockParameters"]


@dataclass(frozen=True, kw_only=True)
class BlockParameters:
    """Parameters of synthetic blocks.

    The direction of a block's keys, before its position turns it, is α·m + √(1 − α²)·e: m the common
    direction (with the position's own, where ``position_k`` is given), α its alignment, e a unit residual.
    Residuals are √w·T + √(1 − w)·u with T of the block's topic (w = ``topic_k``) and u its own, uniform on a
    sphere of ``dimension_k`` dimensions. So, for blocks at one position that share no content, E[S_K] =
    common_k + position_k, plus w·(1 − that) where they share a topic, exactly; with one topic or none,
    Var[S_K] = (1 − E[S_K])²/dimension_k where ``spread_k`` is 0. Values are made alike and are not turned.
    Test: tests/sim/test_blocks.py::test_moments_of_the_score.

    Attributes:
        block_size: t, tokens per block.
        kv_heads: h.
        head_dim: d; a block's dimension is r = t·h·d.
        common_k: share of the keys' squared norm in the direction common to all blocks.
        common_v: the same of values.
        position_k: share of the keys' squared norm in a direction of each position's own (as learned
            positions give), beside what rotation does.
        rotary_base: base of the rotary positions that turn the keys; None: not turned.
        spread_k: standard deviation of α over blocks: some blocks are more typical than others.
        spread_v: the same of values.
        dimension_k: effective dimension of the keys' residual; None: all that r leaves.
        dimension_v: the same of values.
        coupling: correlation of the residual coordinates of a block's keys and values.
        topics: number of topics; 0: none.
        topics_per_request: different topics that one request speaks of, each of its blocks of one.
        topic_k: w, share of the keys' residual squared norm that is the topic's.
        topic_v: the same of values.
        prefix_blocks: leading blocks that requests share byte for byte.
        prefix_groups: number of different prefixes; every request draws one.
        chunks: number of chunks in the library.
        chunk_blocks: blocks per chunk; requests are cut into slots of so many after the prefix.
        chunk_share: chance that a slot is filled with a chunk of the library.
        chunk_skew: chunk i is drawn with weight (i + 1)^(−chunk_skew).
        chunk_reuse: ``copy``: the bytes are the chunk's wherever it stands (as position-independent caches
            reuse it); ``recompute``: the same content in another context, turned to where it stands, which
            makes it a lightly edited duplicate.
        edit_sources: templates per position of which lightly edited versions occur; 0: none.
        edit_share: chance that a block outside prefix and chunks is an edited version of a template.
        edit_similarity: expected key score of two edited versions at one position.
        norm_k: norm of a block's keys (geometric mean).
        norm_v: the same of values.
        norm_spread_k: standard deviation of the logarithm of the norm.
        norm_spread_v: the same of values.
        norm_slope: change of the logarithm of both norms per position.
        norm_first: factor on both norms at the first position (attention sinks have another norm).
        norm_coupling: correlation of the logarithms of the two norms of a block.
        domains: number of domains; request i belongs to domain i modulo it.

    Raises:
        InputError: a field outside its domain, naming it; or fields that contradict each other.
    """

    block_size: int = 16
    kv_heads: int = 3
    head_dim: int = 64
    common_k: float = 0.75
    common_v: float = 0.2
    position_k: float = 0.0
    rotary_base: float | None = 10_000.0
    spread_k: float = 0.0
    spread_v: float = 0.0
    dimension_k: int | None = None
    dimension_v: int | None = None
    coupling: float = 0.0
    topics: int = 0
    topics_per_request: int = 1
    topic_k: float = 0.0
    topic_v: float = 0.0
    prefix_blocks: int = 0
    prefix_groups: int = 1
    chunks: int = 0
    chunk_blocks: int = 4
    chunk_share: float = 0.0
    chunk_skew: float = 0.0
    chunk_reuse: Literal["copy", "recompute"] = "copy"
    edit_sources: int = 0
    edit_share: float = 0.0
    edit_similarity: float = 0.95
    norm_k: float = 1.0
    norm_v: float = 1.0
    norm_spread_k: float = 0.0
    norm_spread_v: float = 0.0
    norm_slope: float = 0.0
    norm_first: float = 1.0
    norm_coupling: float = 0.0
    domains: int = 1

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(item.name, value, "must be finite")
        for names, low in (
            (("block_size", "kv_heads", "head_dim", "topics_per_request", "prefix_groups"), 1),
            (("chunk_blocks", "domains"), 1),
            (("topics", "prefix_blocks", "chunks", "edit_sources"), 0),
        ):
            for name in names:
                _whole(name, getattr(self, name), low)
        for name in ("common_k", "common_v", "position_k", "topic_k", "topic_v", "chunk_share", "edit_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(name, getattr(self, name), "is a share and must lie in [0, 1]")
        for name in ("coupling", "norm_coupling"):
            if not -1 <= getattr(self, name) <= 1:
                raise InputError(name, getattr(self, name), "is a correlation and must lie in [-1, 1]")
        for name in ("spread_k", "spread_v", "norm_spread_k", "norm_spread_v", "chunk_skew"):
            if getattr(self, name) < 0:
                raise InputError(name, getattr(self, name), "must not be negative")
        for name in ("norm_k", "norm_v", "norm_first"):
            if getattr(self, name) <= 0:
                raise InputError(name, getattr(self, name), "must be positive")
        self._check_directions()
        self._check_content()

    def _check_directions(self) -> None:
        if self.rotary_base is not None:
            if self.rotary_base <= 1:
                raise InputError("rotary_base", self.rotary_base, "must be above 1, or None for no rotation")
            if self.head_dim % 2:
                raise InputError(
                    "head_dim", self.head_dim, "must be even where keys are turned by rotary positions"
                )
        if self.common_k + self.position_k >= 1:
            raise InputError(
                "position_k", self.position_k, f"must leave a residual beside common_k = {self.common_k}"
            )
        if self.common_v >= 1:
            raise InputError("common_v", self.common_v, "must be below 1, to leave a residual")
        for name, mean in (("spread_k", self.common_k + self.position_k), ("spread_v", self.common_v)):
            spread = getattr(self, name)
            if math.sqrt(mean) + 3 * spread > 1 or (spread > 0 and mean == 0):
                raise InputError(
                    name,
                    spread,
                    f"must keep the alignment {math.sqrt(mean):.3g} ± 3 spreads at most 1 (and needs a "
                    "common direction to be aligned with)",
                )
        levels = 1 + (self.topics > 0) + (self.has_variants)
        for name in ("dimension_k", "dimension_v"):
            value = getattr(self, name)
            if value is None:
                continue
            _whole(name, value, levels)
            room = self.block_dim - (1 if (self.common_k if name == "dimension_k" else self.common_v) else 0)
            if value > room:
                raise InputError(
                    name, value, f"must be at most {room}, what blocks of dimension {self.block_dim} leave"
                )

    def _check_content(self) -> None:
        if self.topics and self.topics_per_request > self.topics:
            raise InputError(
                "topics_per_request", self.topics_per_request, f"must be at most topics = {self.topics}"
            )
        if self.chunk_share > 0 and self.chunks == 0:
            raise InputError("chunks", 0, f"must be at least 1 where chunk_share is {self.chunk_share}")
        if self.edit_share > 0 and self.edit_sources == 0:
            raise InputError("edit_sources", 0, f"must be at least 1 where edit_share is {self.edit_share}")
        if self.chunk_reuse not in ("copy", "recompute"):
            raise InputError("chunk_reuse", self.chunk_reuse, "must be copy or recompute")
        if self.has_variants and not self.plain_similarity <= self.edit_similarity <= 1:
            raise InputError(
                "edit_similarity",
                self.edit_similarity,
                f"must lie in [{self.plain_similarity:.4g}, 1]: blocks of one position and topic have that "
                "already",
            )

    @property
    def block_dim(self) -> int:
        """r = t·h·d."""
        return self.block_size * self.kv_heads * self.head_dim

    @property
    def has_variants(self) -> bool:
        """Whether different blocks can be versions of one content."""
        return self.edit_sources > 0 or (self.chunks > 0 and self.chunk_reuse == "recompute")

    @property
    def plain_similarity(self) -> float:
        """Expected key score of two blocks of one position and topic whose content is not the same."""
        fixed = self.common_k + self.position_k
        return fixed + (1 - fixed) * (self.topic_k if self.topics else 0.0)

    @property
    def edit_correlation(self) -> float:
        """Correlation of the topic-free residuals of two versions of one content, of keys and of values."""
        if not self.has_variants:
            return 0.0
        return (self.edit_similarity - self.plain_similarity) / (1 - self.plain_similarity)

    @classmethod
    def uniform(cls, dimension: int) -> Self:
        """Independent uniform directions of ``dimension`` dimensions: S follows ``Spherical(dimension)``.

        A block has one token of one head of that dimension; values are uniform too and independent of keys.
        Test: tests/sim/test_blocks.py::test_uniform_blocks_follow_the_spherical_law.
        """
        _whole("dimension", dimension, 2)
        return cls(block_size=1, kv_heads=1, head_dim=dimension, common_k=0.0, common_v=0.0, rotary_base=None)

    @classmethod
    def gaussian(cls, mean: float, std: float) -> Self:
        """Blocks whose key score has this mean and standard deviation, and nearly the Gaussian law.

        A common direction of share ``mean`` and a residual of dimension ((1 − mean)/std)², rounded.
        Test: tests/sim/test_blocks.py::test_moments_of_the_score.
        """
        if not 0 <= mean < 1:
            raise InputError("mean", mean, "must lie in [0, 1): it becomes the share of a common direction")
        if not (math.isfinite(std) and std > 0):
            raise InputError("std", std, "must be positive")
        dimension = round(((1 - mean) / std) ** 2)
        if dimension < 2:
            raise InputError("std", std, f"must be at most {(1 - mean) / math.sqrt(2):.3g} at mean {mean}")
        return cls(
            block_size=1,
            kv_heads=1,
            head_dim=dimension + 1,
            common_k=mean,
            common_v=mean,
            rotary_base=None,
            dimension_k=dimension,
            dimension_v=dimension,
        )


def _whole(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InputError(name, value, f"must be a whole number of at least {low}")
