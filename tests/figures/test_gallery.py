"""The gallery and the page of results: from records alone, the same twice, and those of the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ratedist.cli.app import app
from ratedist.errors import InputError, RatedistError
from ratedist.figures.report.content import Picture
from ratedist.figures.report.gallery import IMAGES, make_pages, write_pages

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROVENANCE = {"command": ["ratedist", "x"], "created": "2026-01-01", "versions": {"ratedist": "0.1.0"}}


def write(path: Path, schema: str, rows: list[dict[str, Any]], summary: list[dict[str, Any]]) -> None:
    data = {"schema": schema, "provenance": PROVENANCE, "rows": rows, "summary": summary}
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A benchmark, two records of serving, a comparison in quality, and a record of an unknown kind."""
    folder = tmp_path / "docs" / "records"
    folder.mkdir(parents=True)
    write(folder / "bench.json", "ratedist/bench/1", [{"name": "a|b", "seconds": 1.0, "ratio": 1.5}], [])
    write(folder / "later.json", "ratedist/later/7", [], [])
    for workload in ("one", "two"):
        rows = [
            {"workload": workload, "requests": 4, "mode": mode, "pool_share": share}
            | {"tokens_per_second": 5.0 + share, "tokens_per_second_predicted": 6.0}
            for share in (0.5, 1.0)
            for mode in ("prefix sharing", "prefix sharing and fusion")
        ]
        summary = [{"workload": workload, "pool_share": 0.5, "gain": 0.9, "gain_predicted": 1.0}]
        write(folder / f"serve-{workload}.json", "ratedist/serve/1", rows, summary)
    row = {"requests": 4, "continuation": 8, "variant": None, "criterion": None, "threshold": None}
    scheme = {"kind": "scheme", "workload": "one", "variant": None, "criterion": None, "kl_limit": 0.02}
    write(
        folder / "quality.json",
        "ratedist/quality/1",
        [
            row
            | {"workload": "one", "method": method, "compression": compression}
            | {"kl_mean": kl, "kl_mean_se": 0.0, "attention_error": kl}
            for method, compression, kl in (("exact", 1.1, 0.0), ("kivi4", 3.2, 0.01), ("int8", 1.9, 1e-3))
        ],
        [
            {"kind": "verdict", "workload": "one", "beats_four_bits": False, "adds_to_exact": True}
            | {"text": "in words"},
            scheme | {"scheme": "exact", "compression": 1.1},
            scheme
            | {"scheme": "fusion", "compression": 1.54, "compression_low": 1.5, "compression_high": 1.6}
            | {"over_exact": 1.4, "over_exact_low": 1.3, "over_exact_high": 1.5, "kl_at_four_bits": 0.5},
        ],
    )
    return folder


def test_first_the_answer_with_its_record(records: Path) -> None:
    text = make_pages(records).results
    answer = text[: text.index("## ")]
    assert "no better than 4 bits at equal bytes on 1 of 1 workloads" in answer
    assert "one: 1.40× beyond exact sharing (1.30 to 1.50), no better than 4 bits." in answer
    assert "1.54× at KL 0.02, where exact sharing gives 1.10× at none and 4 bits 3.20× at 0.0100" in answer
    assert "([quality.json](records/quality.json))" in answer


def test_every_record_is_linked_or_named_as_left_out(records: Path) -> None:
    pages = make_pages(records)
    for text in (pages.gallery, pages.results):
        assert "`later.json` is of a kind that these pages do not know, `ratedist/later/7`." in text
        linked = set(re.findall(r"\]\(records/([\w.-]+)\)", text))
        assert linked >= {"serve-one.json", "serve-two.json", "quality.json"}
    assert "bench.json" in pages.results
    assert "a\\|b" in pages.results
    assert pages.unknown == {"later.json": "ratedist/later/7"}
    # Records of serving share a section and a picture.
    assert list(pages.pictures) == ["quality-rate-kl.png", "quality-rate-distortion.png", "serving.png"]


def test_twice_the_same_files_and_none_left_over(records: Path, tmp_path: Path) -> None:
    old = tmp_path / "docs" / IMAGES / "old.png"
    old.parent.mkdir(parents=True)
    old.touch()
    found = []
    for folder in (tmp_path / "docs", tmp_path / "docs", tmp_path / "again" / "docs"):
        write_pages(make_pages(records, tmp_path / "docs"), folder)
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix in (".md", ".png")]
        found.append({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
    assert found[0] == found[1] == found[2]
    assert list(found[0]) == [
        "gallery.md",
        *(f"{IMAGES}/{name}.png" for name in ("quality-rate-distortion", "quality-rate-kl", "serving")),
        "results.md",
    ]
    for name, data in found[0].items():
        if name.endswith(".png"):
            assert f"({name})" in found[0]["gallery.md"].decode()
            assert len(data) < 120_000


def test_the_command(records: Path, tmp_path: Path) -> None:
    call = ["gallery", "--records", str(records), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert "left out: later.json, of unknown kind ratedist/later/7" in " ".join(result.stderr.split())
    assert "(../docs/records/quality.json)" in (tmp_path / "out" / "results.md").read_text("utf-8")
    again = CliRunner().invoke(app, call)
    assert isinstance(again.exception, InputError)
    assert "exists already; choose another folder or pass --force" in str(again.exception)
    assert CliRunner().invoke(app, [*call, "--force"]).exit_code == 0


def test_refuses(tmp_path: Path, records: Path) -> None:
    with pytest.raises(InputError, match=r"records = .*: is no folder"):
        make_pages(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.json file; write records there with --out"):
        make_pages(tmp_path / "empty")
    (records / "bad.json").write_text('{"schema": "ratedist/bench/1"}')
    with pytest.raises(RatedistError, match=r"^\S*bad\.json is damaged: KeyError 'provenance'"):
        make_pages(records)


def test_a_page_without_comparisons_says_so(records: Path) -> None:
    (records / "quality.json").unlink()
    assert "No record compares fusion with exact sharing and 4 bits." in make_pages(records).results


def test_the_documentation_is_what_the_records_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both pages, character for character, and a picture for each that they show; nothing is drawn."""

    def refuse(self: Picture) -> bytes:
        raise AssertionError(f"{self.name} was drawn")

    monkeypatch.setattr(Picture, "data", property(refuse))
    pages = make_pages(DOCS / "records", DOCS)
    for name, text in (("gallery.md", pages.gallery), ("results.md", pages.results)):
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"run ratedist gallery --force: {name}"
    images = {path.name for path in (DOCS / IMAGES).iterdir()}
    assert images == set(pages.pictures)
    assert len(images) <= 25
    assert max(path.stat().st_size for path in (DOCS / IMAGES).iterdir()) < 120_000
