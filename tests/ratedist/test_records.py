"""Result records: strict, whole or not there, and never overwritten unasked."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path

import pytest

from ratedist.errors import InputError, RatedistError
from ratedist.records import Record, provenance, read_record, write_atomic, write_record


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


def test_provenance_names_command_and_versions() -> None:
    made = provenance(["ratedist", "test"], seed=3)
    assert made["command"] == ["ratedist", "test"]
    assert made["seed"] == 3
    assert {"ratedist", "python", "numpy", "scipy"} <= made["versions"].keys()
    assert json.loads(json.dumps(made)) == made
