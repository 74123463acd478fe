"""``ratedist bench matching | attention | decode | gpu`` at sizes that a test can afford."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from ratedist.cli.app import app
from ratedist.errors import InputError
from ratedist.kernels.bench import gpu_check
from ratedist.kernels.bench.attention import random_cache
from ratedist.kernels.bench.gpu_check import check_attention, check_fusion, check_space
from ratedist.kernels.fusion.fuse import matcher_of
from ratedist.kernels.fusion.matching import Centring, Turns


def run(*arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["bench", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    rows: list[dict[str, Any]] = json.loads(result.stdout)["rows"]
    return rows


def test_matching() -> None:
    rows = run("matching", "--blocks", "8", "16", "--criteria", "keys", "mean", "--repeats", "1")
    assert [row["name"] for row in rows] == [
        f"matching/{criterion}/{blocks}/{dtype}"
        for dtype in ("float32", "bfloat16")
        for blocks in (8, 16)
        for criterion in ("keys", "mean")
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["seconds"] / row["floor_seconds"])
        products = 2 if row["criterion"] == "mean" else 1
        assert row["operations"] == 2 * products * row["blocks"] ** 2 * 3072


def test_attention(tmp_path: Path) -> None:
    out = tmp_path / "attention.json"
    rows = run(
        *("attention", "--requests", "2", "--tokens", "80", "--dtypes", "float32", "--repeats", "1"),
        *("--out", str(out)),
    )
    assert [row["name"] for row in rows] == [
        f"attention/{kind}/{cache}/float32"
        for kind in ("decode", "prefill")
        for cache in ("unfused", "fused", "int8", "int4")
    ]
    assert json.loads(out.read_text())["rows"] == rows
    plain, fused, int8, int4 = rows[:4]
    # Ten blocks of 16 x 3 x 64 keys and values in float32, and queries and results of 2 x 9 x 64.
    assert plain["bytes"] == 10 * 2 * 3072 * 4 + 2 * 2 * 9 * 64 * 4
    assert plain["bytes"] > fused["bytes"] > int8["bytes"] > int4["bytes"]
    assert plain["operations"] == fused["operations"] == 4 * 2 * 80 * 9 * 64
    for row in rows:
        floor = max(row["bytes"] / row["bandwidth"], row["operations"] / row["matrix_rate"])
        assert row["floor_seconds"] == pytest.approx(floor)
        assert row["ratio"] == pytest.approx(row["seconds"] / floor)
        assert row["torch_ratio"] == pytest.approx(row["seconds"] / row["torch_seconds"])


def test_gpu_checks_run_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run("gpu", "--device", "cpu")
    assert {row["kind"] for row in rows} == {"check"}
    assert all(row["passed"] for row in rows)
    assert len(rows) == 3 * 4 * 2 + 2 * 2 * 3 + 3 * 3 * 2


def test_a_wrong_kernel_fails_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's results are disturbed: attention by 1 %, the mapping of one block, turns by a token."""
    right = gpu_check.paged_attention

    def disturbed(*arguments: Any, **options: Any) -> Any:
        out, lse = right(*arguments, **options)
        return (1.01 * out if options["backend"] == "triton" else out), lse

    monkeypatch.setattr(gpu_check, "paged_attention", disturbed)
    rows = check_attention(torch.device("cpu"), small=True, seed=0)
    assert not next(rows)["passed"]

    fuse = gpu_check.fuse

    def other(layer: Any, **options: Any) -> Any:
        return fuse(layer, **options | ({"threshold": 0.6} if options["backend"] == "triton" else {}))

    monkeypatch.setattr(gpu_check, "fuse", other)
    assert not all(row["passed"] for row in check_fusion(torch.device("cpu"), small=True, seed=0))

    kernels = gpu_check.matcher_of("triton")

    class Turned:
        group_means = kernels.group_means

        @staticmethod
        def matched_blocks(pool: Tensor, ids: Tensor, turns: Turns | None, centring: Centring) -> Tensor:
            if turns is not None:
                turns = Turns(turns.rotary, turns.tokens + 1)
            return kernels.matched_blocks(pool, ids, turns, centring)

    monkeypatch.setattr(
        gpu_check, "matcher_of", lambda name: Turned if name == "triton" else matcher_of(name)
    )
    rows = check_space(torch.device("cpu"), small=True, seed=0)
    assert {row["name"].split("/")[2] for row in rows if not row["passed"]} == {"half", "interleaved"}
    monkeypatch.setattr(gpu_check, "check_attention", lambda *_, **__: iter(()))
    result = CliRunner().invoke(app, ["bench", "gpu", "--device", "cpu", "--json"])
    assert result.exit_code == 1


def test_the_random_cache_shares_as_told() -> None:
    plain, fused = random_cache(
        4,
        70,
        compression=4.0,
        kv_heads=1,
        head_dim=8,
        dtype=torch.float32,
        device=torch.device("cpu"),
        seed=0,
    )
    assert len(torch.unique(plain.table.entries)) == 4 * 5
    assert len(torch.unique(fused.table.entries)) <= 5
    assert plain.table.lengths.tolist() == [70] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("matching", "--blocks", "0"), "blocks = 0: must be at least 1"),
        (("matching", "--criteria", "x"), "criterion = 'x': must be one of keys"),
        (("matching", "--dtypes", "int8"), "dtype = 'int8': must be float32"),
        (("matching", "--repeats", "0"), "repeats = 0"),
        (("matching", "--device", "moon"), "device = 'moon'"),
        (("attention", "--kinds", "x"), "kind = 'x': must be one of decode, prefill"),
        (("attention", "--caches", "x"), "cache = 'x': must be one of unfused"),
        (("attention", "--dtypes", "x"), "dtype = 'x'"),
        (("attention", "--compression", "0.5"), r"compression = 0.5: must be at least 1"),
        (("attention", "--backend", "reference"), "is not measured"),
        (("attention", "--device", "moon"), "device = 'moon'"),
        (("gpu", "--device", "moon"), "device = 'moon'"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
