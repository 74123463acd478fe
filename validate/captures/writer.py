"""Writing a capture so that it can be interrupted at any moment and resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from ratedist.errors import CaptureError, InputError
from ratedist.records import write_atomic
from ratedist.validate.captures._batch_file import temporary_name, write_batch_file
from ratedist.validate.captures.manifest import (
    DTYPES,
    MANIFEST,
    PARTIAL,
    BatchFile,
    Manifest,
    fault_of,
    read_manifest,
    token_hash,
    without_files,
)
from ratedist.validate.captures.store import Capture

__all__ = ["CaptureWriter", "finished_capture"]

_T = TypeVar("_T", bound=tuple[Any, ...])


class CaptureWriter(AbstractContextManager["CaptureWriter"]):
    """Writes a capture batch by batch, so that it can be interrupted at any moment and resumed.

    ``plan`` is the manifest with files of unknown size. The same plan into the same folder goes on where an
    earlier writer stopped, and repairs damaged files of a finished capture; another plan is refused
    unless ``force`` is given. Only one process at a time may write into a folder (where the system
    has ``flock``).

    Example::

        with CaptureWriter(folder, plan) as writer:
            for batch in writer.pending:
                writer.write(batch, layers_of(plan.files[batch].requests))
            capture = writer.finish()
    """

    def __init__(self, folder: str | Path, plan: Manifest, *, force: bool = False) -> None:
        """Claim the folder and find out what is finished.

        Args:
            folder: created where it does not exist.
            plan: the manifest; sizes and hashes of its files are ignored.
            force: replace another capture in the folder, or write beside other files.

        Raises:
            InputError: the folder holds another capture or other files (and not ``force``), is a file, or
                another process is writing there.
            CaptureError: no space is left, or the folder cannot be written.
        """
        self.folder = Path(folder)
        self.plan = without_files(plan)
        self._lock: int | None = None
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError("out", str(folder), "is a file; name a folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CaptureError(
                f"{self.folder} cannot be made: {error.strerror}; name another folder"
            ) from error
        self._lock = _lock(self.folder)
        with ExitStack() as unless_claimed:
            unless_claimed.callback(self.close)
            self._files = self._claim(force)
            unless_claimed.pop_all()

    def _claim(self, force: bool) -> list[BatchFile]:
        self._sweep()
        try:
            earlier = read_manifest(self.folder / MANIFEST) or read_manifest(self.folder / PARTIAL)
        except CaptureError:
            if not force:
                raise
            earlier = None
        files = list(self.plan.files)
        if earlier is not None and without_files(earlier) == self.plan:
            files = [
                file if file.size >= 0 and fault_of(self.folder, file, hashes=True) is None else planned
                for file, planned in zip(earlier.files, self.plan.files, strict=True)
            ]
        elif any(self.folder.iterdir()) and not force:
            raise InputError("out", str(self.folder), _refusal(earlier, self.plan))
        else:
            _remove_capture(self.folder, earlier)
        if any(file.size < 0 for file in files):
            try:
                self._save(PARTIAL, files)
            except OSError as error:
                raise CaptureError(f"{self.folder} cannot be written: {error.strerror or error}") from error
            (self.folder / MANIFEST).unlink(missing_ok=True)
        return files

    def _sweep(self) -> None:
        """Remove the temporary files that a killed writer of this capture left."""
        names = [f".{name}.*" for name in (MANIFEST, PARTIAL)]
        names += [temporary_name(file.name) for file in self.plan.files]
        for name in names:
            for path in self.folder.glob(name):
                path.unlink(missing_ok=True)

    @property
    def pending(self) -> list[int]:
        """Positions in ``plan.files`` of the batches that are not finished."""
        return [position for position, file in enumerate(self._files) if file.size < 0]

    def write(
        self,
        batch: int,
        layers: Iterable[tuple[int, Tensor, Tensor]],
        tokens: Tensor | None = None,
        queries: Iterable[tuple[int, Tensor, float]] = (),
    ) -> None:
        """Write one batch; it is finished, and survives a crash, when this returns.

        Args:
            batch: position in ``plan.files``.
            layers: (layer index, k, v) in the order of ``plan.layers``, k and v of shape (tokens, kv_heads,
                head_dim), the tokens of the batch's requests one request after another; cast to the capture's
                dtype. Consumed one by one, so a generator keeps memory at one layer.
            tokens: (tokens,) the ids; required where the plan has token hashes.
            queries: (layer index, q, scale) in the same order, where the plan has queries: q of shape
                (requests · queries, query_heads, head_dim), one request after another, and what the layer
                multiplies q·k by. Consumed after ``layers``.

        Raises:
            InputError: shapes or order do not fit the plan, ids do not match its hashes, or K or V hold NaN
                or infinity (also where float16 cannot hold them), with layer, request and block.
            CaptureError: no space left; the batches finished before stay.
        """
        plan, file = self.plan, self.plan.files[batch]
        lengths = [plan.lengths[request] for request in file.requests]
        shape = (sum(lengths), plan.kv_heads, plan.head_dim)
        dtype = DTYPES[plan.dtype]
        header: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        if plan.token_hashes:
            _check_tokens(plan, file, tokens)
            header["tokens"] = ((shape[0],), torch.int32)
        for index in plan.layers:
            header[f"layers.{index}.k"] = (shape, dtype)
            header[f"layers.{index}.v"] = (shape, dtype)
        query_shape = (len(lengths) * plan.queries, plan.query_heads, plan.head_dim)
        for index in plan.layers if plan.queries else ():
            header[f"layers.{index}.q"] = (query_shape, dtype)
            header[f"layers.{index}.q_scale"] = ((1,), torch.float32)

        def stream() -> Iterable[Tensor]:
            if plan.token_hashes:
                assert tokens is not None
                yield tokens.to(torch.int32)
            for index, (_, k, v) in self._in_order("layers", layers):
                yield self._cast(k, shape, index, "k", file, lengths)
                yield self._cast(v, shape, index, "v", file, lengths)
            if plan.queries:
                each = [plan.queries] * len(lengths)
                for index, (_, q, scale) in self._in_order("queries", queries):
                    yield self._cast(q, query_shape, index, "q", file, each)
                    yield torch.tensor([scale], dtype=torch.float32)

        try:
            size, digest = write_batch_file(self.folder / file.name, header, stream())
            self._files[batch] = replace(file, size=size, sha256=digest)
            self._save(PARTIAL, self._files)
        except OSError as error:
            raise self._disk_error(error) from error

    def finish(self) -> Capture:
        """Write the manifest and open the capture; raises CaptureError where batches are pending."""
        if self.pending:
            raise CaptureError(f"{len(self.pending)} of {len(self._files)} batches are not written yet")
        if not (self.folder / MANIFEST).exists():
            try:
                self._save(MANIFEST, self._files)
            except OSError as error:
                raise self._disk_error(error) from error
        (self.folder / PARTIAL).unlink(missing_ok=True)
        return Capture(self.folder, replace(self.plan, files=tuple(self._files)))

    def close(self) -> None:
        """Let another process write into the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _in_order(self, argument: str, layers: Iterable[_T]) -> Iterator[tuple[int, _T]]:
        """Layers with their index, which each has first, refused where they are not all of the plan's."""
        given: list[int] = []
        for layer in layers:
            given.append(layer[0])
            if given != list(self.plan.layers[: len(given)]):
                raise InputError(
                    argument, given, f"must come in the order of the plan, {list(self.plan.layers)}"
                )
            yield given[-1], layer
        if len(given) < len(self.plan.layers):
            raise InputError(argument, given, f"must be all of the plan's, {list(self.plan.layers)}")

    def _cast(
        self,
        tensor: Tensor,
        shape: tuple[int, ...],
        index: int,
        name: str,
        file: BatchFile,
        each: Sequence[int],
    ) -> Tensor:
        """As it is stored; ``each`` says how many of its entries belong to each of the file's requests."""
        if tuple(tensor.shape) != shape:
            raise InputError(
                name, tuple(tensor.shape), f"must have shape {shape} in layer {index} of {file.name}"
            )
        dtype = DTYPES[self.plan.dtype]
        stored = tensor.detach().to(device="cpu", dtype=dtype)
        finite = torch.isfinite(stored)
        if bool(finite.all()):
            return stored
        token = int((~finite).flatten(1).any(1).nonzero()[0])
        overflow = bool(torch.isfinite(tensor[token]).all())
        number = 0
        while token >= each[number]:
            token -= each[number]
            number += 1
        request = file.requests[number]
        if name == "q":
            token += self.plan.lengths[request] - self.plan.queries
        raise InputError(
            name,
            f"layer {index}, request {request}, block {token // self.plan.block_size}",
            f"is larger than {self.plan.dtype} holds; store it as bfloat16 or float32"
            if overflow
            else "holds NaN or infinity; compute in float32, or leave this layer or request out",
        )

    def _save(self, name: str, files: Sequence[BatchFile]) -> None:
        manifest = replace(self.plan, files=tuple(files))
        write_atomic(self.folder / name, json.dumps(manifest.to_json(), indent=1, allow_nan=False) + "\n")

    def _disk_error(self, error: OSError) -> CaptureError:
        done = len(self._files) - len(self.pending)
        return CaptureError(
            f"writing to {self.folder} failed: {error.strerror or error}; {done} of {len(self._files)} "
            "batches are finished and kept. Make room, then run the same command again, it goes on from there"
        )


