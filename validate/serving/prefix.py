"""Exact prefix sharing: which resident request begins with the same tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = ["PrefixIndex"]


class PrefixIndex:
    """Chains of full blocks of token ids, and the resident requests that hold them.

    As in the prefix caches of serving engines, a block is found by its tokens and all tokens before it, in
    its domain, so that its keys and values need not be computed again. Only resident requests are found.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._holders: dict[bytes, dict[int, None]] = {}
        self._chains: dict[int, list[bytes]] = {}

    def add(self, request: int, tokens: Sequence[int], domain: int) -> None:
        """Note the full blocks of ``tokens``, which ``request`` has in the cache; call again as they grow."""
        chain = self._chain(tokens, domain)
        for key in chain:
            self._holders.setdefault(key, {})[request] = None
        self._chains[request] = chain

    def remove(self, request: int) -> None:
        """Forget a request that is released; nothing happens where it is unknown."""
        for key in self._chains.pop(request, ()):
            holders = self._holders[key]
            del holders[request]
            if not holders:
                del self._holders[key]

    def longest(self, tokens: Sequence[int], domain: int) -> tuple[int, int] | None:
        """(request, blocks): who holds most leading full blocks of ``tokens``, and how many; None if nobody.

        The last token is left out, so that there is always one to compute.
        """
        chain = self._chain(tokens[: len(tokens) - 1], domain)
        for blocks in range(len(chain), 0, -1):
            holders = self._holders.get(chain[blocks - 1])
            if holders:
                return next(iter(holders)), blocks
        return None

    def _chain(self, tokens: Sequence[int], domain: int) -> list[bytes]:
        digest = hashlib.sha256(str(domain).encode())
        chain = []
        for end in range(self._block_size, len(tokens) + 1, self._block_size):
            block = tokens[end - self._block_size : end]
            digest.update(b"".join(int(token).to_bytes(4, "little") for token in block))
            chain.append(digest.copy().digest())
        return chain
