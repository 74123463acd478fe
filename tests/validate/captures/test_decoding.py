"""Captures taken during decoding: what the model would have written, and the cache that it would have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WINDOW, save_tiny_model

from ratedist.errors import CaptureError, InputError
from ratedist.kernels.layout import PagedLayer
from ratedist.validate.captures.capture import capture_cache, plan_capture
from ratedist.validate.captures.manifest import token_hash
from ratedist.validate.captures.passes import check_decoding, generate, prefill
from ratedist.validate.captures.store import Capture
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.workloads.prompts import Prompt, PromptSet

KINDS = ["llama", "qwen2", "gemma3", "gpt2"]
LENGTHS = (21, 50, 3, 33, 50)
NEW = 5


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_tiny_model(root / kind, kind) for kind in (*KINDS, "bloom")}


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path]) -> dict[str, LoadedModel]:
    return {kind: load_model(folder, device="cpu") for kind, folder in folders.items()}


def prompts(lengths: Sequence[int] = LENGTHS) -> PromptSet:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 250, (length,), generator=generator).tolist() for length in lengths]
    return PromptSet("random ids", tuple(Prompt(tuple(x)) for x in ids))


def ids_of(given: PromptSet) -> list[tuple[int, ...]]:
    return [prompt.token_ids for prompt in given.prompts]


def continuation(model: Any, ids: Sequence[int], new: int) -> list[int]:
    """What transformers generates after one prompt alone."""
    made = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        min_new_tokens=new,
        max_new_tokens=new,
        pad_token_id=0,
    )
    return [int(token) for token in made[0, len(ids) :]]


def of_request(layer: PagedLayer, row: int) -> list[torch.Tensor]:
    entries = layer.table.entries[row]
    blocks, length = entries[entries >= 0].long(), int(layer.table.lengths[row])
    return [pool[blocks].flatten(0, 1)[:length] for pool in (layer.k, layer.v)]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_cache_are_those_of_each_request_alone(
    tmp_path: Path, loaded: dict[str, LoadedModel], kind: str
) -> None:
    """Lengths differ within a batch, windows are shorter than the prompts, one prompt than a window."""
    model, given = loaded[kind], prompts()
    capture = capture_cache(model, given, tmp_path / "c", batch_size=3, chunk_tokens=16, decode=NEW)
    manifest = capture.manifest
    assert manifest.lengths == tuple(length + NEW for length in LENGTHS)
    assert manifest.generated == (NEW,) * 5
    assert manifest.token_hashes == tuple(map(token_hash, ids_of(given)))
    for request, ids in enumerate(ids_of(given)):
        written = continuation(model.model, ids, NEW)
        assert capture.tokens(request).tolist() == [*ids, *written]
        with torch.inference_mode():
            own = model.model(input_ids=torch.tensor([[*ids, *written]]), use_cache=True).past_key_values
        for index, layer in enumerate(own.layers):
            found = of_request(capture.layer(index, [request]), 0)
            sliding = manifest.layer_types[index] == "sliding_attention"
            seen = slice(-(WINDOW - 1), None) if sliding else slice(None)
            for captured, expected in zip(found, (layer.keys[0], layer.values[0]), strict=True):
                torch.testing.assert_close(
                    captured[seen], expected.transpose(0, 1)[seen], rtol=1e-5, atol=1e-5
                )


def test_prompts_have_the_bytes_of_a_capture_without_decoding(
    tmp_path: Path, loaded: dict[str, LoadedModel]
) -> None:
    model, given = loaded["llama"], prompts()
    plain = capture_cache(model, given, tmp_path / "plain", batch_size=3, chunk_tokens=16)
    decoded = capture_cache(model, given, tmp_path / "decoded", batch_size=3, chunk_tokens=16, decode=2)
    assert plain.manifest.generated == ()
    for index in range(3):
        for request, length in enumerate(LENGTHS):
            before = of_request(plain.layer(index, [request]), 0)
            after = of_request(decoded.layer(index, [request]), 0)
            assert all(torch.equal(a, b[:length]) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_requests_of_one_length_stay_byte_equal(
    tmp_path: Path, folders: dict[str, Path], dtype: str
) -> None:
    """Whoever else is in the batch, and however full it is: 0, 3 and 6 stand in three batches."""
    model = load_model(folders["llama"], dtype=dtype, device="cpu")
    ids = ids_of(prompts((40,) * 5))
    given = PromptSet("equal", tuple(Prompt(ids[n]) for n in (0, 1, 2, 0, 3, 4, 0)))
    capture = capture_cache(model, given, tmp_path / "c", batch_size=3, chunk_tokens=16, decode=NEW)
    assert [file.requests for file in capture.manifest.files] == [(0, 1, 2), (3, 4, 5), (6,)]
    first = capture.tokens(0)
    for request in (3, 6):
        assert torch.equal(capture.tokens(request), first)
        for index in range(3):
            pair = capture.layer(index, [0, request])
            for a, b in zip(of_request(pair, 0), of_request(pair, 1), strict=True):
                assert torch.equal(a, b)


def test_tokens_that_end_a_text_are_not_chosen(folders: dict[str, Path]) -> None:
    model = load_model(folders["llama"], device="cpu").model
    ids = ids_of(prompts((21,)))
    plain = generate(model, ids, NEW, rows=1, chunk_tokens=16).tokens[0].tolist()
    model.generation_config.eos_token_id = [plain[0], 259]
    changed = generate(model, ids, NEW, rows=1, chunk_tokens=16).tokens[0].tolist()
    assert plain[0] not in changed
    assert changed == continuation(model, ids[0], NEW)
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = plain[0]
    assert generate(model, ids, NEW, rows=1, chunk_tokens=16).tokens[0].tolist() == changed


def test_every_pass_has_one_of_two_shapes(loaded: dict[str, LoadedModel]) -> None:
    shapes = []
    model = loaded["llama"].model
    hook = model.base_model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    seen: list[float] = []
    try:
        generate(model, ids_of(prompts((20, 5))), 3, rows=4, chunk_tokens=16, progress=seen.append)
    finally:
        hook.remove()
    assert shapes == [(4, 16), (4, 16), (4, 1), (4, 1), (4, 1)]
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_only_prompts_of_different_lengths_are_masked(loaded: dict[str, LoadedModel]) -> None:
    """A mask may take another path through attention, and other bytes."""
    given = []
    model = loaded["llama"].model
    hook = model.base_model.register_forward_pre_hook(
        lambda _, __, inputs: given.append("attention_mask" in inputs), with_kwargs=True
    )
    try:
        generate(model, ids_of(prompts((10, 10))), 2, rows=3, chunk_tokens=16)
        generate(model, ids_of(prompts((10, 9))), 1, rows=2, chunk_tokens=16)
    finally:
        hook.remove()
    assert given == [False, False, False, False, True]


def test_nothing_generated_is_the_prefill(loaded: dict[str, LoadedModel]) -> None:
    model, ids = loaded["qwen2"].model, ids_of(prompts((20, 5)))
    made = generate(model, ids, 0, rows=2, chunk_tokens=16)
    assert made.tokens.shape == (2, 0)
    for (k, v), (own_k, own_v) in zip(made.kv, prefill(model, ids, rows=2, chunk_tokens=16), strict=True):
        assert torch.equal(k[1, :, -5:], own_k[1, :, :5])
        assert torch.equal(v[0], own_v[0, :, :20])


def test_progress_and_resuming(tmp_path: Path, loaded: dict[str, LoadedModel]) -> None:
    """Interrupted while it decodes the second batch; resumed, the files are those of a straight run."""
    given = prompts()
    total = sum(LENGTHS) + 5 * NEW
    seen: list[int] = []

    def interrupt(done: int, whole: int) -> None:
        assert whole == total
        seen.append(done)
        if done > 130:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"batch_size": 2, "decode": NEW, "queries": 2}
    with pytest.raises(KeyboardInterrupt):
        capture_cache(loaded["llama"], given, tmp_path / "c", **options, progress=interrupt)
    assert seen == sorted(seen)
    with pytest.raises(CaptureError, match="incomplete: 1 of 3 batches are finished"):
        Capture.open(tmp_path / "c")
    seen.clear()
    capture_cache(
        loaded["llama"], given, tmp_path / "c", **options, progress=lambda done, _: seen.append(done)
    )
    assert seen[0] > 110
    assert seen[-1] == total
    capture_cache(loaded["llama"], given, tmp_path / "straight", **options)
    for path in (tmp_path / "straight").iterdir():
        assert path.read_bytes() == (tmp_path / "c" / path.name).read_bytes()


def test_logits_that_are_not_finite(tmp_path: Path, folders: dict[str, Path]) -> None:
    """They name the request, and what was finished stays."""
    model = load_model(folders["llama"], device="cpu")
    with torch.no_grad():
        model.model.get_input_embeddings().weight[255] = float("nan")
    clean = ids_of(prompts((30, 30, 30)))
    given = PromptSet("p", tuple(map(Prompt, (*clean, (*clean[0][:29], 255)))))
    with pytest.raises(
        InputError,
        match=r"model = 'llama': gives logits that are not finite for prompt 1 of the batch at new token 0; "
        r"compute in float32 \(--dtype float32\), or leave that request out",
    ):
        capture_cache(model, given, tmp_path / "c", batch_size=2, decode=2)
    with pytest.raises(CaptureError, match="incomplete: 1 of 2 batches are finished"):
        Capture.open(tmp_path / "c")


def test_a_row_without_any_finite_logit_and_one_of_infinity(loaded: dict[str, LoadedModel]) -> None:
    model, ids = loaded["llama"].model, ids_of(prompts((8, 8)))
    head = model.get_output_embeddings()
    for value, fails in ((float("-inf"), True), (float("inf"), True), (None, False)):

        def spoil(_: Any, __: Any, logits: torch.Tensor, value: float | None = value) -> torch.Tensor:
            logits[0, 5] = float("-inf")  # a token that is ruled out is no fault
            if value is not None:
                logits[1] = value
            return logits

        handle = head.register_forward_hook(spoil)
        try:
            if fails:
                with pytest.raises(InputError, match="not finite for prompt 1 of the batch at new token 0"):
                    generate(model, ids, 2, rows=2, chunk_tokens=8)
            else:
                generate(model, ids, 2, rows=2, chunk_tokens=8)
        finally:
            handle.remove()


def test_model_without_position_ids(tmp_path: Path, loaded: dict[str, LoadedModel]) -> None:
    model, given = loaded["bloom"], prompts((20, 12))
    message = (
        r"model = 'bloom': takes no position ids, so prompts of 12 and 20 tokens cannot be decoded in one "
        r"batch; pass --batch-size 1, or prompts of one length \(--tokens\)"
    )
    with pytest.raises(InputError, match=message):
        capture_cache(model, given, tmp_path / "c", decode=4)
    assert not (tmp_path / "c").exists()
    capture = capture_cache(model, given, tmp_path / "c", decode=4, batch_size=1)
    for request, ids in enumerate(ids_of(given)):
        assert capture.tokens(request)[-4:].tolist() == continuation(model.model, ids, 4)
    capture_cache(model, given, tmp_path / "plain")
    even = prompts((15, 15))
    capture = capture_cache(model, even, tmp_path / "even", decode=4)
    assert capture.tokens(1)[-4:].tolist() == continuation(model.model, ids_of(even)[1], 4)


def test_model_without_a_head(loaded: dict[str, LoadedModel]) -> None:
    with pytest.raises(
        InputError, match="model = 'x': has no output embeddings to decode with; capture without"
    ):
        check_decoding(loaded["llama"].model.base_model, [[1]], 1, "x")


def test_room_for_new_tokens(loaded: dict[str, LoadedModel]) -> None:
    """Learned positions end at 150."""
    assert plan_capture(loaded["gpt2"], prompts((145,)), decode=NEW).lengths == (150,)
    with pytest.raises(
        InputError, match=r"tokens = 151: request 0 .* \(150 tokens\); shorten it, or generate fewer than 5"
    ):
        plan_capture(loaded["gpt2"], prompts((146,)), decode=NEW)


def test_up_to_the_last_position_with_an_unfilled_batch(
    tmp_path: Path, loaded: dict[str, LoadedModel]
) -> None:
    """Missing rows must not look for positions beyond those learned."""
    capture = capture_cache(loaded["gpt2"], prompts((145, 134)), tmp_path / "c", decode=NEW, batch_size=3)
    assert capture.manifest.lengths == (150, 139)


@pytest.mark.parametrize("argument", ["decode", "queries"])
def test_negative_numbers(loaded: dict[str, LoadedModel], argument: str) -> None:
    with pytest.raises(InputError, match=f"{argument} = -1: must be at least 0"):
        plan_capture(loaded["llama"], prompts(), **{argument: -1})
