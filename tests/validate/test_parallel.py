"""Tasks on a Dask cluster: the same records as on this machine, and what happens when it goes away."""

from __future__ import annotations

import json
import logging
import operator
import os
import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dask
import distributed
import pytest

from ratedist.cli import main
from ratedist.errors import InputError, RatedistError
from ratedist.suite_record import SuiteRecord
from ratedist.validate import cluster as cluster_module
from ratedist.validate.captured_ladder import captured_ladder
from ratedist.validate.compare import Plan, compare
from ratedist.validate.parallel import run_tasks
from ratedist.validate.suite.folder import CELLS, SuiteFolder
from ratedist.validate.suite.run import fingerprint, plan_work, run_cells, suite_settings
from ratedist.validate.suite.summary import make_record
from ratedist.validate.suite.tasks import Suite, Task
from ratedist.validate.transfer.run import TransferPlan, run_transfer
from ratedist.validate.transfer.thresholds import Goal

PLACE = "__import__('time').sleep({}) or __import__('threading').current_thread().name"
"""Evaluated as a task: takes a while, and gives the name of the thread that it ran in."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two worker processes on this machine that does not try again what ended a worker."""
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        )
    with cluster:
        yield cluster.scheduler_address


def threads(workers: int = 2):
    """A cluster of threads of this process, cheap to start and to stop; its scheduler is reached by TCP."""
    return distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=":0"
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "PATIENCE", 1.0)


def run_suite(captures: list, path: Path, **options: object) -> SuiteRecord:
    suite = Suite(
        "small",
        (Task(("all",), ((3, 4),), "all"),),
        seeds=(0,),
        thresholds=(0.7,),
        variants=("leader",),
        criteria=("keys",),
        predictors=("gaussian", "position-marked"),
        noise_draws=1,
    )
    work = plan_work(suite, captures)
    marks = {capture.manifest.workload: fingerprint(capture.manifest) for capture in captures}
    folder = SuiteFolder.claim(path, suite_settings(suite, captures), marks)
    run_cells(suite, work, folder, **options)
    return make_record(suite, work, folder, command=["test"])


