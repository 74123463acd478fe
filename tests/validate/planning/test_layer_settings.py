"""A plan read by a fused cache: what it does to a model is what was measured when it was checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model

from ratedist.errors import InputError
from ratedist.kernels.huggingface import FusedCache
from ratedist.kernels.quantised import QuantisedLayer
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.planning.layer_settings import layer_settings
from ratedist.validate.planning.plan_file import CachePlan
from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.methods import Method
from ratedist.validate.workloads.prompts import Prompt, PromptSet

BLOCK, PREFIX, FURTHER = 4, 40, 6


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model")), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def session(loaded: LoadedModel) -> QualitySession:
    """Four requests that begin alike."""
    generator = torch.Generator().manual_seed(3)
    start = torch.randint(1, 250, (10,), generator=generator).tolist()
    prompts = tuple(
        Prompt((*start, *torch.randint(1, 250, (PREFIX + FURTHER + 1 - 10,), generator=generator).tolist()))
        for _ in range(4)
    )
    return QualitySession(
        loaded,
        PromptSet("tiny", prompts),
        continuation=FURTHER,
        layers=(0, 1, 2),
        block_size=BLOCK,
        store_dtype="float32",
    )


def plan_of(settings: dict[int, Method]) -> CachePlan:
    return CachePlan("m", "0" * 64, 3, BLOCK, settings, goal={"max_kl": 0.02}, predicted={})


def fused_cache(loaded: LoadedModel, session: QualitySession, plan: CachePlan) -> tuple[FusedCache, Any]:
    """A cache by the plan that holds the session's prefixes, and the logits of what follows one by one."""
    ids = torch.tensor([prompt.token_ids for prompt in session.prompts.prompts])
    cache = FusedCache(loaded.model, plan=layer_settings(plan), block_size=plan.block_size)
    logits = []
    with torch.inference_mode():
        loaded.model(input_ids=ids[:, :PREFIX], past_key_values=cache, use_cache=True)
        for position in range(PREFIX, PREFIX + FURTHER):
            out = loaded.model(input_ids=ids[:, position : position + 1], past_key_values=cache)
            logits.append(out.logits[:, -1])
    return cache, torch.stack(logits, dim=1)


def test_a_cache_by_a_plan_is_what_was_measured(loaded: LoadedModel, session: QualitySession) -> None:
    """Layer by layer as many blocks are kept; layers differ, and the last is left as it is."""
    plan = plan_of(
        {
            0: Method("fusion", threshold=0.5, criterion="both", variant="tree"),
            1: Method("fusion", threshold=0.3, mode="cff", chunk_blocks=2),
            2: Method(),
        }
    )
    quality = session.measure(plan.settings)
    cache, _ = fused_cache(loaded, session, plan)
    report = cache.report()
    assert [layer.layer for layer in report.layers] == [0, 1]
    for layer in report.layers:
        fusion = quality.fusions[layer.layer]
        assert (layer.candidates, layer.kept) == (fusion.candidates, fusion.kept)
        assert layer.compression == pytest.approx(fusion.compression)
    kept = [layer.kept for layer in report.layers]
    assert kept[0] != kept[1]
    assert max(kept) < report.layers[0].candidates


def test_exact_sharing_alone_gives_the_models_own_logits(
    loaded: LoadedModel, session: QualitySession
) -> None:
    cache, logits = fused_cache(loaded, session, plan_of(dict.fromkeys((0, 1, 2), Method("exact"))))
    ids = torch.tensor([prompt.token_ids for prompt in session.prompts.prompts])
    with torch.inference_mode():
        expected = loaded.model(input_ids=ids).logits[:, PREFIX : PREFIX + FURTHER]
    assert cache.report().kept < cache.report().candidates  # or the test would say nothing
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_bits_of_a_plan_quantise_the_layer(loaded: LoadedModel, session: QualitySession) -> None:
    plan = plan_of(
        {0: Method("exact", "kivi", 4), 1: Method("fusion", "kivi", 8, threshold=0.5), 2: Method("exact")}
    )
    cache, _ = fused_cache(loaded, session, plan)
    layers = [cache.layer(index) for index in range(3)]
    assert [layer.k.bits if isinstance(layer, QuantisedLayer) else None for layer in layers] == [4, 8, None]


def test_nothing_and_exact_are_no_fusion() -> None:
    found = layer_settings(plan_of({4: Method("exact"), 2: Method(), 3: Method("fusion", threshold=0.7)}))
    assert list(found) == [3, 4]
    assert found[4] == {
        "threshold": 1.0,
        "variant": "leader",
        "criterion": "keys",
        "scale": "own-norm",
        "bits": None,
    }
    assert found[3]["threshold"] == 0.7


@pytest.mark.parametrize(
    "method",
    [
        Method("exact", "kivi", 3),
        Method("exact", "int8"),
        Method("", "kivi", 4),
        Method(keep=0.5),
    ],
    ids=lambda method: method.name,
)
def test_what_a_cache_cannot_do_is_refused(method: Method) -> None:
    with pytest.raises(InputError, match=r"plan, layer 5 = .*: is not what a fused cache does; it takes"):
        layer_settings(plan_of({3: Method("exact"), 5: method}))
