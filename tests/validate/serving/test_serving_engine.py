"""The serving loop: what it generates is what the model generates alone, whatever the pool."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tiny_models import save_tiny_model

from ratedist.errors import InputError
from ratedist.validate.models import load_model
from ratedist.validate.serving.engine import EngineOptions, ServingRun, run_engine
from ratedist.validate.serving.packed import PackedModel
from ratedist.validate.serving.trace import Request

LAYERS, BLOCK, NEW = 3, 4, 6


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_tiny_model(tmp_path_factory.mktemp(request.param), request.param)
    return load_model(folder, dtype="float32", device="cpu").model


def make_requests(count: int = 7, *, arrivals: float = 0.0, domains: int = 1) -> list[Request]:
    """Ragged prompts, most of which begin alike."""
    random = Random(5)
    system = [random.randrange(1, 250) for _ in range(11)]
    return [
        Request(
            arrival=index * arrivals,
            prompt=tuple(
                system[: random.choice([0, 9, 11])] + [random.randrange(1, 250) for _ in range(1 + index * 3)]
            ),
            new_tokens=NEW - index % 3,
            domain=index % domains,
        )
        for index in range(count)
    ]


def generated_alone(model: Any, trace: list[Request]) -> list[tuple[int, ...]]:
    import torch

    results = []
    for request in trace:
        ids = torch.tensor([request.prompt])
        out = model.generate(ids, max_new_tokens=request.new_tokens, do_sample=False, pad_token_id=0)
        results.append(tuple(out[0, ids.shape[1] :].tolist()))
    return results


def serve(model: Any, trace: list[Request], **options: Any) -> ServingRun:
    with PackedModel(model) as packed:
        return run_engine(
            packed,
            trace,
            EngineOptions(**{"pool_blocks": 10_000, "block_size": BLOCK, "step_tokens": 64} | options),
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_prefixes": False},
        {"step_tokens": 3, "max_batch": 3},
        {"pool_blocks": 3 * 11},
        {"pool_blocks": 3 * 10, "max_batch": 4, "step_tokens": 5},
        {"fused_layers": (0, 1, 2)},
        {"fused_layers": (1,), "pool_blocks": 3 * 10},
    ],
    ids=["roomy", "no-prefixes", "chunked", "tight", "tight-chunked", "exact-fusion", "exact-fusion-tight"],
)
def test_generates_what_the_model_generates_alone(model: Any, options: dict[str, Any]) -> None:
    trace = make_requests()
    before = model.config._attn_implementation
    run = serve(model, trace, **options)
    assert model.config._attn_implementation == before
    assert [one.tokens for one in run.served] == generated_alone(model, trace)
    assert run.generated == sum(request.new_tokens for request in trace)
    pool = run.options.pool_blocks
    assert max(step.blocks for step in run.steps) <= pool
    assert max(step.new_tokens for step in run.steps) <= run.options.step_tokens
    assert max(step.running for step in run.steps) <= run.options.max_batch
    # Whoever leaves gives its blocks back.
    assert run.steps[-1].blocks_after == 0
    for one, request in zip(run.served, trace, strict=True):
        assert len(one.token_times) == request.new_tokens
        assert list(one.token_times) == sorted(one.token_times)
        assert request.arrival <= one.admitted <= one.token_times[0] <= run.seconds
    if pool == 10_000 and not run.options.fused_layers:
        needed = sum(-(-request.tokens // BLOCK) * LAYERS for request in trace)
        assert max(step.blocks for step in run.steps) <= needed


def test_small_pools_preempt_and_large_ones_do_not(model: Any) -> None:
    trace = make_requests()
    assert sum(one.preemptions for one in serve(model, trace).served) == 0
    tight = serve(model, trace, pool_blocks=3 * 10, share_prefixes=False)
    assert max(step.running for step in tight.steps) < len(trace)
    assert len(tight.steps) > len(serve(model, trace).steps)
    # Short prompts that grow long are let in together, and run out of blocks together.
    growing = [Request(0.0, (7 + index,), 22) for index in range(4)]
    run = serve(model, growing, pool_blocks=3 * 8)
    assert sum(one.preemptions for one in run.served) > 0
    assert [one.tokens for one in run.served] == generated_alone(model, growing)


def test_prefixes_are_computed_once_and_within_domains_only(model: Any) -> None:
    prompt = tuple(range(1, 14))
    trace = [Request(0.0, (*prompt, 20 + index), 3, domain=index // 2) for index in range(4)]
    # The last one comes when the third is being computed, and finds what is there of it so far.
    together = serve(model, trace, step_tokens=14, max_batch=4)
    assert [one.prefix_tokens for one in together.served] == [0, 12, 0, 8]
    assert sum(step.new_tokens for step in together.steps) == 4 * (14 + 3 - 1) - 12 - 8
    apart = serve(model, trace, step_tokens=14, max_batch=4, share_prefixes=False)
    assert {one.prefix_tokens for one in apart.served} == {0}
    assert max(step.blocks for step in together.steps) < max(step.blocks for step in apart.steps)
    assert [one.tokens for one in together.served] == [one.tokens for one in apart.served]


def test_fusion_frees_blocks_and_counts_them_before(model: Any) -> None:
    trace = [Request(0.0, tuple(range(3 + index, 35 + index)), 2) for index in range(4)]
    options = {"max_batch": 4, "step_tokens": 4 * 32, "share_prefixes": False}
    plain = serve(model, trace, **options)
    fused = serve(model, trace, fused_layers=(0, 1, 2), threshold=-1.0, **options)
    # At -1 everything that can share does: of four times 8 blocks per layer, 8 are kept.
    assert (fused.candidates, fused.kept) == (4 * 8 * LAYERS, 8 * LAYERS)
    assert fused.steps[0].blocks == plain.steps[0].blocks == 4 * 8 * LAYERS
    assert fused.steps[0].blocks_after == 8 * LAYERS
    assert plain.steps[0].blocks_after == 4 * 8 * LAYERS


def test_the_clock_jumps_to_arrivals_and_never_back(model: Any) -> None:
    trace = make_requests(3, arrivals=1000.0)
    run = serve(model, trace)
    assert run.seconds > 2000
    assert [one.admitted for one in run.served] == [0.0, 1000.0, 2000.0]
    assert max(step.running for step in run.steps) == 1


def test_refusals(model: Any) -> None:
    trace = make_requests(3)
    with pytest.raises(InputError, match=r"pool_blocks = 6: request 0 alone needs \d+ blocks in 3 layers"):
        serve(model, trace, pool_blocks=6)
    with pytest.raises(InputError, match=r"fused_layers = 3: the model has layers 0 … 2"):
        serve(model, trace, fused_layers=(3,))
    with pytest.raises(InputError, match="holds no request"):
        serve(model, [])
    with pytest.raises(InputError, match="arrives before the one ahead"):
        serve(model, [dataclasses.replace(trace[0], arrival=1.0), trace[1]])
    with pytest.raises(InputError, match="must leave a token for each of 32 requests"):
        serve(model, trace, step_tokens=31)
    with pytest.raises(InputError, match="max_batch"):
        serve(model, trace, max_batch=0)
    with pytest.raises(InputError, match="block_size"):
        EngineOptions(pool_blocks=1, block_size=0)
    with PackedModel(model) as packed, pytest.raises(InputError, match="grows beyond the model's 9 tokens"):
        run_engine(packed, [Request(0.0, tuple(range(9)), 2)], EngineOptions(10_000), max_tokens=9)


def test_a_failing_pass_leaves_the_model_as_it_was(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.config._attn_implementation

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("ratedist.validate.serving.packed.paged_attention", broken)
    with pytest.raises(RuntimeError, match="broken"):
        serve(model, make_requests(2))
    assert model.config._attn_implementation == before


def test_packed_model_refuses(model: Any, tmp_path: Path) -> None:
    packed = PackedModel(model)
    with pytest.raises(InputError, match="use `with PackedModel"):
        packed.step(None, [0], [[1]])  # type: ignore[arg-type]
    with packed, pytest.raises(InputError, match="at least one new token"):
        packed.step(None, [0], [[]])  # type: ignore[arg-type]
    mamba = load_model(save_tiny_model(tmp_path, "gpt2"), dtype="float32", device="cpu").model
    with pytest.raises(InputError, match="must be a causal LM"):
        PackedModel(mamba.base_model)
