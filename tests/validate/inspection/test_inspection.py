"""Looking at a layer closely: similarities, merges and their effect, against loops and a real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model
from typer.testing import CliRunner

from ratedist.cli.app import app
from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.restore import block_errors
from ratedist.records import read_record
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.captures.capture import capture_cache
from ratedist.validate.captures.store import Capture
from ratedist.validate.inspection.differences import similarity_by_difference
from ratedist.validate.inspection.merges import worst_merges
from ratedist.validate.inspection.run import SCHEMA, inspect_capture
from ratedist.validate.models import load_model
from ratedist.validate.workloads.prompts import Prompt, PromptSet


def test_similarity_by_difference_is_that_of_a_loop(make_capture: Callable[..., Capture]) -> None:
    sample = pair_sample(make_capture(lengths=(64, 48, 64, 32)).layer(2))
    text = np.arange(len(sample.request)) % 3
    cells: dict[tuple[int, bool], list[float]] = {}
    for a in range(len(text)):
        for b in range(a):
            if sample.request[a] != sample.request[b]:
                key = (abs(int(sample.position[a] - sample.position[b])), bool(text[a] == text[b]))
                cells.setdefault(key, []).append(float(sample.s_k[a, b]))
    rows = similarity_by_difference(sample, text)
    assert {(row["difference"], row["same_text"]) for row in rows} == set(cells)
    for row in rows:
        here = cells[row["difference"], row["same_text"]]
        assert row["pairs"] == len(here)
        assert row["k_mean"] == pytest.approx(np.mean(here))
        assert row["k_q95"] == pytest.approx(np.quantile(here, 0.95))
    whole = similarity_by_difference(sample, None)
    assert [row["same_text"] for row in whole] == [None] * 4
    assert sum(row["pairs"] for row in whole) == sample.pairs == sum(map(len, cells.values()))


def test_worst_merges_are_those_of_a_loop_over_the_blocks(make_capture: Callable[..., Capture]) -> None:
    layer = make_capture(lengths=(64,) * 6).layer(3)
    fusion = fuse(layer, threshold=0.5)
    k, v = block_errors(layer, fusion.layer)
    expected = []
    for request in range(6):
        for block in range(4):
            other = int(fusion.representative[request, block])
            error = float(k[request, block].double() + v[request, block].double())
            if other != request * 4 + block and error > 0:
                expected.append((error, request, block, other // 4, other % 4))
    expected.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    found = worst_merges(layer, fusion, None, 100)
    assert len(found) == len(expected) > 3
    for merge, (error, *place) in zip(found, expected, strict=True):
        assert [merge[n] for n in ("request", "block", "with_request", "with_block")] == place
        assert merge["k_error"] ** 2 + merge["v_error"] ** 2 == pytest.approx(error)
        assert 0.5 < merge["score"] < 1
    # The same texts replaced by the same texts stand there once, with the largest of their errors.
    tokens = [torch.zeros(64, dtype=torch.int32) for _ in range(6)]
    (one,) = worst_merges(layer, fusion, tokens, 100)
    assert one["times"] == len(expected)
    assert one["k_error"] == found[0]["k_error"]
    assert one["differing_tokens"] == 0
    assert worst_merges(layer, fusion, tokens, 0) == []


def test_record_of_a_capture(make_capture: Callable[..., Capture], tmp_path: Path) -> None:
    capture = make_capture(lengths=(64,) * 8)
    record = inspect_capture(capture.folder, layer=2, threshold=0.5, worst=3)
    kinds = [row["kind"] for row in record.rows]
    assert kinds.count("merge") == 3
    counts = [row for row in record.rows if row["kind"] == "counts"]
    assert sum(row["blocks"] for row in counts) == 32
    there, *laws, fusion = record.summary
    assert there["pairs"] == 28 * 16
    assert [law["law"] for law in laws] == ["gaussian", "poisson", "position-marked", "heterogeneous"]
    sample = pair_sample(capture.layer(2))
    exceeding = np.triu((sample.scores("keys") > 0.5) & sample.comparable)
    assert there["exceedances"] == exceeding.sum()
    assert fusion["kept"] == fuse(capture.layer(2), threshold=0.5).kept
    # Only the first requests, and only what the seed decides, twice.
    few = inspect_capture(capture.folder, threshold=0.5, requests=3)
    assert few.provenance["layer"] == 3
    assert few.summary == inspect_capture(capture.folder, threshold=0.5, requests=3).summary
    assert few.summary[0]["pairs"] == 3 * 16


def test_the_command_writes_a_record(make_capture: Callable[..., Capture], tmp_path: Path) -> None:
    capture, out = make_capture(), tmp_path / "inspect.json"
    call = [
        "inspect",
        "--capture",
        str(capture.folder),
        "--no-texts",
        "--threshold",
        "0.5",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert "worst merges" in result.stdout
    assert read_record(out, SCHEMA).provenance["threshold"] == 0.5
    again = CliRunner().invoke(app, call)
    assert isinstance(again.exception, InputError)
    assert "exists already; choose another path or pass --force" in str(again.exception)
    shown = CliRunner().invoke(app, [*call, "--force", "--json"])
    assert json.loads(shown.stdout)["summary"][0]["threshold"] == 0.5


def test_effect_of_a_merge_is_that_of_the_cache_with_it(tmp_path: Path) -> None:
    """Against the model's own cache of the same tokens, in which the block is overwritten by hand."""
    loaded = load_model(save_tiny_model(tmp_path / "model"), device="cpu")
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(1, 250, (50,), generator=generator).tolist() for _ in range(3)]
    ids[1][:20] = ids[0][:20]
    prompts = PromptSet("ids", tuple(Prompt(tuple(tokens), domain=0) for tokens in ids))
    capture = capture_cache(loaded, prompts, tmp_path / "capture")
    record = inspect_capture(
        capture.folder, layer=1, threshold=0.05, worst=9, loaded=loaded, effect=True, requests=3
    )
    merges = [row for row in record.rows if row["kind"] == "merge"]
    merge = next(row for row in merges if row["effect"] is not None)
    assert merge["text"] == loaded.tokenizer.decode(merge["tokens"])
    request, start = merge["request"], 48
    block, other = (slice(16 * merge[f"{w}block"], 16 * merge[f"{w}block"] + 16) for w in ("", "with_"))

    def run(replace: bool) -> torch.Tensor:
        with torch.inference_mode():
            tokens = torch.tensor(ids)
            caches = [
                loaded.model(input_ids=tokens[r : r + 1, :start], use_cache=True).past_key_values
                for r in (request, merge["with_request"])
            ]
            if replace:
                for name in ("keys", "values"):
                    mine, theirs = (getattr(cache.layers[1], name) for cache in caches)
                    theirs = theirs[:, :, other]
                    mine[:, :, block] = theirs * (mine[:, :, block].norm() / theirs.norm())
            logits = loaded.model(input_ids=tokens[request : request + 1, start:], past_key_values=caches[0])
        return logits.logits[0].double().log_softmax(-1)

    kl = torch.nn.functional.kl_div(run(True), run(False), log_target=True, reduction="none").sum(-1)
    assert float(kl.mean()) > 0
    assert merge["effect"]["kl_mean"] == pytest.approx(float(kl.mean()), rel=1e-3)
    assert merge["effect"]["kl_largest"] == pytest.approx(float(kl.max()), rel=1e-3)
    other_model = load_model(save_tiny_model(tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(InputError, match="has other weights than the model of the capture"):
        inspect_capture(capture.folder, loaded=other_model, effect=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, r"threshold = 1.0: must lie in \(-1, 1\)"),
        ({"criterion": "mean"}, "criterion = 'mean': unknown; choose one of keys, both"),
        ({"variant": "centroid"}, "variant = 'centroid': must be leader or tree"),
        ({"requests": 1}, "requests = 1: must be at least 2"),
        ({"requests": 9}, "requests = 9: the capture has 8 with a full block"),
        ({"worst": -1}, "worst = -1: must not be negative"),
        ({"effect": True}, "effect = True: needs the model"),
        ({"layer": 9}, "index = 9: is not captured"),
    ],
)
def test_refuses(make_capture: Callable[..., Capture], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        inspect_capture(make_capture().folder, **options)


def test_refuses_several_domains_and_texts_that_are_not_to_be_read(
    make_capture: Callable[..., Capture],
) -> None:
    folder = make_capture(domains=(0, 0, 0, 0, 1, 1, 1, 1)).folder
    with pytest.raises(InputError, match=r"capture = 'domains \[0, 1\]': holds blocks that never meet"):
        inspect_capture(folder)
    assert inspect_capture(folder, requests=4).provenance["requests"] == 4
    result = CliRunner().invoke(app, ["inspect", "--capture", str(folder), "--no-texts", "--effect"])
    assert "runs the model; leave --no-texts out" in str(result.exception)
