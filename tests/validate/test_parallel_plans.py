"""The experiment on plans on a Dask cluster: the cells of one process, kept as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import distributed
import pytest
from tiny_models import save_llama

from ratedist.errors import InputError
from ratedist.records import Record
from ratedist.validate import cluster as cluster_module
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.planning.promise import PromiseSettings
from ratedist.validate.planning.promise_run import run_promise
from ratedist.validate.planning.trials import default_settings

SETTINGS = PromiseSettings(
    max_kl=0.05,
    goals=(),
    requests=2,
    tokens=64,
    continuation=4,
    settings=tuple(default_settings(thresholds=(0.5,), criteria=("keys",), bits=(16,))),
    drift=("edited",),
)
WORKLOADS = ("templates", "documents")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save_llama(tmp_path_factory.mktemp("model"), 5), device="cpu")


def run(loaded: LoadedModel, folder: Path, **options: Any) -> Record:
    record = run_promise(loaded, WORKLOADS, (0,), SETTINGS, folder, command=["test"], **options)
    assert record is not None
    return record


def without_seconds(value: Any) -> Any:
    """The same JSON data without what a clock said."""
    if isinstance(value, dict):
        return {name: without_seconds(held) for name, held in value.items() if "seconds" not in name}
    return [without_seconds(held) for held in value] if isinstance(value, list) else value


def test_a_cluster_gives_the_cells_of_this_process(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks at a time in one process, each with a copy of what they share here."""
    here = run(loaded, tmp_path / "here")
    steps: list[float] = []
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp://", dashboard_address=":0"
    ) as cluster:
        there = run(
            loaded,
            tmp_path / "there",
            dask=cluster.scheduler_address,
            progress=lambda share, _: steps.append(share),
        )
    assert without_seconds(there.rows) == without_seconds(here.rows)
    assert steps == [0.5, 1.0]
    names = [sorted(file.name for file in (tmp_path / f / "cells").iterdir()) for f in ("here", "there")]
    assert names[0] == names[1]
    # What is finished needs no cluster, what is not says that none is there.
    monkeypatch.setattr(cluster_module, "PATIENCE", 0.5)
    nowhere = "tcp://127.0.0.1:9"
    assert run(loaded, tmp_path / "there", dask=nowhere).rows == there.rows
    (tmp_path / "there" / "cells" / names[0][0]).unlink()
    with pytest.raises(InputError, match="no Dask scheduler answers there"):
        run(loaded, tmp_path / "there", dask=nowhere)
    with pytest.raises(InputError, match="jobs = 0: must be at least 1"):
        run(loaded, tmp_path / "there", jobs=0)
