"""Capturing a model's cache: bit for bit its own, without padding, and through interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WINDOW, save_tiny_model
from torch import Tensor

from ratedist.errors import CaptureError, InputError
from ratedist.kernels.layout import PagedLayer
from ratedist.validate.captures.capture import capture_cache, plan_capture, prefill
from ratedist.validate.captures.store import Capture
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.workloads import build_prompts
from ratedist.validate.workloads.prompts import Prompt, PromptSet

KINDS = ["llama", "qwen2", "gemma3", "gpt2"]
LENGTHS = (21, 50, 3, 33, 50)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_tiny_model(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path]) -> dict[str, LoadedModel]:
    return {kind: load_model(folder, device="cpu") for kind, folder in folders.items()}


def prompts(lengths: Sequence[int] = LENGTHS, *, shared: int = 0) -> PromptSet:
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(1, 250, (shared,), generator=generator).tolist()
    ids = [
        (start + torch.randint(1, 250, (length,), generator=generator).tolist())[:length]
        for length in lengths
    ]
    return PromptSet("random ids", tuple(Prompt(tuple(x), domain=number % 2) for number, x in enumerate(ids)))


def of_request(layer: PagedLayer, row: int, length: int) -> tuple[Tensor, Tensor]:
    """K and V (length, kv_heads, head_dim) of one row of a paged layer."""
    entries = layer.table.entries[row]
    blocks = entries[entries >= 0].long()
    return layer.k[blocks].flatten(0, 1)[:length], layer.v[blocks].flatten(0, 1)[:length]


def own_cache(model: Any, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """K and V (rows, tokens, kv_heads, head_dim) per layer: the whole model, one pass, its default cache."""
    with torch.inference_mode():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    return [(layer.keys.transpose(1, 2), layer.values.transpose(1, 2)) for layer in cache.layers]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_captured_is_the_models_own_cache_bit_for_bit(
    tmp_path: Path, loaded: dict[str, LoadedModel], kind: str
) -> None:
    """Against one pass of the whole model over the same padded batch (the second file holds three rows)."""
    model, given = loaded[kind], prompts()
    capture = capture_cache(model, given, tmp_path / "c", batch_size=3, chunk_tokens=64)
    for file in capture.manifest.files:
        ids = torch.zeros(3, 64, dtype=torch.long)
        for row, request in enumerate(file.requests):
            ids[row, : LENGTHS[request]] = torch.tensor(given.prompts[request].token_ids)
        for index, own in enumerate(own_cache(model.model, ids)):
            layer = capture.layer(index, file.requests)
            for row, request in enumerate(file.requests):
                length = LENGTHS[request]
                for captured, expected in zip(of_request(layer, row, length), own, strict=True):
                    assert torch.equal(captured, expected[row, :length])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [7, 16, 128])
def test_captured_is_what_each_prompt_gives_alone(
    tmp_path: Path, loaded: dict[str, LoadedModel], kind: str, chunk: int
) -> None:
    """Neither padding nor neighbours nor chunks matter, beyond rounding (float32: 1e-5)."""
    model, given = loaded[kind], prompts()
    capture = capture_cache(model, given, tmp_path / "c", batch_size=2, chunk_tokens=chunk)
    assert capture.manifest.lengths == LENGTHS
    assert capture.manifest.domains == (0, 1, 0, 1, 0)
    for request, prompt in enumerate(given.prompts):
        assert capture.tokens(request).tolist() == list(prompt.token_ids)
        kept = slice(-(WINDOW - 1), None) if kind == "gemma3" else slice(None)
        for index, own in enumerate(own_cache(model.model, torch.tensor([prompt.token_ids]))):
            # A default cache has forgotten what lies before the window of a sliding layer.
            sliding = capture.manifest.layer_types[index] == "sliding_attention"
            seen = kept if sliding else slice(None)
            found = of_request(capture.layer(index, [request]), 0, LENGTHS[request])
            for captured, expected in zip(found, own, strict=True):
                assert torch.isfinite(captured).all()
                torch.testing.assert_close(captured[seen], expected[0][seen], rtol=1e-5, atol=1e-5)


def test_sliding_layers_keep_all_tokens_and_still_attend_within_the_window(
    tmp_path: Path, loaded: dict[str, LoadedModel]
) -> None:
    """What lies beyond all windows must not matter: two prompts that differ only there agree at the end."""
    one = prompts((80,)).prompts[0].token_ids
    model = loaded["gemma3"]
    three_layers = 3 * WINDOW
    other = tuple(251 - token for token in one[: 80 - three_layers]) + one[80 - three_layers :]
    given = PromptSet("two", (Prompt(one), Prompt(other)))
    capture = capture_cache(model, given, tmp_path / "c", chunk_tokens=16)
    first = capture.layer(0)
    assert first.table.lengths.tolist() == [80, 80]
    k = [of_request(first, row, 80)[0] for row in (0, 1)]
    assert torch.equal(k[0][-three_layers:], k[1][-three_layers:])
    assert (k[0][: 80 - three_layers] != k[1][: 80 - three_layers]).any(dim=(1, 2)).all()
    # Layer 1 sees layer 0's output: a window back. Its input differs before, and agrees after one window.
    k = [of_request(capture.layer(1), row, 80)[0] for row in (0, 1)]
    torch.testing.assert_close(k[0][-WINDOW:], k[1][-WINDOW:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shared_beginning_gives_the_same_bytes_in_every_batch(
    tmp_path: Path, folders: dict[str, Path], dtype: str
) -> None:
    """Whatever the other requests, their lengths, and how full the batch is."""
    lengths = (90, 70, 41, 66, 45, 130, 40)
    model = load_model(folders["llama"], dtype=dtype, device="cpu")
    capture = capture_cache(model, prompts(lengths, shared=40), tmp_path / "c", batch_size=3, chunk_tokens=32)
    for index in capture.manifest.layers:
        layer = capture.layer(index)
        first = of_request(layer, 0, 40)
        for row in range(1, len(lengths)):
            assert all(torch.equal(a, b) for a, b in zip(of_request(layer, row, 40), first, strict=True))
    assert not torch.equal(layer.k[layer.table.entries[0, 3]], layer.k[layer.table.entries[1, 3]])


def test_every_pass_has_the_same_shape(tmp_path: Path, loaded: dict[str, LoadedModel]) -> None:
    """What keeps equal beginnings equal on models large enough that shapes change how products round."""
    shapes = []
    hook = loaded["llama"].model.base_model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    try:
        capture_cache(loaded["llama"], prompts(), tmp_path / "c", batch_size=3, chunk_tokens=16)
    finally:
        hook.remove()
    assert shapes == [(3, 16)] * 6, "four passes for the batch of 50, 50 and 33 tokens, two for 21 and 3"


def test_chosen_layers_stored_in_another_type(tmp_path: Path, loaded: dict[str, LoadedModel]) -> None:
    given = prompts()
    whole = capture_cache(loaded["llama"], given, tmp_path / "all")
    part = capture_cache(loaded["llama"], given, tmp_path / "part", layers=[2, 1], dtype="float16")
    assert part.manifest.layers == (1, 2)
    assert part.manifest.model_layers == 3
    assert part.manifest.dtype == "float16"
    assert part.manifest.origin["compute_dtype"] == "float32"
    for index in (1, 2):
        assert torch.equal(part.layer(index).k, whole.layer(index).k.half())
        assert torch.equal(part.layer(index).v, whole.layer(index).v.half())
    with pytest.raises(InputError, match=r"layers = \(2, 3\): must lie in 0 … 2"):
        capture_cache(loaded["llama"], given, tmp_path / "x", layers=[2, 3])
    with pytest.raises(InputError, match="dtype = 'int8': must be one of"):
        capture_cache(loaded["llama"], given, tmp_path / "x", dtype="int8")
    assert not (tmp_path / "x").exists()


def test_manifest_says_what_made_it(tmp_path: Path, loaded: dict[str, LoadedModel]) -> None:
    model = loaded["llama"]
    given = build_prompts("templates", model.tokenizer, requests=3, tokens=40, seed=5)
    manifest = capture_cache(model, given, tmp_path / "c", batch_size=2).manifest
    assert (manifest.workload, manifest.seed, manifest.model) == ("templates", 5, "llama")
    assert manifest.weights_hash == model.weights_hash
    assert manifest.rotary == model.rotary
    assert manifest.origin["tokens"] == 40
    assert manifest.versions["torch"] == torch.__version__
    assert [file.requests for file in manifest.files] == [(0, 1), (2,)]


def test_batches_go_from_long_to_short(loaded: dict[str, LoadedModel]) -> None:
    plan = plan_capture(loaded["llama"], prompts(), batch_size=2)
    assert [file.requests for file in plan.files] == [(1, 4), (0, 3), (2,)]


def test_prompts_up_to_the_longest_that_the_model_takes(
    tmp_path: Path, loaded: dict[str, LoadedModel]
) -> None:
    """Learned positions end at 150, which is not a whole number of chunks."""
    capture = capture_cache(loaded["gpt2"], prompts((150, 149)), tmp_path / "c", chunk_tokens=64)
    assert capture.layer(2).table.lengths.tolist() == [150, 149]
    with pytest.raises(InputError, match=r"tokens = 151: request 1 is longer than gpt2 takes \(150 tokens\)"):
        capture_cache(loaded["gpt2"], prompts((150, 151)), tmp_path / "d")


def test_progress_grows_to_the_total(tmp_path: Path, loaded: dict[str, LoadedModel]) -> None:
    seen: list[tuple[int, int]] = []
    capture_cache(
        loaded["llama"],
        prompts(),
        tmp_path / "c",
        batch_size=2,
        chunk_tokens=16,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert {total for _, total in seen} == {sum(LENGTHS)}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (157, 157)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"chunk_tokens": 0}, "chunk_tokens = 0: must be at least 1"),
        ({"block_size": 0}, "block_size = 0: must be at least 1"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, loaded: dict[str, LoadedModel], options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        capture_cache(loaded["llama"], prompts(), tmp_path / "c", **options)
    with pytest.raises(InputError, match="prompts = 'none': holds no request"):
        capture_cache(loaded["llama"], PromptSet("none", ()), tmp_path / "c")


def test_rotary_embedding_that_changes_with_the_length(
    loaded: dict[str, LoadedModel], tmp_path: Path
) -> None:
    from dataclasses import replace

    rotary = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    model = replace(loaded["llama"], rotary=rotary)
    plan_capture(model, prompts((64,)), chunk_tokens=32)
    with pytest.raises(InputError, match="tokens = 65: llama has a rotary embedding of type longrope, which"):
        plan_capture(model, prompts((65,)), chunk_tokens=32)


def test_activations_that_are_not_finite(tmp_path: Path, folders: dict[str, Path]) -> None:
    model = load_model(folders["llama"], device="cpu")
    with torch.no_grad():
        model.model.model.layers[1].self_attn.v_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"v = 'layer 1, request 1, block 0': holds NaN or infinity"):
        capture_cache(model, prompts(), tmp_path / "c", batch_size=2)


# --- interruptions


def test_same_call_again_does_not_load_the_weights(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = capture_cache(load_model(folders["llama"]), prompts(), tmp_path / "c")
    again = load_model(folders["llama"])
    result = capture_cache(again, prompts(), tmp_path / "c")
    assert "model" not in vars(again)
    assert result.manifest == first.manifest
    with pytest.raises(InputError, match="holds a capture made with other settings"):
        capture_cache(again, prompts((5,)), tmp_path / "c")
    capture_cache(again, prompts((5,)), tmp_path / "c", force=True)
    assert Capture.open(tmp_path / "c").manifest.lengths == (5,)


def test_refused_model_leaves_no_folder(tmp_path: Path) -> None:
    model = load_model(save_tiny_model(tmp_path / "mla", "deepseek_v3"), device="cpu")
    with pytest.raises(InputError, match="does not keep one K and one V"):
        capture_cache(model, prompts(), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_interrupted_by_the_user(tmp_path: Path, loaded: dict[str, LoadedModel]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_cache(loaded["llama"], prompts(), tmp_path / "c", batch_size=2, progress=interrupt)
    with pytest.raises(CaptureError, match="incomplete: 1 of 3 batches are finished"):
        Capture.open(tmp_path / "c")
    seen: list[int] = []
    capture_cache(
        loaded["llama"],
        prompts(),
        tmp_path / "c",
        batch_size=2,
        progress=lambda done, total: seen.append(done),
    )
    assert seen[0] > 100, "the first batch is not computed again"


_KILLED = """
import os, signal, sys
from tests_of_capture import prompts
from ratedist.validate.captures import _batch_file
from ratedist.validate.captures.capture import capture_cache
from ratedist.validate.models import load_model
real = os.replace
def replace(source, target):
    if str(target).endswith("batch-00001.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
capture_cache(load_model(sys.argv[1], device="cpu"), prompts(), sys.argv[2], batch_size=2)
"""


def test_killed_in_the_middle_of_a_file_and_resumed(
    tmp_path: Path, folders: dict[str, Path], loaded: dict[str, LoadedModel]
) -> None:
    """kill -9 when the second file is written but not renamed: resumed, it ends as if nothing had been."""
    module = tmp_path / "tests_of_capture.py"
    module.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    result = subprocess.run(
        [sys.executable, "-c", _KILLED, str(folders["llama"]), str(tmp_path / "killed")],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {"batch-00000.safetensors", ".batch-00001.safetensors.partial", "capture.partial.json"}

    for folder in ("killed", "straight"):
        capture_cache(loaded["llama"], prompts(), tmp_path / folder, batch_size=2)
    killed, straight = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("killed", "straight")
    )
    assert killed == straight


# --- the embedded model


def test_embedded_model(tmp_path: Path) -> None:
    """Its own cache bit for bit on a built-in workload; few tokens, as loading alone takes long enough."""
    model = load_model(device="cpu")
    assert (model.name, model.layers, model.kv_heads, model.query_heads, model.head_dim) == (
        "SmolLM2-135M-Instruct.Q4_1", 30, 3, 9, 64,
    )  # fmt: skip
    given = build_prompts("system-prompt", model.tokenizer, requests=2, tokens=64)
    capture = capture_cache(model, given, tmp_path / "c", batch_size=2, chunk_tokens=64)
    own = own_cache(model.model, torch.tensor([p.token_ids for p in given.prompts]))
    for index in (0, 15, 29):
        layer = capture.layer(index)
        for row in (0, 1):
            for captured, expected in zip(of_request(layer, row, 64), own[index], strict=True):
                assert torch.equal(captured, expected[row])
    # The system prompt is shared, and so are its bytes, whatever follows and however many there are.
    pair = [p.token_ids for p in given.prompts]
    shared = next(n for n in range(64) if pair[0][n] != pair[1][n])
    assert shared >= 10
    both = prefill(model.model, pair, rows=3, chunk_tokens=16)
    alone = prefill(model.model, [pair[0][:shared] + pair[1][:9]], rows=3, chunk_tokens=16)
    for (k, v), (k_alone, v_alone) in zip(both, alone, strict=True):
        for row in (0, 1):
            assert torch.equal(k[row, :, :shared], k_alone[0, :, :shared])
            assert torch.equal(v[row, :, :shared], v_alone[0, :, :shared])
    # That it understands: the capital of France is its most likely next token.
    ids = model.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        best = int(model.model(input_ids=ids).logits[0, -1].argmax())
    assert model.tokenizer.decode([best]).strip() == "Paris"
