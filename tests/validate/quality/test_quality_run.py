"""The quality experiment on a tiny model: its record, going on where it stopped, and its refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_model

from ratedist.errors import InputError
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.methods import fusion_methods, parse_method
from ratedist.validate.quality.run import QUALITY_SCHEMA, QualityPlan, run_quality
from ratedist.validate.workloads.prompts import Prompt, PromptSet

LAYERS = (0, 1, 2)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


def requests(name: str, seed: int = 0) -> PromptSet:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(1, 250, (20,), generator=generator).tolist()
    rest = [torch.randint(1, 250, (33,), generator=generator).tolist() for _ in range(4)]
    return PromptSet(name, tuple(Prompt(tuple(start + own)) for own in rest), seed)


def plan(*names: str) -> QualityPlan:
    methods = fusion_methods(list(names), [0.2, 0.6], ["leader"], ["keys"])
    return QualityPlan(tuple(methods), continuation=4, layers=LAYERS)


def test_record_has_a_row_for_every_workload_and_method(loaded: LoadedModel) -> None:
    steps: list[tuple[int, int, str]] = []
    record = run_quality(
        loaded,
        [requests("one"), requests("two", 1)],
        plan("nothing", "exact", "kivi4", "evict0.5", "fusion"),
        progress=lambda *step: steps.append(step),
        command=["ratedist", "quality"],
    )
    assert record.schema == QUALITY_SCHEMA
    assert [(row["workload"], row["method"], row["threshold"]) for row in record.rows] == [
        (workload, method, threshold)
        for workload in ("one", "two")
        for method, threshold in (
            ("nothing", None),
            ("exact", None),
            ("kivi4", None),
            ("evict0.5", None),
            ("fusion", 0.2),
            ("fusion", 0.6),
        )
    ]
    assert record.rows[0]["kl_mean"] == 0
    assert {entry["kind"] for entry in record.summary} == {"verdict", "scheme", "bd-rate", "link"}
    assert [step[0] for step in steps] == list(range(1, 15))
    assert {step[1] for step in steps} == {14}
    about = record.provenance["workloads"][0]
    assert (about["prefix_tokens"], about["store_dtype"], about["layers"]) == (
        [48, 48],
        "bfloat16",
        [0, 1, 2],
    )
    session = QualitySession(loaded, requests("one"), continuation=4, layers=LAYERS)
    total = 0.0
    for prompt in requests("one").prompts:
        ids = torch.tensor([prompt.token_ids])
        with torch.inference_mode():
            logits = torch.log_softmax(loaded.model(input_ids=ids).logits[0, 48:-1].double(), -1)
        total -= float(logits.gather(1, ids[0, 49:, None]).sum())
    assert session.log_perplexity == about["log_perplexity"]
    assert about["log_perplexity"] == pytest.approx(total / 16, rel=1e-3)  # the cache is rounded to bfloat16
    json.loads(record.to_json())


def test_finished_cells_are_not_measured_again(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_quality(loaded, [requests("one")], plan("exact", "kivi4", "fusion"), cells=tmp_path)
    measured: list[str] = []
    real = QualitySession.measure

    def measure(self: QualitySession, method: object) -> object:
        measured.append(method.name)  # type: ignore[attr-defined]
        return real(self, method)  # type: ignore[arg-type]

    monkeypatch.setattr(QualitySession, "measure", measure)
    again = run_quality(loaded, [requests("one")], plan("exact", "kivi4", "fusion"), cells=tmp_path)
    assert measured == []
    assert again.rows == first.rows
    assert again.summary == first.summary
    more = run_quality(loaded, [requests("one")], plan("exact", "kivi4", "int8", "fusion"), cells=tmp_path)
    assert measured == ["int8"]
    assert [row for row in more.rows if row["method"] != "int8"] == first.rows
    run_quality(loaded, [requests("one", seed=2)], plan("exact"), cells=tmp_path)
    assert measured == ["int8", "exact"]  # other requests under the same name
    longer = replace(plan("exact"), continuation=3)
    row = run_quality(loaded, [requests("one")], longer, cells=tmp_path).rows[0]
    assert (measured, row["continuation"]) == (["int8", "exact", "exact"], 3)


def test_damaged_cells_are_measured_again(loaded: LoadedModel, tmp_path: Path) -> None:
    first = run_quality(loaded, [requests("one")], plan("exact"), cells=tmp_path)
    for file in tmp_path.iterdir():
        file.write_text(file.read_text()[:-20])
    assert run_quality(loaded, [requests("one")], plan("exact"), cells=tmp_path).rows == first.rows


def test_what_was_finished_is_kept_when_a_later_cell_fails(loaded: LoadedModel, tmp_path: Path) -> None:
    short = PromptSet("two", (Prompt(tuple(range(1, 18))),))
    with pytest.raises(InputError, match="request 0 of two is too short"):
        run_quality(loaded, [requests("one"), short], plan("exact", "int8"), cells=tmp_path)
    kept = [json.loads(file.read_text()) for file in tmp_path.iterdir()]
    assert sorted(cell["result"]["method"] for cell in kept if cell["key"]["method"]) == ["exact", "int8"]


def test_bad_plans_are_named(loaded: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"methods.*at least one"):
        QualityPlan(())
    with pytest.raises(InputError, match=r"seed.*not be negative"):
        QualityPlan((parse_method("exact"),), seed=-1)
    with pytest.raises(InputError, match=r"workloads.*at least one"):
        run_quality(loaded, [], plan("exact"))
    with pytest.raises(InputError, match=r"workloads.*names one twice"):
        run_quality(loaded, [requests("one"), requests("one", 3)], plan("exact"))
