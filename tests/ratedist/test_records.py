"""Result records: strict, whole or not there, and never overwritten unasked."""

from __future__ import annotations

import json
import math
import re
import stat
from pathlib import Path

import pytest

from ratedist.adaptive import AdaptiveThreshold
from ratedist.curve import RateDistortionCurve
from ratedist.errors import InputError, RatedistError
from ratedist.figures.report.sections import KINDS, read_section
from ratedist.records import Record, earlier_name, provenance, read_record, write_atomic, write_record
from ratedist.similarity import Gaussian, load_law, save_law


def record(value: float = 1.5) -> Record:
    return Record("test-1", {"command": ["test"]}, [{"name": "a", "value": value}], [{"rows": 1}])


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    write_record(record(), path)
    assert read_record(path, "test-1") == record()
    assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(record(), path)
    with pytest.raises(
        InputError, match=r"record\.json'.*exists already; choose another path or pass --force"
    ):
        write_record(record(2.0), path)
    assert read_record(path, "test-1") == record()
    write_record(record(2.0), path, force=True)
    assert read_record(path, "test-1") == record(2.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_json_lacks_are_named(tmp_path: Path, value: float) -> None:
    path = tmp_path / "record.json"
    with pytest.raises(InputError, match=r"rows\[0\]\.value.*write None where a quantity does not exist"):
        write_record(record(value), path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "half \ud800")
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_a_record_is_as_readable_as_any_file(tmp_path: Path) -> None:
    plain, written = tmp_path / "plain", tmp_path / "written"
    plain.write_text("")
    write_atomic(written, "")
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with pytest.raises(InputError, match="no such file"):
        read_record(path, "test-1")
    path.write_text("{")
    with pytest.raises(RatedistError, match="is not a result record"):
        read_record(path, "test-1")
    path.write_text("[]")
    with pytest.raises(RatedistError, match="has schema 'list'; this command reads 'test-1'"):
        read_record(path, "test-1")
    write_record(record(), path, force=True)
    with pytest.raises(RatedistError, match="has schema 'test-1'; this command reads 'test-2'"):
        read_record(path, "test-2")


@pytest.mark.parametrize("earlier", ["ratedist-fitted-law-1", "ratedist.fitted-law/1"])
def test_a_schema_by_its_earlier_name_is_refused_with_a_remedy(earlier: str, tmp_path: Path) -> None:
    """By every reader of such files, and the remedy helps."""
    remedy = "the earlier name of ratedist/fitted-law/1: make it again, or write ratedist/fitted-law/1 there"
    path = tmp_path / "law.json"
    save_law(Gaussian(0.5, 0.1), path)
    whole = path.read_text()
    path.write_text(whole.replace("ratedist/fitted-law/1", earlier))
    for read in (
        lambda: load_law(path),
        lambda: read_record(path, "ratedist/curve/1"),
        lambda: read_section(path),
        lambda: RateDistortionCurve.from_dict({"schema": earlier}),
        lambda: AdaptiveThreshold.from_json(json.dumps({"schema": earlier})),
    ):
        with pytest.raises(RatedistError, match=re.escape(remedy)):
            read()
    path.write_text(whole)
    assert load_law(path).law == Gaussian(0.5, 0.1)
    for other in ("ratedist/fitted-law/1", "test-1", None, 3):
        assert earlier_name(other) == ""


def test_every_schema_has_the_same_form() -> None:
    """Those of the committed records, and those that the report knows."""
    folder = Path(__file__).parents[2] / "docs" / "records"
    committed = {json.loads(path.read_text())["schema"] for path in folder.glob("*.json")}
    assert len(committed) > 10
    for schema in committed | set(KINDS):
        assert re.fullmatch(r"ratedist/[a-z-]+/\d+", schema), schema


def test_provenance_names_command_and_versions() -> None:
    made = provenance(["ratedist", "test"], seed=3)
    assert made["command"] == ["ratedist", "test"]
    assert made["seed"] == 3
    assert {"ratedist", "python", "numpy", "scipy"} <= made["versions"].keys()
    assert json.loads(json.dumps(made)) == made
