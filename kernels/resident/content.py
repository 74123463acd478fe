"""Exact duplicates in incremental use: which contents are resident, and where they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Content", "ContentIndex", "digests"]


def digests(k: Tensor, v: Tensor, blocks: Sequence[int]) -> list[bytes]:
    """SHA-256 of the bytes of every block's keys and values.

    ``ratedist.kernels.fusion.exact`` confirms duplicates byte for byte. Here the bytes of an absorbed block
    are gone when a duplicate of it arrives, so a digest without practical collisions stands for them, as it
    stands for tokens in the prefix caches of serving engines.

    Args:
        k: (blocks, block_size, kv_heads, head_dim).
        v: as ``k``.
        blocks: physical ids.
    """
    result = []
    for block in blocks:
        digest = hashlib.sha256()
        for pool in (k, v):
            digest.update(pool[block].contiguous().cpu().view(torch.uint8).numpy().tobytes())
        result.append(digest.digest())
    return result


@dataclass
class Content:
    """Where a content that was fused is read.

    Attributes:
        request: the request that brought it first.
        representative: physical id of the block that stands for it.
        k_scale: scale of the keys when read from there.
        v_scale: scale of the values.
        score: criterion score against the representative.
        kept: whether the representative holds this very content.
        spans: whether two requests have brought it.
        twins: physical ids of further blocks of the same request that hold it and were kept.
    """

    request: int
    representative: int
    k_scale: float = 1.0
    v_scale: float = 1.0
    score: float = 1.0
    kept: bool = True
    spans: bool = False
    twins: list[int] = field(default_factory=list)

    def shared_with(self, request: int) -> bool:
        """Whether a block of ``request`` with this content shares: it is not one request's alone."""
        return self.spans or self.request != request


class ContentIndex:
    """The contents of all blocks that were fused, kept or absorbed, as long as they can be read."""

    def __init__(self) -> None:
        self._contents: dict[tuple[int, bytes], Content] = {}
        self._keys: dict[int, list[tuple[int, bytes]]] = {}

    def __len__(self) -> int:
        return len(self._contents)

    def find(self, domain: int, digest: bytes) -> Content | None:
        """The content, or None where it is not resident in this domain."""
        return self._contents.get((domain, digest))

    def add(self, domain: int, digest: bytes, content: Content) -> None:
        """Remember a content, or one more block of the request that brought it."""
        key = (domain, digest)
        known = self._contents.setdefault(key, content)
        if known is content:
            self._keys.setdefault(content.representative, []).append(key)
        elif known.kept and content.kept:
            known.twins.append(content.representative)
            self._keys.setdefault(content.representative, []).append(key)

    def join(self, content: Content) -> list[int]:
        """A second request brings the content: the twins, which from now on share as well."""
        content.spans = True
        twins, content.twins = content.twins, []
        # What was absorbed by a twin follows it.
        for twin in twins:
            for key in self._keys.pop(twin, ()):
                moved = self._contents[key]
                if moved.representative == twin:
                    moved.representative = content.representative
                    self._keys[content.representative].append(key)
        return twins

    def displace(self, domain: int, digest: bytes) -> None:
        """Drop a content whose readers go on as they are, so that its next block can stand for it."""
        content = self._contents.pop((domain, digest))
        self._keys[content.representative].remove((domain, digest))

    def forget(self, block: int) -> None:
        """A representative is free: drop what was read from it, or read it from a twin."""
        for key in self._keys.pop(block, ()):
            content = self._contents.get(key)
            if content is None:
                continue
            if block in content.twins:
                content.twins.remove(block)
            elif content.representative == block:
                if content.twins:
                    content.representative = content.twins.pop(0)
                else:
                    del self._contents[key]
