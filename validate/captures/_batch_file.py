"""Writing one safetensors file in a single pass, tensor by tensor, hashed as it goes.

The library's own writer wants all tensors of a file at once, which would double the memory of a batch. The
format is public and small: eight bytes with the length of a JSON header, the header, the data.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["file_sha256", "temporary_name", "write_batch_file"]

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32"}
_ALIGNMENT = 8


def write_batch_file(
    path: Path, header: Mapping[str, tuple[tuple[int, ...], torch.dtype]], tensors: Iterable[Tensor]
) -> tuple[int, str]:
    """Write ``tensors`` to ``path``, whole or not at all: under a temporary name, synced, then renamed.

    Args:
        path: where the file is to stand.
        header: shape and dtype by name, in the order of ``tensors``.
        tensors: consumed one by one; must have the shapes and dtypes of the header.

    Returns:
        Size in bytes and sha256 (hexadecimal) of the file.
    """
    entries, offset = {}, 0
    for name, (shape, dtype) in header.items():
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("wb") as file:
            for part in (len(text).to_bytes(8, "little"), text):
                file.write(part)
                digest.update(part)
            for tensor, (name, (shape, dtype)) in zip(tensors, header.items(), strict=True):
                assert tensor.dtype == dtype, name
                assert tuple(tensor.shape) == shape, name
                data = tensor.contiguous().flatten().view(torch.uint8).numpy().data
                file.write(data)
                digest.update(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        # Gone where it was renamed; left by an error or an interruption otherwise.
        temporary.unlink(missing_ok=True)
    return 8 + len(text) + offset, digest.hexdigest()


def temporary_name(name: str) -> str:
    """Name under which a file is written before it is whole; fixed, so that it can be found again."""
    return f".{name}.partial"


def file_sha256(path: Path) -> str:
    """sha256 (hexadecimal) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
