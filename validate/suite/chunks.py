"""Requests cut into chunks, each of which stands as a request by itself: fusion within prompts (CFF)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ratedist.errors import InputError
from ratedist.kernels.layout import UNUSED, BlockTable, PagedLayer

__all__ = ["as_chunks", "chunk_counts", "chunk_table"]


def chunk_counts(table: BlockTable, chunk_blocks: int) -> list[int]:
    """Chunks of every request: its full blocks, so many at a time, the last chunk maybe shorter.

    Raises InputError for ``chunk_blocks`` below 1.
    """
    if chunk_blocks < 1:
        raise InputError("chunk_blocks", chunk_blocks, "must be at least 1")
    return [math.ceil(blocks / chunk_blocks) for blocks in table.full_blocks.tolist()]


def chunk_table(table: BlockTable, chunk_blocks: int) -> BlockTable:
    """The chunks of all requests as rows, request by request, and each request a domain.

    Fusing these rows across requests (``mode="bff"``) is fusing the requests across chunks
    (``mode="cff"``). What does not fill a block is left out: it never fuses.

    Test: tests/validate/suite/test_chunks.py::test_chunks_fuse_as_cff_does.
    Raises InputError as ``chunk_counts`` does.
    """
    entries, lengths, domains = [], [], []
    for request, count in enumerate(chunk_counts(table, chunk_blocks)):
        blocks = table.entries[request, : int(table.full_blocks[request])]
        for part in blocks.split(chunk_blocks) if count else ():
            row = torch.full((chunk_blocks,), UNUSED, dtype=table.entries.dtype)
            row[: len(part)] = part
            entries.append(row)
            lengths.append(len(part) * table.block_size)
            domains.append(request)
    return BlockTable(
        torch.stack(entries) if entries else table.entries[:0, :chunk_blocks],
        torch.tensor(lengths, dtype=table.lengths.dtype),
        torch.tensor(domains, dtype=table.domains.dtype),
        table.block_size,
    )


def as_chunks(layer: PagedLayer, chunk_blocks: int) -> PagedLayer:
    """A layer under its ``chunk_table``: nothing is copied."""
    return replace(layer, table=chunk_table(layer.table, chunk_blocks))
