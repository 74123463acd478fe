"""Generation side by side: what the record says, and that it notices a cache that is wrong."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model

from ratedist.cli import main
from ratedist.errors import InputError
from ratedist.kernels.huggingface import cache as huggingface
from ratedist.records import Record, read_record
from ratedist.validate.generate import SCHEMA, _row, _Run, generate_both_ways, live_tensor_bytes
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.planning.plan_file import CachePlan, write_plan
from ratedist.validate.quality.methods import Method
from ratedist.validate.workloads import build_prompts
from ratedist.validate.workloads.prompts import Prompt, PromptSet

REQUESTS, NEW = 3, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def loaded(folder: str) -> LoadedModel:
    return load_model(folder, dtype="float32")


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    """The first two begin alike, the third is shorter and in a domain of its own."""
    common = tuple(range(40, 80))
    return PromptSet("mine", (Prompt(common), Prompt((*common[:32], 9, 8, 7)), Prompt(common[:20], domain=1)))


def run(loaded: LoadedModel, prompts: PromptSet, **changes: Any) -> Record:
    return generate_both_ways(
        loaded,
        prompts,
        **{"new_tokens": NEW, "threshold": 0.99, "layers": [0, 2], "block_size": 8} | changes,
    )


@pytest.fixture(scope="module")
def record(loaded: LoadedModel, prompts: PromptSet) -> Record:
    return run(loaded, prompts, command=["me"])


def test_record(record: Record) -> None:
    assert [row["name"] for row in record.rows] == ["unmodified", "paged", "fused"]
    assert json.loads(record.to_json())["schema"] == SCHEMA
    unmodified, paged, fused = record.rows
    dense = 3 * REQUESTS * (40 + NEW - 1) * 2 * 2 * 8 * 4  # layers, rows, columns, K and V, heads, dim, bytes
    assert unmodified["cache_bytes"] == unmodified["held_bytes"] == dense
    assert paged["cache_bytes"] == paged["held_bytes"]
    assert fused["cache_bytes"] == fused["held_bytes"]
    for row in (unmodified, paged):
        assert row["first_difference"] == [None] * REQUESTS
        assert row["same_tokens"] == row["tokens"] == REQUESTS * NEW
    assert 0 < paged["largest_logit_difference"] < 1e-4
    assert unmodified["largest_logit_difference"] == 0
    assert paged["fusion"]["layers"] == []
    # Four of the second request's blocks are those of the first; the third has its own domain.
    assert [layer["layer"] for layer in fused["fusion"]["layers"]] == [0, 2]
    assert fused["fusion"]["candidates"] == 2 * (5 + 4 + 2)
    assert fused["fusion"]["kept"] <= 2 * (5 + 0 + 2)
    for row in record.rows:
        expected = REQUESTS * (NEW - 1) / row["decode_seconds"]
        assert row["tokens_per_second"] == pytest.approx(expected)
        assert row["prefill_seconds"] > 0
    assert fused["fuse_seconds"] > 0 == paged["fuse_seconds"]
    summary = record.summary[0]
    assert summary["unfused_identical"]
    assert summary["bytes_as_reported"]
    assert summary["cache_bytes_saved"] == 1 - fused["cache_bytes"] / paged["cache_bytes"]
    assert summary["requests_unchanged"] == fused["first_difference"].count(None)
    assert len(summary["texts"]) == 2
    assert record.provenance["command"] == ["me"]
    assert record.provenance["prompt_tokens"] == [40, 35, 20]


def test_fusing_too_much_is_seen(loaded: LoadedModel) -> None:
    """At threshold -1 every full block becomes the first request's; alone in a domain nothing changes."""
    generator = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(1, 250, (40,), generator=generator).tolist()) for _ in range(3)]
    prompts = PromptSet("other", (Prompt(ids[0]), Prompt(ids[1]), Prompt(ids[2], domain=1)))
    steps: list[str] = []
    record = run(loaded, prompts, threshold=-1.0, layers=[0, 1, 2], progress=steps.append)
    assert steps == ["unmodified", "paged", "fused"]
    assert record.rows[2]["fusion"]["kept"] == 3 * (5 + 0 + 5)
    assert record.rows[2]["largest_logit_difference"] > 1e-3


