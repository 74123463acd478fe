"""The quality experiment in processes and on a Dask cluster: the rows of one process, kept as they come."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest
import torch
from tiny_models import save_tiny_model

from ratedist.errors import InputError
from ratedist.records import Record
from ratedist.validate import cluster as cluster_module
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.quality import run as run_module
from ratedist.validate.quality.methods import fusion_methods
from ratedist.validate.quality.run import QualityPlan, run_quality
from ratedist.validate.workloads.prompts import Prompt, PromptSet


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of one process that runs two tasks at a time, whose models cannot be watched at once."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def requests(name: str, seed: int) -> PromptSet:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(1, 250, (20,), generator=generator).tolist()
    rest = [torch.randint(1, 250, (33,), generator=generator).tolist() for _ in range(4)]
    return PromptSet(name, tuple(Prompt(tuple(start + own)) for own in rest), seed)


SETS = [requests("one", 0), requests("two", 1)]


def run(loaded: LoadedModel, sets: list[PromptSet] = SETS, **options: Any) -> Record:
    methods = fusion_methods(["exact", "evict0.5", "fusion"], [0.4], ["leader"], ["keys"])
    plan = QualityPlan(tuple(methods), continuation=4, layers=(0, 1, 2))
    return run_quality(loaded, sets, plan, command=["test"], **options)


def test_a_pickled_model_is_its_files(loaded: LoadedModel) -> None:
    assert loaded.model is not None
    written = pickle.dumps(loaded)
    assert len(written) < 1000
    read = pickle.loads(written)
    assert (read.name, read.weights_hash, read.dtype) == (loaded.name, loaded.weights_hash, loaded.dtype)
    # A process that is handed it again has loaded it already.
    assert pickle.loads(written) is read


def test_processes_and_a_cluster_give_the_rows_of_one_process(
    loaded: LoadedModel, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = run(loaded, cells=Path("here"))
    steps: list[tuple[int, int, str]] = []
    beside = run(loaded, cells=Path("beside"), jobs=2, progress=lambda *step: steps.append(step))
    there = run(loaded, cells=Path("there"), dask=address)
    assert here.rows == beside.rows == there.rows
    assert here.summary == beside.summary == there.summary
    assert here.provenance["workloads"] == beside.provenance["workloads"] == there.provenance["workloads"]
    assert steps == [(4, 8, "one"), (8, 8, "two")]
    names = [sorted(file.name for file in Path(f).iterdir()) for f in ("here", "beside", "there")]
    assert names[0] == names[1] == names[2]
    assert len(names[0]) == 8


def test_what_is_finished_needs_no_cluster_and_what_is_not_says_so(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "PATIENCE", 0.5)
    nowhere = "tcp://127.0.0.1:9"
    first = run(loaded, SETS[:1], cells=tmp_path)
    assert run(loaded, SETS[:1], cells=tmp_path, dask=nowhere).rows == first.rows
    with pytest.raises(InputError, match="no Dask scheduler answers there"):
        run(loaded, SETS[:2], cells=tmp_path, dask=nowhere)
    with pytest.raises(InputError, match="jobs = 0: must be at least 1"):
        run(loaded, jobs=0)


def test_workers_that_do_not_see_the_folder_leave_keeping_to_who_asks(
    loaded: LoadedModel, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine: there is no such folder where tasks run."""
    real = run_module.run_tasks

    def elsewhere(function: Any, tasks: list[tuple[Any, ...]], **options: Any) -> Any:
        hidden = [(*task[:3], tmp_path / "elsewhere", *task[4:]) for task in tasks]
        return real(function, hidden, **options)

    monkeypatch.setattr(run_module, "run_tasks", elsewhere)
    first = run(loaded, SETS[:1], cells=tmp_path / "cells", dask=address)
    assert not (tmp_path / "elsewhere").exists()
    assert len(list((tmp_path / "cells").iterdir())) == 4
    monkeypatch.setattr(run_module, "run_tasks", lambda *_, **__: iter(()))
    assert run(loaded, SETS[:1], cells=tmp_path / "cells").rows == first.rows


def test_a_lost_cluster_is_finished_for_here(
    loaded: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "PATIENCE", 1.0)
    steps: list[str] = []
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=":0"
    ) as cluster:

        def lose(done: int, whole: int, name: str) -> None:
            steps.append(name)
            if len(steps) == 1:
                cluster.close()

        with caplog.at_level(logging.WARNING, logger="ratedist"):
            sets = [*SETS, requests("three", 2)]
            record = run(loaded, sets, cells=tmp_path, dask=cluster.scheduler_address, progress=lose)
    assert "was lost" in caplog.text
    assert steps == ["one", "two", "three"]
    assert record.rows == run(loaded, sets).rows


def test_a_failure_in_one_process_leaves_whole_cells(loaded: LoadedModel, tmp_path: Path) -> None:
    short = PromptSet("short", (Prompt(tuple(range(1, 18))),))
    with pytest.raises(InputError, match="request 0 of short is too short"):
        run(loaded, [SETS[0], short], cells=tmp_path, jobs=2)
    assert run(loaded, SETS[:1], cells=tmp_path).rows == run(loaded, SETS[:1]).rows
    # A process that was ended while it wrote leaves a file of another name.
    assert len(list(tmp_path.glob("*.json"))) == 4
