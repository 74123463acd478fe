"""The estimate of a batch's memory against what torch allocates, and the batch sizes chosen by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_model

from ratedist.errors import InputError
from ratedist.kernels.bench.allocations import peak_extra_bytes
from ratedist.validate.captures.batch_memory import batch_bytes, fitting_batch, readable_bytes
from ratedist.validate.captures.capture import capture_cache, plan_capture
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.workloads.prompts import Prompt, PromptSet


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


def prompts(count: int, tokens: int) -> PromptSet:
    ids = torch.randint(1, 250, (count, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    return PromptSet("random ids", tuple(Prompt(tuple(x)) for x in ids))


@pytest.mark.parametrize(("decode", "chunk", "queries"), [(0, 32, 0), (0, 128, 8), (8, 32, 8)])
def test_estimate_against_allocations(
    tmp_path: Path, loaded: LoadedModel, decode: int, chunk: int, queries: int
) -> None:
    """Of two batches, as the second would show what the first did not give back."""
    given = prompts(8, 128)
    assert loaded.model is not None
    peak = peak_extra_bytes(
        lambda: capture_cache(
            loaded, given, tmp_path / "c", batch_size=4, chunk_tokens=chunk, decode=decode, queries=queries
        ),
        torch.device("cpu"),
    )
    estimate = batch_bytes(loaded, 4, 128, chunk_tokens=chunk, decode=decode, queries=queries)
    assert 0.5 * estimate < peak <= estimate


def test_estimate_grows_with_what_it_depends_on(loaded: LoadedModel) -> None:
    base = batch_bytes(loaded, 2, 100, chunk_tokens=32)
    assert batch_bytes(loaded, 4, 100, chunk_tokens=32) == 2 * base
    assert batch_bytes(loaded, 2, 130, chunk_tokens=32) > base
    assert batch_bytes(loaded, 2, 100, chunk_tokens=64) > base
    assert batch_bytes(loaded, 2, 100, chunk_tokens=32, decode=1) > base
    # Queries: 3 layers of 4 heads with 8 numbers of 4 bytes.
    assert batch_bytes(loaded, 2, 100, chunk_tokens=32, queries=5) == base + 2 * 5 * 3 * 4 * 8 * 4


def test_batch_size_by_memory_limit(tmp_path: Path, loaded: LoadedModel) -> None:
    three = batch_bytes(loaded, 3, 100, chunk_tokens=32)
    given = prompts(7, 100)
    plan = plan_capture(loaded, given, chunk_tokens=32, memory_limit=three)
    assert plan.origin["batch_size"] == 3
    assert [len(file.requests) for file in plan.files] == [3, 3, 1]
    assert plan_capture(loaded, given, chunk_tokens=32, memory_limit=three - 1).origin["batch_size"] == 2
    assert plan_capture(loaded, given, chunk_tokens=32, memory_limit=10**12).origin["batch_size"] == 8
    assert plan_capture(loaded, given, chunk_tokens=32).origin["batch_size"] == 8
    assert plan_capture(loaded, given, chunk_tokens=32, batch_size=3, memory_limit=three) == plan
    with pytest.raises(
        InputError,
        match=r"batch_size = 4: takes about \d+ kB beside the model's weights, and the memory limit is "
        r"\d+ kB; 3 would fit",
    ):
        capture_cache(loaded, given, tmp_path / "c", chunk_tokens=32, batch_size=4, memory_limit=three)
    with pytest.raises(
        InputError,
        match=r"memory_limit = '1 kB': one request of 100 tokens takes about \d+ kB beside the model's "
        r"weights; raise the limit, or shorten the prompts \(--tokens\) or the passes \(--chunk-tokens\)",
    ):
        capture_cache(loaded, given, tmp_path / "c", chunk_tokens=32, memory_limit=1000)
    assert not (tmp_path / "c").exists()


def test_what_is_decoded_counts(loaded: LoadedModel) -> None:
    limit = batch_bytes(loaded, 4, 100, chunk_tokens=32)
    fits = {
        decode: fitting_batch(
            loaded, 100, wanted=8, fixed=False, memory_limit=limit, chunk_tokens=32, decode=decode
        )
        for decode in (0, 60)
    }
    assert fits[0] == 4
    assert 1 <= fits[60] < 4


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (4_250_000_000, "4.25 GB"),
    ],
)
def test_readable(count: int, text: str) -> None:
    assert readable_bytes(count) == text