def test_first_difference_and_logits_until_then() -> None:
    def made(tokens: list[list[int]], logits: list[list[float]]) -> _Run:
        steps = [torch.tensor(step)[:, None] for step in logits]
        return _Run(torch.tensor(tokens), 1.0, 0.0, 2.0, steps, [], 10, 10, None)

    expected = made([[1, 2, 3], [4, 5, 6]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    other = made([[1, 2, 3], [4, 7, 6]], [[0.0, 0.1], [0.2, 0.3], [0.25, 9.0]])
    row = _row("other", other, expected, 2, 3)
    assert row["first_difference"] == [None, 1]
    assert (row["same_tokens"], row["tokens"]) == (5, 6)
    # The second request's third step follows another token: its logits are not comparable.
    assert row["largest_logit_difference"] == pytest.approx(0.3)
    assert row["tokens_per_second"] == 2 * 2 / 2.0


def test_a_cache_that_is_wrong_is_noticed(
    loaded: LoadedModel, prompts: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    paged_attention = huggingface.paged_attention
    monkeypatch.setattr(
        huggingface, "paged_attention", lambda q, *a, **k: (paged_attention(q, *a, **k)[0] * -3, None)
    )
    summary = run(loaded, prompts, new_tokens=12).summary[0]
    assert not summary["unfused_identical"]
    monkeypatch.undo()
    real = huggingface.FusedCache.resident_bytes
    monkeypatch.setattr(huggingface.FusedCache, "resident_bytes", lambda cache: real(cache) - 4)
    assert not run(loaded, prompts).summary[0]["bytes_as_reported"]


def test_live_tensor_bytes() -> None:
    gc.freeze()
    try:
        before = live_tensor_bytes()
        whole = torch.empty(1000)
        part = whole[:10]
        assert live_tensor_bytes() == before + 4000
        del whole
        assert live_tensor_bytes() == before + 4000  # its storage lives on
        del part
        assert live_tensor_bytes() == before
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new_tokens": 1}, "new_tokens = 1: must be an integer of at least 2"),
        ({"new_tokens": 130}, "new_tokens = 130: with a prompt of 40 tokens this exceeds the 160 of tiny"),
        ({"layers": None}, "all of the model's 3 layers are among the first or last 2"),
        ({"threshold": 2.0}, "threshold = 2.0"),
        ({"variant": "bush"}, "variant = 'bush'"),
    ],
)
def test_refusals(loaded: LoadedModel, prompts: PromptSet, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(loaded, prompts, **changes)
    with pytest.raises(InputError, match="prompts = 'none': holds no request"):
        run(loaded, PromptSet("none", ()))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str) -> Any:
    """Runs the command with a tiny model; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        fixed = ["--model", folder, "--layers", "all", "--dtype", "float32", "--block-size", "8"]
        monkeypatch.setattr(sys, "argv", ["ratedist", "generate", *map(str, arguments), *fixed])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_command(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    code, printed, err = command(
        "--workload", "templates", "--requests", 3, "--tokens", 40, "--new-tokens", 4, "--bits", 8,
        "--out", out, "--json",
    )  # fmt: skip
    assert code == 0, err
    record = read_record(out, SCHEMA)
    assert json.loads(printed)["rows"] == record.rows
    assert record.provenance["workload"] == "templates"
    assert len(record.rows[2]["fusion"]["layers"]) == 3
    assert record.provenance["fuse_options"]["bits"] == 8
    assert record.rows[2]["cache_bytes"] < 0.6 * record.rows[1]["cache_bytes"]
    code, _, err = command("--workload", "templates", "--out", out)
    assert code == 2
    assert "exists already" in err


def test_command_with_prompts_of_ones_own(command: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Tell me of number {n}."}) + "\n" for n in range(3)))
    code, printed, err = command("--prompts", file, "--new-tokens", 3)
    assert code == 0, err
    assert "mine.jsonl: 3 requests, 3 new tokens" in printed
    assert "9 of 9" in printed
    assert "request 1, fused: " in printed
    code, _, err = command("--prompts", file, "--workload", "templates")
    assert code == 2
    assert "name exactly one of them" in err


@pytest.mark.parametrize(
    ("verdict", "code"),
    [({}, 0), ({"unfused_identical": False}, 1), ({"bytes_as_reported": False}, 1)],
)
def test_command_judges(
    command: Any, record: Record, monkeypatch: pytest.MonkeyPatch, verdict: dict[str, bool], code: int
) -> None:
    judged = replace(record, summary=[record.summary[0] | verdict])
    monkeypatch.setattr("ratedist.validate.generate.generate_both_ways", lambda *a, **k: judged)
    assert command("--workload", "templates", "--requests", 3, "--tokens", 40)[0] == code


def make_plan_file(loaded: LoadedModel, path: Path) -> CachePlan:
    settings = {0: Method("fusion", threshold=0.5), 1: Method("exact"), 2: Method("exact", "kivi", 4)}
    plan = CachePlan(
        loaded.name, loaded.weights_hash, 3, 8, settings, goal={"max_kl": 0.02}, predicted={"kl": 0.01}
    )
    write_plan(plan, path)
    return plan


def test_generation_by_a_plan(
    loaded: LoadedModel, folder: str, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's layers are fused, each by its own setting; the same through the command."""
    path, out = tmp_path / "plan.json", tmp_path / "record.json"
    plan = make_plan_file(loaded, path)
    prompts = build_prompts("templates", loaded.tokenizer, requests=3, tokens=40, seed=0)
    record = generate_both_ways(loaded, prompts, new_tokens=3, plan=plan)
    layers = record.rows[2]["fusion"]["layers"]
    assert [layer["layer"] for layer in layers] == [0, 1, 2]
    assert layers[0]["kept"] < layers[1]["kept"]
    assert layers[2]["bytes_after"] < 0.6 * layers[2]["bytes_before"]
    assert record.summary[0]["bytes_as_reported"]
    assert record.summary[0]["unfused_identical"]
    assert record.provenance["plan"] == {"goal": {"max_kl": 0.02}, "predicted": {"kl": 0.01}}
    assert record.provenance["block_size"] == 8

    arguments = [
        "generate",
        "--workload",
        "templates",
        "--requests",
        "3",
        "--tokens",
        "40",
        "--out",
        str(out),
    ]
    arguments += ["--new-tokens", "3", "--plan", str(path), "--model", folder, "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", ["ratedist", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    again = read_record(out, SCHEMA).rows[2]["fusion"]["layers"]
    assert [layer["kept"] for layer in again] == [layer["kept"] for layer in layers]
    code, _, err = command("--workload", "templates", "--plan", path)
    assert code == 2
    assert "is the plan's to say; leave it out, or --plan" in err


def test_plans_are_refused(loaded: LoadedModel, prompts: PromptSet, tmp_path: Path) -> None:
    plan = make_plan_file(loaded, tmp_path / "plan.json")
    for options, message in (
        ({}, "threshold = None: give either a threshold or a plan"),
        ({"threshold": 0.9, "plan": plan}, "threshold = 0.9: give either a threshold or a plan"),
        ({"plan": replace(plan, weights_hash="0")}, "plan again for this one"),
        ({"plan": replace(plan, settings={1: Method("exact", "int8")})}, "is not what a fused cache does"),
        ({"plan": plan, "criterion": "both"}, "criterion = 'both': is the plan's to say"),
    ):
        with pytest.raises(InputError, match=message):
            generate_both_ways(loaded, prompts, new_tokens=2, **options)