def finished_capture(folder: str | Path, plan: Manifest) -> Capture | None:
    """The capture in ``folder`` if it is whole, undamaged and of this plan, else None; nothing is written."""
    try:
        manifest = read_manifest(Path(folder) / MANIFEST)
        if manifest is None or without_files(manifest) != without_files(plan):
            return None
        return Capture.open(folder)
    except CaptureError:
        return None


def _refusal(earlier: Manifest | None, plan: Manifest) -> str:
    if earlier is None:
        return "is not empty and holds no capture; choose another folder or pass --force"
    before, now = without_files(earlier).to_json(), plan.to_json()
    changes = []
    for key in now:
        if before[key] != now[key]:
            texts = [repr(value) for value in (before[key], now[key])]
            changes.append(f"{key}: {texts[0]} → {texts[1]}" if max(map(len, texts)) <= 40 else key)
    return (
        f"holds a capture made with other settings (different: {', '.join(changes)}); choose another folder, "
        "or pass --force to replace it"
    )


def _remove_capture(folder: Path, manifest: Manifest | None) -> None:
    """Remove a capture's own files; others in the folder stay."""
    for name in (MANIFEST, PARTIAL):
        (folder / name).unlink(missing_ok=True)
    for file in manifest.files if manifest is not None else ():
        (folder / file.name).unlink(missing_ok=True)


def _check_tokens(plan: Manifest, file: BatchFile, tokens: Tensor | None) -> None:
    lengths = [plan.lengths[request] for request in file.requests]
    if tokens is None or tuple(tokens.shape) != (sum(lengths),):
        shape = None if tokens is None else tuple(tokens.shape)
        raise InputError("tokens", shape, f"must have shape ({sum(lengths)},): the plan has token hashes")
    for request, ids in zip(file.requests, tokens.split(lengths), strict=True):
        prompt = len(ids) - (plan.generated[request] if plan.generated else 0)
        if token_hash(ids[:prompt]) != plan.token_hashes[request]:
            raise InputError(
                "tokens", f"request {request}", "must be the ids that the plan's hash was made of"
            )


def _lock(folder: Path) -> int | None:
    """Hold the folder for this process until it ends; None where the system has no ``flock``."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            "out", str(folder), "is being written by another process; wait, or choose another"
        ) from None
    except OSError:
        os.close(handle)
        return None
    return handle
