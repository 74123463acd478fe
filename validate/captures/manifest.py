"""The manifest of a capture: what it holds and what made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import CaptureError, InputError
from ratedist.validate.captures._batch_file import file_sha256

__all__ = [
    "DTYPES",
    "MANIFEST",
    "PARTIAL",
    "SCHEMA_VERSION",
    "BatchFile",
    "Manifest",
    "fault_of",
    "read_manifest",
    "token_hash",
    "without_files",
]

SCHEMA_VERSION = 2
"""Version of the layout that is written. Version 1, which had neither generated tokens nor queries, is read
too; any other is refused."""

_ADDED: dict[int, dict[str, Any]] = {1: {"generated": (), "queries": 0}}
"""By older version that is read: the fields that it lacks, with what they would have held."""

FORMAT = "ratedist-capture"
MANIFEST = "capture.json"
PARTIAL = "capture.partial.json"

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Storage types by the name that a manifest gives them."""


@dataclass(frozen=True)
class BatchFile:
    """One file of a capture.

    Attributes:
        name: file name inside the capture's folder.
        requests: indices of the requests it holds, in the order in which their tokens follow each other.
        size: bytes; -1 in a plan, before the file is written.
        sha256: hexadecimal digest of the whole file; empty in a plan.
    """

    name: str
    requests: tuple[int, ...]
    size: int = -1
    sha256: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a capture holds and what made it.

    Attributes:
        model: name of the model (Hugging Face id, or name of the folder or file), or of its stand-in.
        weights_hash: sha256 over the weight files; for synthetic data over what determines them, or empty.
        dtype: storage type of K and V, a key of ``DTYPES``.
        layers: indices of the captured layers in the model, ascending.
        model_layers: layers of the model in total.
        kv_heads: heads of K and V per layer.
        query_heads: query heads per layer, a multiple of ``kv_heads``.
        head_dim: dimension of a head.
        lengths: tokens per request.
        domains: domain per request; blocks of different domains never share.
        workload: name of the workload, or of the prompt file.
        rotary: parameters of the rotary position embedding as the model's configuration states them (it is
            left in the keys); empty where the model has none.
        layer_types: per captured layer ``"full_attention"`` or ``"sliding_attention"``; either keeps
            all tokens.
        sliding_window: window of the sliding layers in tokens, None without such layers.
        block_size: tokens per block that ``Capture.layer`` cuts by default.
        seed: seed of the workload.
        token_hashes: ``token_hash`` of the token ids of every request's prompt; empty where there are none.
        origin: further settings that determine the content, free of form (JSON).
        versions: versions of the packages that computed it.
        files: the batch files; every request stands in exactly one.
        generated: how many of each request's last tokens the model itself generated; empty where none.
        queries: at how many of each request's last tokens the query vectors are stored too.
    """

    model: str
    weights_hash: str
    dtype: str
    layers: tuple[int, ...]
    model_layers: int
    kv_heads: int
    query_heads: int
    head_dim: int
    lengths: tuple[int, ...]
    domains: tuple[int, ...]
    workload: str
    files: tuple[BatchFile, ...]
    rotary: dict[str, Any] = field(default_factory=dict)
    layer_types: tuple[str, ...] = ()
    sliding_window: int | None = None
    block_size: int = 16
    seed: int = 0
    token_hashes: tuple[str, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    generated: tuple[int, ...] = ()
    queries: int = 0
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError("dtype", self.dtype, f"must be one of {', '.join(DTYPES)}")
        for name in ("model_layers", "kv_heads", "query_heads", "head_dim", "block_size"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "must be at least 1")
        if self.query_heads % self.kv_heads:
            raise InputError(
                "query_heads", self.query_heads, f"must be a multiple of kv_heads = {self.kv_heads}"
            )
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise InputError("layers", self.layers, "must be different layer indices in ascending order")
        if self.layers[0] < 0 or self.layers[-1] >= self.model_layers:
            raise InputError("layers", self.layers, f"must lie in 0 … {self.model_layers - 1}")
        if self.layer_types and len(self.layer_types) != len(self.layers):
            raise InputError("layer_types", self.layer_types, "must name one type per captured layer")
        if not self.lengths or min(self.lengths) < 1:
            raise InputError("lengths", self.lengths, "must hold at least one request of at least one token")
        if len(self.domains) != self.requests:
            raise InputError(
                "domains", self.domains, f"must hold one domain for each of {self.requests} requests"
            )
        if self.token_hashes and len(self.token_hashes) != self.requests:
            raise InputError(
                "token_hashes",
                len(self.token_hashes),
                f"must be one for each of {self.requests} requests, or none",
            )
        if self.generated and (
            len(self.generated) != self.requests
            or any(not 0 <= new < all_ for new, all_ in zip(self.generated, self.lengths, strict=True))
        ):
            raise InputError(
                "generated",
                self.generated,
                f"must hold, for each of {self.requests} requests, fewer tokens than its length, or nothing",
            )
        if not 0 <= self.queries <= min(self.lengths):
            raise InputError(
                "queries", self.queries, f"must lie in 0 … {min(self.lengths)}, the shortest request's tokens"
            )
        held = sorted(request for file in self.files for request in file.requests)
        if held != list(range(self.requests)) or not all(file.requests for file in self.files):
            raise InputError(
                "files", held, f"must hold each of the requests 0 … {self.requests - 1} exactly once"
            )
        names = [file.name for file in self.files]
        for name in names:
            if Path(name).name != name or names.count(name) > 1 or name in ("", "..", MANIFEST, PARTIAL):
                raise InputError(
                    "files", name, "must be different plain file names inside the capture's folder"
                )

    @property
    def requests(self) -> int:
        """Number of requests."""
        return len(self.lengths)

    @property
    def block_dim(self) -> int:
        """r: scalars of the keys of one block of ``block_size`` tokens."""
        return self.block_size * self.kv_heads * self.head_dim

    @property
    def group_size(self) -> int:
        """Query heads that share one head of K and V."""
        return self.query_heads // self.kv_heads

    @property
    def captured_bytes(self) -> int:
        """Bytes of K and V of all captured layers and requests, padding of blocks not counted."""
        return sum(self.lengths) * self.token_bytes * len(self.layers)

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * DTYPES[self.dtype].itemsize

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON data; ``from_json`` reads it back."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any, where: str = MANIFEST) -> Manifest:
        """Read a manifest from JSON data.

        Raises:
            CaptureError: not a capture's manifest, another schema version, a missing or unknown field, or
                values that contradict each other; ``where`` names the file in the message.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CaptureError(
                f"{where} is not the manifest of a capture ({FORMAT}); name a capture's folder"
            )
        version = data.get("schema_version")
        if not isinstance(version, int) or version not in (*_ADDED, SCHEMA_VERSION):
            raise CaptureError(
                f"{where} has schema version {version!r}; this version of ratedist reads "
                f"{', '.join(map(str, [*_ADDED, SCHEMA_VERSION]))}. "
                "Capture again with this version, or read it with the version that wrote it"
            )
        values = {key: value for key, value in data.items() if key != "format"}
        values |= _ADDED.get(version, {}) | {"schema_version": SCHEMA_VERSION}
        known = {item.name for item in fields(cls)}
        if set(values) != known:
            missing, unknown = sorted(known - set(values)), sorted(set(values) - known)
            raise CaptureError(
                f"{where} is damaged (missing fields: {missing}, unknown fields: {unknown}); "
                "capture again with --force"
            )
        try:
            values["files"] = tuple(
                BatchFile(str(f["name"]), tuple(map(int, f["requests"])), int(f["size"]), str(f["sha256"]))
                for f in values["files"]
            )
            for name in ("layers", "lengths", "domains", "generated"):
                values[name] = tuple(map(int, values[name]))
            for name in ("layer_types", "token_hashes"):
                values[name] = tuple(map(str, values[name]))
            return cls(**values)
        except (InputError, TypeError, KeyError, ValueError) as error:
            raise CaptureError(f"{where} is damaged ({error}); capture again with --force") from error


