"""Serving with and without fusion: what the record says of runs, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from tiny_models import save_tiny_model

from ratedist.errors import InputError
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.serving.comparison import FUSED, MODES, TRANSFORMERS, UNFUSED, compare_serving
from ratedist.validate.serving.engine import EngineOptions, profile_prompts
from ratedist.validate.serving.packed import PackedModel
from ratedist.validate.serving.trace import Request
from ratedist.validate.serving.transformers_batching import run_transformers


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save_tiny_model(tmp_path_factory.mktemp("llama"), "llama")
    return load_model(folder, dtype="float32", device="cpu")


def requests(count: int, *, seed: int = 0, new_tokens: int = 4) -> list[Request]:
    random = Random(seed)
    system = tuple(range(1, 10))
    return [
        Request(0.0, (*system, *(random.randrange(20, 250) for _ in range(20))), new_tokens)
        for _ in range(count)
    ]


def test_the_record_says_what_happened(loaded: LoadedModel) -> None:
    seen: list[str] = []
    record = compare_serving(
        loaded,
        "made",
        requests(3, seed=1),
        requests(6),
        fused_layers=(1,),
        threshold=0.0,
        pools=(0.5, 1.0),
        max_batch=4,
        step_tokens=32,
        block_size=4,
        repeats=2,
        progress=lambda what, done, total: seen.append(what),
        command=["x"],
    )
    assert record.schema == "ratedist/serve/1"
    free = [row for row in record.rows if row["pool_share"] is None]
    rows = [row for row in record.rows if row["pool_share"] is not None]
    assert [(row["mode"], row["repeat"], row["same_tokens"]) for row in free] == [
        (UNFUSED, 0, 1.0),
        (UNFUSED, 1, 1.0),
    ]
    first = free[0]
    assert [(row["pool_share"], row["repeat"], row["mode"]) for row in rows] == [
        (share, repeat, mode) for repeat in (0, 1) for share in (0.5, 1.0) for mode in MODES
    ]
    needed = record.provenance["needed_blocks"]
    assert needed == first["peak_blocks"] == first["pool_blocks"]
    for row in rows:
        assert row["generated_tokens"] == 24
        assert row["tokens_per_second"] == pytest.approx(24 / row["seconds"])
        assert row["peak_blocks"] <= row["pool_blocks"] == math.floor(row["pool_share"] * needed)
        assert row["tokens_per_second_predicted"] > 0
        # Without fusion the pool changes when tokens come, not which.
        assert row["same_tokens"] == 1.0 if row["mode"] == UNFUSED else 0 <= row["same_tokens"] <= 1
        assert (row["compression"] is None) == (row["mode"] == UNFUSED)
        assert row["computed_tokens"] <= 6 * (29 + 3) * (1 + row["preemptions"])
    by_share = {entry["pool_share"]: entry for entry in record.summary}
    assert list(by_share) == [0.5, 1.0]
    for share, entry in by_share.items():
        rate = {
            mode: [
                row["tokens_per_second"] for row in rows if (row["pool_share"], row["mode"]) == (share, mode)
            ]
            for mode in MODES
        }
        gains = [b / a for a, b in zip(rate[UNFUSED], rate[FUSED], strict=True)]
        assert entry["gain"] == pytest.approx(sum(gains) / 2)
        assert (entry["gain_low"], entry["gain_high"]) == (min(gains), max(gains))
        assert entry["prediction_error_fused"] == pytest.approx(
            rows[-1 if share == 1.0 else 1]["tokens_per_second_predicted"] / (sum(rate[FUSED]) / 2) - 1
        )
        most = sum(row["tokens_per_second"] for row in free) / 2
        assert entry["ceiling"] == pytest.approx(most / (sum(rate[UNFUSED]) / 2))
        assert entry["ceiling_predicted"] == pytest.approx(
            first["tokens_per_second_predicted"]
            / rows[0 if share == 0.5 else 2]["tokens_per_second_predicted"]
        )
        assert entry["tokens_per_second_transformers"] is None
    assert {"profile", "without a limit", f"pool 0.50, {FUSED}"} <= set(seen)
    assert record.to_json()


def test_transformers_serves_the_same_tokens(loaded: LoadedModel) -> None:
    """Its continuous batching, from the same pools, decodes what the engine decodes without fusion."""
    before = loaded.model.config._attn_implementation
    record = compare_serving(
        loaded,
        "made",
        requests(2, seed=1),
        requests(4),
        fused_layers=(1,),
        threshold=0.0,
        pools=(0.5,),
        step_tokens=32,
        max_batch=4,
        block_size=16,
        transformers=True,
    )
    assert loaded.model.config._attn_implementation == before
    rows = [row for row in record.rows if row["mode"] == TRANSFORMERS]
    assert [row["pool_share"] for row in rows] == [None, 0.5]
    for row in rows:
        assert (row["generated_tokens"], row["same_tokens"]) == (16, 1.0)
        assert row["time_to_first_token_mean"] < row["seconds"]
        assert row["tokens_per_second"] == pytest.approx(16 / row["seconds"])
        assert row.keys() == record.rows[0].keys()
    (entry,) = record.summary
    assert entry["tokens_per_second_transformers"] == pytest.approx(rows[1]["tokens_per_second"])
    assert record.to_json()


def test_transformers_refusals(loaded: LoadedModel) -> None:
    apart = [replace(request, domain=n) for n, request in enumerate(requests(2))]
    with pytest.raises(
        InputError, match=r"trace = 'several domains': transformers shares prefixes across all"
    ):
        run_transformers(loaded, apart, EngineOptions(1000))
    with pytest.raises(InputError, match="pool_blocks = 2: must be at least one in each of 3 layers"):
        run_transformers(loaded, requests(2), EngineOptions(2))
    with pytest.raises(InputError, match="holds no request"):
        run_transformers(loaded, [], EngineOptions(1000))


def test_resident_prompts_are_counted_one_by_one(loaded: LoadedModel) -> None:
    """Three layers, 7 full blocks and a part of 29 tokens: 24 blocks alone, 2 full ones of them shared."""
    with PackedModel(loaded.model) as packed:
        options = EngineOptions(pool_blocks=1000, block_size=4, step_tokens=8, max_batch=2)
        blocks, _ = profile_prompts(packed, requests(3), options)
        assert blocks == [0, 24, 24 + 18, 24 + 36]
        alone, _ = profile_prompts(
            packed,
            requests(3),
            EngineOptions(1000, block_size=4, step_tokens=8, max_batch=2, share_prefixes=False),
        )
        assert alone == [0, 24, 48, 72]
        fused, seconds = profile_prompts(
            packed,
            requests(3),
            EngineOptions(
                1000, fused_layers=(0, 1, 2), threshold=-1.0, block_size=4, step_tokens=8, max_batch=2
            ),
        )
    # At -1 all full blocks share: what a further request adds is its partly filled one.
    assert fused == [0, 24, 27, 30]
    assert seconds > 0


@pytest.mark.parametrize(
    ("profile", "trace", "options", "message"),
    [
        (1, 2, {}, "at least two requests to calibrate on"),
        (2, 0, {}, "holds no request"),
        (2, 2, {"repeats": 0}, "repeats = 0"),
        (2, 2, {"pools": (0.0,)}, r"pools = 0.0: must be positive shares"),
        (2, 2, {"pools": (math.nan,)}, "must be positive shares"),
        (2, 2, {"pools": (0.01,)}, "request 0 alone needs"),
    ],
)
def test_refuses(
    loaded: LoadedModel, profile: int, trace: int, options: dict[str, Sequence[float]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compare_serving(
            loaded,
            "made",
            requests(profile),
            requests(trace),
            **{"fused_layers": (1,), "threshold": 0.9, "step_tokens": 64} | options,  # type: ignore[arg-type]
        )


def test_a_trace_file_is_served(loaded: LoadedModel, tmp_path: Path) -> None:
    from ratedist.validate.serving.trace import read_trace

    path = tmp_path / "trace.jsonl"
    lines = [f'{{"arrival": {n}, "prompt": "{"ab" * (n + 5)}", "new_tokens": 2}}' for n in range(4)]
    path.write_text("\n".join(lines))
    trace = read_trace(path, loaded.tokenizer)
    record = compare_serving(
        loaded, "file", trace[:2], trace[2:], fused_layers=(1,), threshold=0.9, pools=(1.0,), block_size=4
    )
    assert record.rows[-1]["requests"] == 2
