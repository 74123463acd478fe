"""``ratedist capacity``: estimates for named GPUs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from ratedist.cli.app import app
from ratedist.errors import InputError

SMALL = ("--requests", "64", "--new-tokens", "40", "--prompt", "4000", "--max-batch", "64")


def estimate(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["capacity", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_more_fits_where_memory_is_short() -> None:
    """On 24 GB beside 16 GB of weights ten requests of 4,000 tokens fit; fused twofold, twice as many."""
    found = estimate("--compression", "2", "--gpu", "l4", *SMALL)
    unfused, fused = found["rows"]
    assert 1.3 < fused["mean_running"] / unfused["mean_running"] <= 2.2
    assert fused["peak_blocks"] <= found["summary"]["pool_blocks"]
    assert found["summary"]["gain"] == pytest.approx(
        fused["tokens_per_second"] / unfused["tokens_per_second"]
    )
    # 0.9 x 24 GB less 16 GB of weights, in blocks of 16 tokens of one layer of 8 x 128 keys and values.
    assert found["summary"]["pool_blocks"] == int((0.9 * 24e9 - 16e9) // (2 * 2 * 16 * 8 * 128))


def test_without_compression_nothing_changes() -> None:
    found = estimate("--compression", "1", "--gpu", "l4", *SMALL)
    assert found["summary"]["gain"] == pytest.approx(1.0)
    assert found["summary"]["gain_of_a_full_pool"] == pytest.approx(1.0)


def test_shows_that_it_is_an_estimate() -> None:
    result = CliRunner().invoke(app, ["capacity", "--compression", "1.5", "--gpu", "l4", *SMALL])
    assert "an estimate from published peaks, no measurement" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--compression", "0.5"), "compression = 0.5: must be at least 1"),
        (("--compression", "2", "--gpu", "tpu"), "gpu = 'tpu': must be one of a100"),
        (("--compression", "2", "--gpu", "l4", "--parameters", "70e9"), "no room for a cache beside 140 GB"),
        (("--compression", "2", "--memory-share", "0"), "memory_share = 0.0"),
        (("--compression", "2", "--requests", "0"), "requests = 0"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["capacity", *arguments])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
