"""What a compressed cache does to a tiny model's output, against plain passes over plain caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from tiny_models import save_tiny_model

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.quality.continuation import QualitySession, divergence
from ratedist.validate.quality.methods import Method, compress, parse_method
from ratedist.validate.workloads.prompts import Prompt, PromptSet

CONTINUATION = 6
LAYERS = (0, 1, 2)


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return tiny(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return tiny(tmp_path_factory.mktemp("model"), "llama")


def tiny(folder: Path, kind: str) -> LoadedModel:
    model = load_model(save_tiny_model(folder, kind), device="cpu")
    with torch.no_grad():
        # Random small weights give nearly uniform attention and predictions; sharper ones show differences.
        for parameter in model.model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def prompts(lengths: list[int], *, shared: int = 20, seed: int = 0) -> PromptSet:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(1, 250, (shared,), generator=generator).tolist()
    made = []
    for length in lengths:
        own = torch.randint(1, 250, (length + CONTINUATION + 1 - shared,), generator=generator).tolist()
        made.append(Prompt(tuple(start + own)))
    return PromptSet("tiny", tuple(made))


def session(loaded: LoadedModel, lengths: list[int], *, shared: int = 20, **options: Any) -> QualitySession:
    options = {"store_dtype": "float32", "batch_size": 2, "chunk_tokens": 32} | options
    requests = prompts(lengths, shared=shared)
    return QualitySession(loaded, requests, continuation=CONTINUATION, layers=LAYERS, **options)


def test_divergence_against_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (3 * torch.randn(2, 5, 11, generator=generator) for _ in range(2))
    following = torch.randint(0, 11, (2, 5), generator=generator)
    kl, same, delta = divergence(before, after, following)
    p, q = (log_softmax(x.double().numpy(), axis=-1) for x in (before, after))
    np.testing.assert_allclose(kl, (np.exp(p) * (p - q)).sum(-1), rtol=1e-12)
    np.testing.assert_array_equal(same, p.argmax(-1) == q.argmax(-1))
    index = np.indices((2, 5))
    np.testing.assert_allclose(delta, (p - q)[*index, following.numpy()], rtol=1e-12)
    assert divergence(before, before, following)[0].max() == 0


def test_without_compression_nothing_changes(loaded: LoadedModel) -> None:
    result = session(loaded, [48, 48, 37]).measure(Method())
    assert result.compression == 1
    assert result.kl.shape == (3, CONTINUATION)
    assert result.kl.max() == 0
    assert result.same_top1.all()
    assert np.abs(result.delta_nll).max() == 0
    assert result.k_error2 is not None
    assert result.k_error2.max() == 0
    assert result.attention_error2.max() < 1e-12


def test_exact_sharing_saves_and_costs_nothing(loaded: LoadedModel) -> None:
    result = session(loaded, [48, 48, 48]).measure(parse_method("exact"))
    assert result.compression > 1.2
    assert result.kl.max() == 0


def test_restored_cache_predicts_like_the_model_run_over_it_by_hand(loaded: LoadedModel) -> None:
    """The reference is the model over the whole text; the rest a pass over a cache made of fused blocks."""
    from transformers.cache_utils import Cache, DynamicLayer

    lengths = [48, 37, 48]
    measured = session(loaded, lengths)
    method = Method("fusion", threshold=0.3, variant="tree")
    result = measured.measure(method)
    assert result.kl.max() > 1e-3
    model = loaded.model
    restored = []
    for layer in LAYERS:
        paged = measured.layer(layer).paged
        fused = fuse(paged, threshold=0.3, variant="tree").layer
        entries = fused.table.entries.clamp(min=0).long()
        restored.append(
            tuple(
                (pool[entries] * scale[:, :, None, None, None]).flatten(1, 2).transpose(1, 2)
                for pool, scale in ((fused.k, fused.k_scale), (fused.v, fused.v_scale))
            )
        )
    for request, prompt in enumerate(measured.prompts.prompts):
        ids = torch.tensor([prompt.token_ids])
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        for layer, (k, v) in enumerate(restored):
            n = lengths[request]
            cache.update(k[request : request + 1, :, :n], v[request : request + 1, :, :n], layer)
        with torch.inference_mode():
            p = torch.log_softmax(model(input_ids=ids).logits[0, n:-1].double(), -1)
            after = model(input_ids=ids[:, n:-1], past_key_values=cache).logits[0].double()
            q = torch.log_softmax(after, -1)
        kl = (p.exp() * (p - q)).sum(-1)
        np.testing.assert_allclose(result.kl[request], kl.numpy(), rtol=2e-3, atol=2e-6)
        delta = (p - q)[torch.arange(CONTINUATION), ids[0, n + 1 :]]
        np.testing.assert_allclose(result.delta_nll[request], delta.numpy(), rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["kivi2", "evict0.5"])
def test_attention_error_is_that_of_attention_written_out(llama: LoadedModel, name: str) -> None:
    measured = session(llama, [48, 48], shared=1, eviction=True)
    method = parse_method(name)
    result = measured.measure(method)
    layer, request = 1, 1
    call = measured._calls[0][layer]
    query = call.query[request].double()
    compressed = compress(method, measured.layer(layer))
    original = [pool.view(2, 48, 2, 8) for pool in (measured._k[layer], measured._v[layer])]
    hidden = torch.zeros(2, 48, dtype=torch.bool)
    if compressed.hidden is not None:
        hidden = compressed.hidden[request]
        assert not torch.equal(hidden, compressed.hidden[0])
    outputs = []
    for (k, v), gone in ((original, 0 * hidden), ((compressed.k, compressed.v), hidden)):
        keys = torch.cat([k[request].transpose(0, 1), call.new_k[request]], 1).double()
        values = torch.cat([v[request].transpose(0, 1), call.new_v[request]], 1).double()
        output = []
        for head in range(4):
            scores = query[head] @ keys[head // 2].T / 8**0.5
            scores[:, torch.nonzero(gone[head // 2]).flatten()] = -torch.inf
            for token in range(CONTINUATION):
                scores[token, 48 + token + 1 :] = -torch.inf
            output.append(torch.softmax(scores, -1) @ values[head // 2])
        outputs.append(torch.stack(output))
    expected = (outputs[1] - outputs[0]).square().sum() / outputs[0].square().sum()
    assert expected > 1e-4
    assert result.attention_error2[layer, request] == pytest.approx(float(expected), rel=1e-3)
    assert result.attention_error2.shape == (3, 2)


def test_block_errors_are_those_of_the_restored_cache(llama: LoadedModel) -> None:
    measured = session(llama, [48, 37])
    result = measured.measure(parse_method("int8"))
    assert result.v_error2 is not None
    from ratedist.validate.quality.quantise import quantise_per_token

    before = measured.layer(2).paged.v.view(2, -1, 2, 8)[1, :32]
    error2 = [
        float((quantise_per_token(block) - block).square().sum() / block.square().sum())
        for block in before.split(16)
    ]
    assert result.v_error2[2, 1] == pytest.approx(np.mean(error2), rel=1e-4)


def test_evicted_tokens_are_not_attended_to(llama: LoadedModel) -> None:
    measured = session(llama, [40, 40], eviction=True)
    result = measured.measure(parse_method("evict0.5"))
    assert result.k_error2 is None
    assert result.compression == pytest.approx(
        2 * 64 / (64 + 4), rel=1e-6
    )  # K and V of 8 scalars, and a position
    received = measured.layer(0).received
    assert received is not None
    # Each of 40 queries hands out 1 in each of the 2 query heads of a group.
    torch.testing.assert_close(received.sum(2), torch.full((2, 2), 80.0))
    assert result.kl.max() > 1e-4
    full = measured.measure(parse_method("evict1.0"))
    assert full.kl.max() == 0


def test_received_attention_is_that_of_the_model(llama: LoadedModel) -> None:
    measured = session(llama, [40, 37], eviction=True)
    for request, prompt in enumerate(measured.prompts.prompts):
        length = measured.lengths[request]
        llama.model.set_attn_implementation("eager")
        try:
            with torch.inference_mode():
                result = llama.model(
                    input_ids=torch.tensor([prompt.token_ids[:length]]), output_attentions=True
                )
        finally:
            llama.model.set_attn_implementation("sdpa")
        for layer, weights in enumerate(result.attentions):
            expected = weights[0].sum(1).view(2, 2, length).sum(1)
            received = measured.layer(layer).received
            assert received is not None
            torch.testing.assert_close(received[request, :, :length], expected, rtol=1e-4, atol=1e-5)
            assert not bool(received[request, :, length:].any())


def test_model_is_left_as_it_was(llama: LoadedModel) -> None:
    session(llama, [32, 32]).measure(Method())
    assert llama.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([14, 48], {}, r"tokens.*21.*request 0 of tiny is too short for a block of 16"),
        ([48, 158], {}, r"continue.*request 1 of tiny.*164 tokens.*at most 160"),
        ([48], {"store_dtype": "int8"}, r"store_dtype.*must be one of"),
    ],
)
def test_bad_input_is_named(
    llama: LoadedModel, lengths: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        QualitySession(llama, prompts(lengths, shared=4), continuation=CONTINUATION, layers=LAYERS, **options)


def test_layers_and_continuation_are_checked(llama: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"layers.*has 3 layers.*name the layers"):
        QualitySession(llama, prompts([48]))
    with pytest.raises(InputError, match=r"layers.*must lie in 0 … 2"):
        QualitySession(llama, prompts([48]), layers=(3,))
    with pytest.raises(InputError, match=r"continue.*at least 1"):
        QualitySession(llama, prompts([48]), layers=LAYERS, continuation=0)


def test_logits_that_are_not_finite_are_named(tmp_path: Path) -> None:
    loaded = tiny(tmp_path, "llama")
    measured = session(loaded, [48, 48])
    with torch.no_grad():
        loaded.model.lm_head.weight[7] = torch.nan
    with pytest.raises(InputError, match=r"not finite over the cache after int8 \(request 0, token 0"):
        measured.measure(parse_method("int8"))
    with pytest.raises(InputError, match="not finite over the original cache"):
        session(loaded, [48, 48])


def test_model_without_position_ids_is_refused(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = True) -> None: ...

    monkeypatch.setattr(llama.model, "forward", forward)
    with pytest.raises(InputError, match="takes no position ids"):
        session(llama, [48, 48])