def test_a_cluster_gives_the_record_of_this_machine(
    address: str, make_capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and summary of a comparison and of a suite, the times of the suite's calibrations aside; from a
    relative path, which the workers could not find."""
    captures = [make_capture("one", lengths=(64,) * 10), make_capture("two", lengths=(64,) * 10, seed=3)]
    monkeypatch.chdir(tmp_path)
    for capture in captures:
        capture.folder = capture.folder.relative_to(tmp_path)
    plan = Plan(thresholds=(0.6, 0.8), seed=3)
    steps: list[int] = []
    here = compare(captures, plan, command=["test"])
    there = compare(
        captures, plan, command=["test"], dask=address, progress=lambda done, *_: steps.append(done)
    )
    assert there.rows == here.rows
    assert there.summary == here.summary
    assert steps == [1, 2, 3, 4]

    whole = run_suite(captures, Path("here"))
    spread = run_suite(captures, Path("there"), dask=address)
    cells = [sorted(p.relative_to(f) for p in Path(f).rglob("*.json")) for f in ("here", "there")]
    assert cells[0] == cells[1]
    assert any(CELLS in path.parts for path in cells[0])
    rows = [
        [{name: v for name, v in row.items() if name != "calibration_seconds"} for row in record.rows]
        for record in (whole, spread)
    ]
    assert rows[0] == rows[1]
    # What is finished needs no cluster: none answers there.
    run_suite(captures, Path("there"), dask=f"tcp://127.0.0.1:{free_port()}")


def test_a_transfer_on_a_cluster_is_that_of_this_machine(
    address: str, make_capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captures that are parts of others, by relative paths; cells and thresholds alike."""
    captures = [make_capture("one", lengths=(64,) * 9), make_capture("two", lengths=(64,) * 9, seed=3)]
    monkeypatch.chdir(tmp_path)
    for capture in captures:
        capture.folder = capture.folder.relative_to(tmp_path)
    plan = TransferPlan(
        calibrate=4,
        measure=4,
        layers=1,
        seeds=(0,),
        goals=(Goal("k_error", 0.3),),
        thresholds=(0.7,),
        predictors=("gaussian", "position-marked"),
    )
    here = run_transfer(captures, plan, Path("here"))
    there = run_transfer(captures, plan, Path("there"), dask=address)
    assert there.rows == here.rows
    assert there.summary == here.summary
    # What is finished needs no cluster.
    run_transfer(captures, plan, Path("there"), dask=f"tcp://127.0.0.1:{free_port()}")


def test_a_ladder_on_a_cluster_is_that_of_this_machine(address: str, make_capture) -> None:
    capture = make_capture(lengths=(48,) * 8)
    settings = {"thresholds": [0.5, 0.7], "variant": "leader", "splits": 2, "process_runs": 20, "seed": 1}
    here = captured_ladder(capture, 2, **settings).record
    there = captured_ladder(capture, 2, **settings, dask=address).record
    assert here.rows == there.rows
    assert here.summary == there.summary


def test_the_command_line_hands_the_address_on(
    address: str, make_capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, impatient: None
) -> None:
    folder = str(make_capture(lengths=(64,) * 10).folder)
    other = str(make_capture("other", lengths=(64,) * 10).folder)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ratedist", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    validate = ("validate", "--capture", folder)
    shown = (*validate, "--threshold", "0.7", "--layers", "2", "--json")
    here, there = run(*shown), run(*shown, "--dask", address)
    assert (here[0], there[0]) == (0, 0), there[2]
    assert json.loads(here[1])["rows"] == json.loads(there[1])["rows"]
    nowhere = f"tcp://127.0.0.1:{free_port()}"
    suite = tmp_path / "mine.json"
    suite.write_text(json.dumps({"tasks": [{"workloads": "all", "splits": [[3, 4]], "layers": 2}]}))
    sizes = ("--calibrate", "4", "--measure", "4", "--layers", "1")
    law = ("--law", "gaussian", "--mean", "0.5", "--std", "0.1", "--thresholds", "0.6")
    for arguments in (
        (*validate, "--threshold", "0.7"),
        (*validate, "--suite", str(suite), "--out", str(tmp_path / "out")),
        ("transfer", "--capture", folder, other, *sizes, "--out", str(tmp_path / "transfer")),
        ("simulate", "--capture", folder, "--layer", "2", "--runs", "2"),
        ("simulate", *law, "--runs", "2"),
        ("curve", *law, "--runs", "2"),
    ):
        code, _, err = run(*arguments, "--dask", nowhere)
        assert code == 2
        assert f"dask = '{nowhere}': no Dask scheduler answers there" in err


def test_tasks_run_on_the_workers_and_keep_their_order(address: str) -> None:
    pids = list(run_tasks(eval, [("__import__('os').getpid()",)] * 4, dask=address))
    assert os.getpid() not in pids
    slow_first = [(f"__import__('time').sleep({0.4 if n == 0 else 0}) or {n}",) for n in range(5)]
    assert list(run_tasks(eval, slow_first, dask=address)) == list(range(5))


def test_a_task_that_ends_its_process_is_named() -> None:
    with pytest.raises(RatedistError, match=r"a task ended its process .*; pass a smaller --jobs"):
        list(run_tasks(eval, [("__import__('os')._exit(3)",)] * 2, jobs=2))


def test_what_a_task_raises_is_raised_here(address: str) -> None:
    with pytest.raises(ZeroDivisionError):
        list(run_tasks(operator.floordiv, [(4, 2), (1, 0)], dask=address))
    error = pickle.loads(pickle.dumps(InputError("layer", 3, "is none")))
    assert (str(error), error.argument, error.value) == ("layer = 3: is none", "layer", 3)
    assert type(error) is InputError


def test_a_task_that_ends_its_worker_is_not_tried_here(address: str) -> None:
    results = run_tasks(eval, [("1",), ("__import__('os')._exit(3)",)], dask=address)
    assert next(results) == 1
    with pytest.raises(RatedistError, match=f"a task ended its worker on the Dask cluster at {address}"):
        next(results)


def test_a_lost_cluster_is_finished_for_here(caplog: pytest.LogCaptureFixture, impatient: None) -> None:
    with threads() as cluster:
        address = cluster.scheduler_address
        places = []
        with caplog.at_level(logging.WARNING, logger="ratedist"):
            for place in run_tasks(eval, [(PLACE.format(0.3),)] * 8, dask=address):
                places.append(place)
                if len(places) == 1:
                    cluster.close()
    assert "Dask" in places[0]
    assert places[-1] == "MainThread"
    assert len(places) == 8
    (message,) = [record.getMessage() for record in caplog.records if record.name == "ratedist"]
    assert f"the Dask cluster at {address} was lost" in message
    assert f"the {places.count('MainThread')} of 8 tasks left are done on this machine" in message


def test_a_cluster_without_workers_any_more_is_lost(
    caplog: pytest.LogCaptureFixture, impatient: None
) -> None:
    with threads(1) as cluster, caplog.at_level(logging.WARNING, logger="ratedist"):
        places = []
        for place in run_tasks(eval, [(PLACE.format(0.2),)] * 4, dask=cluster.scheduler_address):
            places.append(place)
            if len(places) == 1:
                cluster.scale(0)
        assert "Dask" in places[0]
        assert places[-1] == "MainThread"
    assert "(its workers are gone)" in caplog.text


def test_clusters_that_are_refused(make_capture, tmp_path: Path, impatient: None, monkeypatch) -> None:
    capture = make_capture()
    for wrong in (f"tcp://127.0.0.1:{free_port()}", "no such://place"):
        with pytest.raises(InputError, match=f"dask = '{wrong}': no Dask scheduler answers there"):
            compare([capture], dask=wrong)
    with threads(0) as cluster:
        address = cluster.scheduler_address
        with pytest.raises(InputError, match=f"has no worker; start some with dask worker {address}"):
            compare([capture], dask=address)
    with threads(1) as cluster:
        address = cluster.scheduler_address
        real = cluster_module.what_results_depend_on
        other: dict[str, str] = {"numpy": "0"}
        monkeypatch.setattr(
            cluster_module,
            "what_results_depend_on",
            lambda *given: real(*given) | (other if in_worker() else {}),
        )
        with pytest.raises(InputError, match=r"worker tcp.* has numpy 0, this process [1-9]"):
            list(run_tasks(abs, [(1,)], dask=address))
        other.clear()
        file = tmp_path / "file.json"
        file.write_text("{}")
        for content, message in (("missing", "does not see"), ("00", "sees another content of")):
            other[str(file)] = content
            with pytest.raises(InputError, match=rf"{message} {file}; put it where all machines see it"):
                list(run_tasks(abs, [(1,)], dask=address, files=[file]))


def in_worker() -> bool:
    """Whether this runs for a worker that lives in this process."""
    return threading.current_thread().name != "MainThread"


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
