"""What the blocks of synthetic requests are about: who shares what, before any vector is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.sim.parameters import BlockParameters

__all__ = ["Content", "ContentProcess", "NamedContent", "block_counts"]

IntArray = NDArray[np.int64]

# Kinds of content in the upper bits of a node's number, and room for two indices below.
_KIND = 58
_FIRST = 32
_TOPIC, _PREFIX, _CHUNK, _TEMPLATE, _OWN = range(1, 6)


@dataclass(frozen=True)
class Content:
    """Content of one request, block by block.

    Attributes:
        nodes: (blocks, levels) int64; from coarse to fine, what each block belongs to. Two blocks share the
            random part of a level where their numbers are the same.
        homes: (blocks,) int64; position that turns each block's keys: its own, or, for a chunk copied byte
            for byte, the one it was computed at.

    Blocks with the same last node and the same home are byte-equal.
    """

    nodes: IntArray
    homes: IntArray


class ContentProcess(Protocol):
    """Draws the content of requests one after another."""

    @property
    def shares(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """For keys and for values: shares of the residual's squared norm by level; they sum to 1."""

    def draw(self, full_blocks: Sequence[int], seed: int) -> list[Content]:
        """Content of ``len(full_blocks)`` requests; the first of them do not depend on how many follow."""


def block_counts(requests: int, blocks: int | Sequence[int]) -> tuple[int, ...]:
    """Full blocks of each request; raises InputError where a count is below 1 or their number is wrong."""
    if isinstance(requests, bool) or not isinstance(requests, int) or requests < 1:
        raise InputError("requests", requests, "must be a whole number of at least 1")
    if isinstance(blocks, int):
        counts: tuple[int, ...] = (blocks,) * requests
    else:
        counts = tuple(int(count) for count in blocks)
        if len(counts) != requests:
            raise InputError(
                "blocks", len(counts), f"must be one number, or one for each of {requests} requests"
            )
    if min(counts) < 1:
        raise InputError("blocks", min(counts), "must be at least 1 in every request")
    return counts


@dataclass(frozen=True)
class NamedContent:
    """Content by named parameters: topics, a shared prefix, chunks of a library, edited templates.

    Levels: topic, content, version. A block that is nobody's duplicate has content and version of its own.
    """

    parameters: BlockParameters

    @property
    def shares(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Shares of topic, content and version, for keys and for values."""
        both = []
        for topic in (self.parameters.topic_k, self.parameters.topic_v):
            weight = topic if self.parameters.topics else 0.0
            same = self.parameters.edit_correlation
            both.append((weight, (1 - weight) * same, (1 - weight) * (1 - same)))
        return both[0], both[1]

    def draw(self, full_blocks: Sequence[int], seed: int) -> list[Content]:
        """See ``ContentProcess.draw``."""
        return [self._request(index, count, seed) for index, count in enumerate(full_blocks)]

    def _request(self, request: int, blocks: int, seed: int) -> Content:
        p = self.parameters
        rng = np.random.default_rng([seed, request])
        position = np.arange(blocks)
        own = _number(_OWN, request, position)
        content, version, homes = own.copy(), own.copy(), position.copy()
        topic = np.zeros(blocks, dtype=np.int64)
        if p.topics:
            spoken = rng.choice(p.topics, size=p.topics_per_request, replace=False)
            topic = _number(_TOPIC, spoken[rng.integers(p.topics_per_request, size=blocks)], 0)

        prefix = min(p.prefix_blocks, blocks)
        if prefix:
            group = int(rng.integers(p.prefix_groups))
            content[:prefix] = version[:prefix] = _number(_PREFIX, group, position[:prefix])
            # A prefix is one text: its topic is part of its bytes.
            topic[:prefix] = _number(_PREFIX, group, 0)

        if p.edit_sources:
            edited = rng.random(blocks) < p.edit_share
            edited[:prefix] = False
            source = rng.integers(p.edit_sources, size=blocks)
            content[edited] = _number(_TEMPLATE, source, position)[edited]
            topic[edited] = content[edited]

        if p.chunks:
            weights = (np.arange(p.chunks) + 1.0) ** -p.chunk_skew
            for start in range(prefix, blocks, p.chunk_blocks):
                taken = rng.random() < p.chunk_share
                chunk = int(rng.choice(p.chunks, p=weights / weights.sum()))
                if not taken:
                    continue
                within = np.arange(min(p.chunk_blocks, blocks - start))
                slot = slice(start, start + within.size)
                content[slot] = _number(_CHUNK, chunk, within)
                topic[slot] = _number(_CHUNK, chunk, 0)
                if p.chunk_reuse == "copy":
                    version[slot] = content[slot]
                    homes[slot] = within
                else:
                    version[slot] = own[slot]
        return Content(np.stack([topic, content, version], axis=1), homes)


def _number(kind: int, first: object, second: object) -> IntArray:
    numbers = (np.int64(kind) << _KIND) + (np.asarray(first, dtype=np.int64) << _FIRST)
    return np.asarray(numbers + np.asarray(second, dtype=np.int64))
