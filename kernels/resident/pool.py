"""Physical blocks of one layer: which are free, how many readers each has, and writing to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ratedist.errors import InputError

__all__ = ["BlockPool", "PoolExhaustedError"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class PoolExhaustedError(InputError):
    """More blocks are needed than are free; nothing was changed.

    Attributes:
        needed: blocks that the call needs.
        free: blocks that are free.
    """

    def __init__(self, argument: str, value: object, needed: int, free: int, blocks: int) -> None:
        self.needed = needed
        self.free = free
        super().__init__(
            argument,
            value,
            f"needs {needed} free block{'' if needed == 1 else 's'}, {free} of {blocks} "
            f"{'is' if free == 1 else 'are'} free; release requests, or make a larger pool",
        )


class BlockPool:
    """A fixed number of physical blocks with reference counts.

    A block is free (no references) or belongs to the domain that took it. Only a block with exactly one
    reference may be written, and one of another domain may not be shared.

    Attributes:
        k: (blocks, block_size, kv_heads, head_dim) keys; write through ``write`` only.
        v: as ``k``.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate the pool.

        Args:
            blocks: physical blocks, at least 1.
            block_size: tokens per block, at least 1.
            kv_heads: KV heads, at least 1.
            head_dim: scalars per head, at least 1.
            dtype: float32, float16 or bfloat16.
            device: where the pool lies.

        Raises:
            InputError: a size below 1, or another dtype.
        """
        for name, size in (
            ("blocks", blocks),
            ("block_size", block_size),
            ("kv_heads", kv_heads),
            ("head_dim", head_dim),
        ):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise InputError(name, size, "must be an integer of at least 1")
        if dtype not in _FLOATS:
            raise InputError("dtype", str(dtype), "must be float32, float16 or bfloat16")
        self.k = torch.zeros(blocks, block_size, kv_heads, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self._references = [0] * blocks
        self._domain = [0] * blocks
        # Popped from the end, so that the lowest ids are taken first.
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def blocks(self) -> int:
        """Physical blocks, free or not."""
        return self.k.shape[0]

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.k.shape[1]

    @property
    def free_blocks(self) -> int:
        """Blocks without references."""
        return len(self._free)

    def references(self, block: int) -> int:
        """How many entries of block tables name this block."""
        return self._references[self._known(block)]

    def require(self, needed: int, argument: str, value: object) -> None:
        """Raise PoolExhaustedError, naming the argument, unless so many blocks are free."""
        if needed > len(self._free):
            raise PoolExhaustedError(argument, value, needed, len(self._free), self.blocks)

    def take(self, domain: int) -> int:
        """A free block, now with one reference and of this domain.

        Raises:
            PoolExhaustedError: none is free.
        """
        self.require(1, "domain", domain)
        block = self._free.pop()
        self._references[block] = 1
        self._domain[block] = domain
        return block

    def share(self, block: int, domain: int) -> None:
        """Add a reference.

        Raises:
            InputError: the block is unknown, free, or of another domain.
        """
        self._in_use(block)
        if self._domain[block] != domain:
            raise InputError(
                "domain",
                domain,
                f"block {block} belongs to domain {self._domain[block]}; domains never share",
            )
        self._references[block] += 1

    def drop(self, block: int) -> bool:
        """Remove a reference; whether it was the last one, so that the block is free now.

        Raises:
            InputError: the block is unknown, or free already.
        """
        self._in_use(block)
        self._references[block] -= 1
        if self._references[block]:
            return False
        self._free.append(block)
        return True

    def write(self, block: int, slot: int, k: Tensor, v: Tensor) -> None:
        """Write tokens into one block from ``slot`` on; see ``write_tokens``."""
        slots = range(slot, slot + (k.shape[0] if isinstance(k, Tensor) else 0))
        self.write_tokens([block] * len(slots), list(slots), k, v)

    def write_tokens(self, blocks: Sequence[int], slots: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Write token i into slot ``slots[i]`` of block ``blocks[i]``, all or none.

        Args:
            blocks: per token a block with exactly one reference.
            slots: per token its place in the block.
            k: (tokens, kv_heads, head_dim) keys in the pool's dtype and on its device.
            v: as ``k``.

        Raises:
            InputError: a block is unknown, free or shared; a slot lies outside a block; the tokens are
                not of the pool's shape, dtype and device, or not as many as blocks and slots.
        """
        for block in dict.fromkeys(blocks):
            self._in_use(block)
            if self._references[block] > 1:
                raise InputError(
                    "block",
                    block,
                    f"is shared by {self._references[block]} entries of block tables and must not be "
                    "written; take a free block and copy it there",
                )
        self.check_tokens(k, v)
        if not len(blocks) == len(slots) == k.shape[0]:
            raise InputError(
                "slots",
                f"{len(blocks)} blocks, {len(slots)} slots",
                f"must be as many as tokens, {k.shape[0]}",
            )
        if not len(slots):
            return
        if min(slots) < 0 or max(slots) >= self.block_size:
            bad = next(slot for slot in slots if not 0 <= slot < self.block_size)
            raise InputError("slot", bad, f"lies outside a block of {self.block_size} tokens")
        place = torch.tensor([blocks, slots], dtype=torch.int64, device=self.k.device)
        self.k[place[0], place[1]] = k
        self.v[place[0], place[1]] = v

    def copy(self, source: int, target: int) -> None:
        """Copy all of a block into one that has exactly one reference.

        Raises:
            InputError: as ``write``.
        """
        self._in_use(source)
        self.write(target, 0, self.k[source].clone(), self.v[source].clone())

    def check_tokens(self, k: Tensor, v: Tensor) -> None:
        """Raise InputError unless both are (tokens, kv_heads, head_dim) of this pool's dtype and device."""
        shape = tuple(self.k.shape[2:])
        for name, tensor in (("k", k), ("v", v)):
            if not isinstance(tensor, Tensor):
                raise InputError(name, type(tensor).__name__, "must be a tensor")
            if tensor.ndim != 3 or tuple(tensor.shape[1:]) != shape:
                raise InputError(
                    name, tuple(tensor.shape), f"must have shape (tokens, {shape[0]}, {shape[1]})"
                )
            if tensor.dtype != self.k.dtype:
                raise InputError(name, str(tensor.dtype), f"must have the dtype of the pool, {self.k.dtype}")
            if tensor.device != self.k.device:
                raise InputError(name, str(tensor.device), f"must be on {self.k.device} like the pool")
        if v.shape != k.shape:
            raise InputError("v", tuple(v.shape), f"must have the shape of k, {tuple(k.shape)}")

    def _known(self, block: int) -> int:
        if not 0 <= block < self.blocks:
            raise InputError("block", block, f"must be one of the pool's {self.blocks} blocks")
        return block

    def _in_use(self, block: int) -> None:
        if self._references[self._known(block)] == 0:
            raise InputError("block", block, "is free: no block table names it")