def token_hash(token_ids: Sequence[int] | Tensor) -> str:
    """sha256 (hexadecimal) of token ids, each as four little-endian bytes."""
    ids = token_ids.tolist() if isinstance(token_ids, Tensor) else token_ids
    return hashlib.sha256(b"".join(int(token).to_bytes(4, "little") for token in ids)).hexdigest()


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at ``path``, None where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CaptureError(f"{path} cannot be read ({error}); capture again with --force") from error
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise CaptureError(f"{path} is damaged ({error}); capture again with --force") from error
    return Manifest.from_json(data, str(path))


def without_files(manifest: Manifest) -> Manifest:
    """The plan of a manifest: as it was before any file was written, and as JSON gives it back.

    Raises InputError where ``origin`` or ``rotary`` hold what JSON does not.
    """
    files = tuple(BatchFile(file.name, file.requests) for file in manifest.files)
    data = replace(manifest, files=files).to_json()
    try:
        text = json.dumps(data, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError("origin", manifest.origin, f"must be JSON data, like rotary ({error})") from error
    return Manifest.from_json(json.loads(text))


def fault_of(folder: Path, file: BatchFile, *, hashes: bool) -> str | None:
    """What is wrong with a file of a capture; None where nothing is."""
    path = folder / file.name
    try:
        size = path.stat().st_size
        if size < file.size:
            return f"is truncated ({size} of {file.size} bytes)"
        if size > file.size:
            return f"is too long ({size} instead of {file.size} bytes)"
        if hashes and file_sha256(path) != file.sha256:
            return "is corrupted (its sha256 differs from the manifest's)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
