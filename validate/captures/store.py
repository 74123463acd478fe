"""Captures on disk: K and V of whole requests, written batch by batch and read layer by layer.

A capture is a folder:

==============================  ========================================================================
``capture.json``                the manifest; written last, so its presence says that the capture is whole
``batch-00000.safetensors`` …   one file per batch of requests, with all captured layers
``capture.partial.json``        only while a capture is under way: its manifest so far, for resuming
==============================  ========================================================================

A batch file holds ``layers.<index>.k`` and ``layers.<index>.v`` of shape (tokens, kv_heads, head_dim): the
tokens of the file's requests one request after another, without padding. ``tokens`` holds their ids as int32
where the writer was given them; generated tokens stand behind a request's prompt like any others. Where the
manifest says so, ``layers.<index>.q`` of shape (requests · queries, query_heads, head_dim) holds the queries
of the last tokens of each request, one request after another, rotary positions included, and
``layers.<index>.q_scale`` (one float32) what the model multiplies q·k by. This module knows nothing of
models: prompts run through a real model and synthetic blocks are stored alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import CaptureError, InputError
from ratedist.kernels.layout import UNUSED, BlockTable, PagedLayer
from ratedist.validate.captures.manifest import (
    DTYPES,
    MANIFEST,
    PARTIAL,
    BatchFile,
    Manifest,
    fault_of,
    read_manifest,
)

__all__ = ["BatchFile", "Capture", "Manifest"]


class Capture:
    """A whole capture on disk, read lazily: memory holds what ``layer`` returned and nothing else.

    Open one with ``Capture.open``.

    Attributes:
        folder: where it lies.
        manifest: what it holds.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._place: dict[int, tuple[str, int]] = {}
        self._number: dict[int, int] = {}
        for file in manifest.files:
            start = 0
            for number, request in enumerate(file.requests):
                self._place[request] = (file.name, start)
                self._number[request] = number
                start += manifest.lengths[request]

    def resolved(self) -> Capture:
        """The same capture at its absolute path, as processes need it that run in other folders."""
        return Capture(self.folder.resolve(), self.manifest)

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> Capture:
        """Open and verify a capture.

        Args:
            folder: the capture's folder.
            verify: also compare every file's sha256 with the manifest (about a second per gigabyte); sizes
                are always compared.

        Raises:
            CaptureError: there is none, or it is incomplete, of another schema version, truncated or
                corrupted.
        """
        folder = Path(folder)
        manifest = read_manifest(folder / MANIFEST)
        if manifest is None:
            partial = read_manifest(folder / PARTIAL)
            if partial is None:
                raise CaptureError(
                    f"{folder} holds no capture ({MANIFEST} is missing); make one with ratedist capture"
                )
            done = sum(file.size >= 0 for file in partial.files)
            raise CaptureError(
                f"the capture in {folder} is incomplete: {done} of {len(partial.files)} batches are "
                "finished; run the command that began it again, it goes on from there"
            )
        for file in manifest.files:
            fault = fault_of(folder, file, hashes=verify)
            if fault is not None:
                raise CaptureError(
                    f"{folder / file.name} {fault}; run the command that made this capture again, it "
                    "recomputes only what is damaged"
                )
        return cls(folder, manifest)

    def layer(
        self, index: int, requests: Sequence[int] | None = None, block_size: int | None = None
    ) -> PagedLayer:
        """One layer of some requests as a paged cache.

        Args:
            index: layer of the model, one of ``manifest.layers``.
            requests: different request indices, in the order in which they become rows; default all.
            block_size: tokens per block; default the manifest's (16).

        Returns:
            Pools (blocks, block_size, kv_heads, head_dim) in the capture's dtype, the blocks of the first row
            first; the rest of a partly filled last block is zero. Table entries beyond a request's end are
            ``UNUSED``.

        Raises:
            InputError: unknown layer, request or block size; or a request named twice.
            CaptureError: a file was damaged after the capture was opened, or holds NaN or infinity.
        """
        size = self.manifest.block_size if block_size is None else block_size
        if size < 1:
            raise InputError("block_size", size, "must be at least 1")
        chosen = self._check(index, requests)
        manifest = self.manifest
        lengths = [manifest.lengths[request] for request in chosen]
        used = [-(-length // size) for length in lengths]
        first = [0, *torch.tensor(used).cumsum(0).tolist()]
        shape = (first[-1], size, manifest.kv_heads, manifest.head_dim)
        pools = {name: torch.zeros(shape, dtype=DTYPES[manifest.dtype]) for name in ("k", "v")}
        entries = torch.full((len(chosen), max(used)), UNUSED, dtype=torch.int32)
        for row in range(len(chosen)):
            entries[row, : used[row]] = torch.arange(first[row], first[row + 1], dtype=torch.int32)
        for name, pool in pools.items():
            flat = pool.view(-1, manifest.kv_heads, manifest.head_dim)
            for row, part in self._parts(f"layers.{index}.{name}", chosen):
                start = first[row] * size
                flat[start : start + lengths[row]] = part
                if not bool(torch.isfinite(part).all()):
                    token = int((~torch.isfinite(part)).flatten(1).any(1).nonzero()[0])
                    raise CaptureError(
                        f"{self.folder} holds NaN or infinity in layer {index}, request {chosen[row]}, block "
                        f"{token // size} ({name}); capture again, in float32 if the model overflows float16"
                    )
        table = BlockTable(
            entries,
            torch.tensor(lengths, dtype=torch.int64),
            torch.tensor([manifest.domains[request] for request in chosen], dtype=torch.int64),
            size,
        )
        return PagedLayer(pools["k"], pools["v"], table)

    def tokens(self, request: int) -> Tensor:
        """Token ids of one request, generated ones included, (tokens,) int32; raises CaptureError where the
        capture holds none."""
        (request,) = self._check(self.manifest.layers[0], [request])
        if not self.manifest.token_hashes:
            raise CaptureError(f"the capture in {self.folder} was made without token ids")
        return next(part for _, part in self._parts("tokens", [request]))

    def queries(self, index: int, requests: Sequence[int] | None = None) -> Tensor:
        """Query vectors of one layer at the last ``manifest.queries`` tokens of some requests.

        Args:
            index: layer of the model, one of ``manifest.layers``.
            requests: different request indices, in the order in which they become rows; default all.

        Returns:
            (requests, queries, query_heads, head_dim) in the capture's dtype, as attention gets them (rotary
            positions included); query n belongs to the token at position length − queries + n.

        Raises:
            InputError: unknown layer or request, or a request named twice.
            CaptureError: the capture was made without queries, or a file was damaged since it was opened.
        """
        chosen = self._check(index, requests)
        manifest = self.manifest
        self._need_queries()
        shape = (len(chosen), manifest.queries, manifest.query_heads, manifest.head_dim)
        found = torch.empty(shape, dtype=DTYPES[manifest.dtype])
        for row, part in self._parts(f"layers.{index}.q", chosen, manifest.queries):
            found[row] = part
        return found

    def query_scale(self, index: int) -> float:
        """What one layer multiplies q·k by before its softmax; errors as in ``queries``."""
        self._check(index, None)
        self._need_queries()
        path = self.folder / self.manifest.files[0].name
        with _reading(path) as file:
            return float(file.get_tensor(f"layers.{index}.q_scale"))

    def _need_queries(self) -> None:
        if not self.manifest.queries:
            raise CaptureError(
                f"the capture in {self.folder} was made without queries; capture again with --queries"
            )

    def _check(self, index: int, requests: Sequence[int] | None) -> list[int]:
        count = self.manifest.requests
        if index not in self.manifest.layers:
            raise InputError("index", index, f"is not captured; the layers are {list(self.manifest.layers)}")
        chosen = list(range(count)) if requests is None else [int(request) for request in requests]
        if not chosen:
            raise InputError("requests", chosen, "must name at least one request")
        for request in chosen:
            if not 0 <= request < count:
                raise InputError("requests", request, f"must lie in 0 … {count - 1}")
        if len(set(chosen)) < len(chosen):
            raise InputError("requests", chosen, "must be different requests")
        return chosen

    def _parts(
        self, tensor: str, requests: Sequence[int], each: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Rows of ``requests`` with their slice of a tensor, file by file.

        The tensor holds as many entries per request as it has tokens, or ``each``.
        """
        by_file: dict[str, list[int]] = {}
        for row, request in enumerate(requests):
            by_file.setdefault(self._place[request][0], []).append(row)
        for name, rows in by_file.items():
            with _reading(self.folder / name) as file:
                stored = file.get_slice(tensor)
                for row in rows:
                    request = requests[row]
                    start = self._place[request][1] if each is None else self._number[request] * each
                    yield row, stored[start : start + (each or self.manifest.lengths[request])]


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """A batch file; raises CaptureError where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CaptureError(
            f"{path} cannot be read ({error}); run the command that made this capture again, it "
            "recomputes only what is damaged"
        ) from error
