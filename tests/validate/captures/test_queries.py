"""Captured queries: with the captured K and V they give the attention output of the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WINDOW, save_tiny_model
from torch import Tensor

from ratedist.errors import InputError
from ratedist.validate.captures.capture import capture_cache, plan_capture
from ratedist.validate.captures.queries import QueryRecorder
from ratedist.validate.captures.store import Capture
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.quality.attention_probe import AttentionProbe
from ratedist.validate.workloads.prompts import Prompt, PromptSet

KINDS = ["llama", "qwen2", "gemma3", "gpt2"]
LENGTHS = (21, 50, 7, 33)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    root = tmp_path_factory.mktemp("models")
    return {kind: load_model(save_tiny_model(root / kind, kind), device="cpu") for kind in (*KINDS, "bloom")}


def prompts(lengths: tuple[int, ...] = LENGTHS) -> PromptSet:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 250, (length,), generator=generator).tolist() for length in lengths]
    return PromptSet("random ids", tuple(Prompt(tuple(x)) for x in ids))


def attention_outputs(model: Any, ids: Tensor) -> dict[int, Tensor]:
    """By layer the output of attention before its projection, (tokens, query_heads · head_dim)."""
    found: dict[int, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if name.endswith((".o_proj", "attn.c_proj")):
            layer = next(int(part) for part in name.split(".") if part.isdigit())

            def keep(_: Any, inputs: tuple[Tensor], layer: int = layer) -> None:
                found[layer] = inputs[0][0]

            hooks.append(module.register_forward_pre_hook(keep))
    try:
        with torch.inference_mode():
            model(input_ids=ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def attend(capture: Capture, layer: int, request: int) -> Tensor:
    """Attention of the captured queries over the captured cache, (queries, query_heads · head_dim)."""
    manifest = capture.manifest
    paged = capture.layer(layer, [request])
    length = manifest.lengths[request]
    k, v = (
        pool.flatten(0, 1)[:length].repeat_interleave(manifest.group_size, dim=1)
        for pool in (paged.k, paged.v)
    )
    q = capture.queries(layer, [request])[0]
    scores = torch.einsum("qhd,khd->hqk", q, k) * capture.query_scale(layer)
    at = torch.arange(length - manifest.queries, length)[:, None]
    behind = at - torch.arange(length)
    seen = behind >= 0
    if manifest.layer_types[layer] == "sliding_attention":
        seen &= behind < WINDOW
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).flatten(1)


@pytest.mark.parametrize("decode", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_they_give_the_models_attention_output(
    tmp_path: Path, loaded: dict[str, LoadedModel], kind: str, decode: int
) -> None:
    """The positions lie across chunks of 4, and with 3 new tokens partly in the prompt, partly behind it."""
    model = loaded[kind]
    capture = capture_cache(
        model, prompts(), tmp_path / "c", batch_size=3, chunk_tokens=4, queries=6, decode=decode
    )
    assert capture.manifest.queries == 6
    for request in range(len(LENGTHS)):
        expected = attention_outputs(model.model, capture.tokens(request)[None].long())
        for layer in range(3):
            torch.testing.assert_close(
                attend(capture, layer, request), expected[layer][-6:], rtol=1e-4, atol=1e-5
            )


def test_of_chosen_layers_stored_in_another_type(tmp_path: Path, loaded: dict[str, LoadedModel]) -> None:
    whole = capture_cache(loaded["llama"], prompts(), tmp_path / "a", queries=2)
    part = capture_cache(loaded["llama"], prompts(), tmp_path / "b", queries=2, layers=[2], dtype="bfloat16")
    assert torch.equal(part.queries(2, [3, 0]), whole.queries(2, [3, 0]).bfloat16())
    assert part.query_scale(2) == pytest.approx(8**-0.5)
    with pytest.raises(InputError, match="index = 1: is not captured"):
        part.queries(1)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_recording_changes_nothing_and_is_undone(
    tmp_path: Path, loaded: dict[str, LoadedModel], implementation: str
) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = dict(ALL_ATTENTION_FUNCTIONS)
    model = loaded["qwen2"]
    model.model.set_attn_implementation(implementation)
    try:
        with_queries = capture_cache(model, prompts(), tmp_path / "a", queries=2, decode=2)
        without = capture_cache(model, prompts(), tmp_path / "b", decode=2)
        for layer in range(3):
            assert torch.equal(with_queries.layer(layer).k, without.layer(layer).k)
            assert torch.equal(with_queries.layer(layer).v, without.layer(layer).v)
            assert with_queries.queries(layer).any()
        with pytest.raises(RuntimeError, match="stop"), QueryRecorder(model.model, [0]):
            raise RuntimeError("stop")
    finally:
        model.model.set_attn_implementation("sdpa")
    assert dict(ALL_ATTENTION_FUNCTIONS) == before


def test_recorders_within_each_other_and_other_models(loaded: dict[str, LoadedModel]) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = dict(ALL_ATTENTION_FUNCTIONS)
    one, other = loaded["llama"].model, loaded["qwen2"].model
    with QueryRecorder(one, range(3)) as outer:
        with QueryRecorder(other, range(3)) as inner:
            outer.begin([range(1)])
            inner.begin([range(1)])
            outer.first = inner.first = [0]
            with torch.inference_mode():
                one(input_ids=torch.tensor([[1, 2]]))
            assert len(outer.found) == 3
            assert not inner.found
        outer.check(4, 8)
    assert dict(ALL_ATTENTION_FUNCTIONS) == before


def test_model_whose_attention_cannot_be_watched(tmp_path: Path, loaded: dict[str, LoadedModel]) -> None:
    with pytest.raises(
        InputError,
        match=r"model = 'bloom': computes attention where its queries cannot be taken .*; capture without "
        r"--queries, or take a model like Llama",
    ):
        capture_cache(loaded["bloom"], prompts(), tmp_path / "c", queries=1)
    assert not (tmp_path / "c").exists()


def test_a_probe_refuses_attention_that_it_cannot_watch(loaded: dict[str, LoadedModel]) -> None:
    with pytest.raises(InputError, match="model = 'bloom': computes attention in its own code, which cannot"):
        AttentionProbe(loaded["bloom"].model, "bloom").__enter__()
    model = loaded["llama"].model
    model.config._attn_implementation_internal = "flex_attention"
    try:
        with pytest.raises(InputError, match="attention by 'flex_attention', which cannot be watched"):
            AttentionProbe(model).__enter__()
    finally:
        model.config._attn_implementation_internal = "sdpa"


def test_probing_changes_nothing_and_is_undone(loaded: dict[str, LoadedModel]) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = dict(ALL_ATTENTION_FUNCTIONS)
    model, other = loaded["llama"].model, loaded["qwen2"].model
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        plain = model(input_ids=ids).logits
        with AttentionProbe(model) as probe:
            probe.calls = {}
            other(input_ids=ids)
            assert probe.calls == {}
            assert torch.equal(model(input_ids=ids).logits, plain)
        assert sorted(probe.calls) == [0, 1, 2]
    assert dict(ALL_ATTENTION_FUNCTIONS) == before


def test_more_queries_than_tokens(loaded: dict[str, LoadedModel]) -> None:
    assert plan_capture(loaded["llama"], prompts(), queries=7).queries == 7
    assert plan_capture(loaded["llama"], prompts(), queries=8, decode=1).queries == 8
    with pytest.raises(InputError, match="queries = 8: must lie in 0 … 7, the shortest request's tokens"):
        plan_capture(loaded["llama"], prompts(), queries=8)
