"""Running a function over many tasks: here, in processes of their own, or on a Dask cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any, TypeVar

from ratedist.errors import InputError, RatedistError

__all__ = ["absolute", "check_jobs", "run_tasks"]

T = TypeVar("T")

_log = logging.getLogger("ratedist")


def run_tasks(
    function: Callable[..., T],
    tasks: Sequence[tuple[Any, ...]],
    *,
    jobs: int = 1,
    dask: str | None = None,
    files: Sequence[Path] = (),
    packages: Sequence[str] = (),
    backend: str = "cpu",
) -> Iterator[T]:
    """``function(*task)`` of every task, in the order of the tasks.

    Args:
        function: of a module that workers can import too.
        tasks: its arguments; what they hold is pickled where the work is done elsewhere.
        jobs: tasks at a time on this machine, each in a process of its own where more than one.
        dask: address of a Dask scheduler, as in ``tcp://10.0.0.1:8786``, whose workers do the work instead.
            Where they are lost on the way, a warning is logged and what is left is done here.
        files: what the tasks read; every worker must see the same content at the same path.
        packages: what every worker needs in the same version, beside ``ratedist.validate.cluster.PACKAGES``.
        backend: what fuses, of ``ratedist.kernels.fusion.fuse.BACKENDS``; must run alike on every worker.

    Raises:
        InputError: ``jobs`` below 1; no scheduler or no worker answers at ``dask``, or a worker would not
            give the same results.
        RatedistError: a task ended its process, or on a cluster several of them.
    """
    check_jobs(jobs)
    if dask is None:
        yield from _here(function, tasks, jobs)
        return
    from ratedist.validate.cluster import ClusterLostError, on_cluster

    done: dict[int, T] = {}
    following = 0
    try:
        for number, result in on_cluster(
            dask, function, tasks, files=files, packages=packages, backend=backend
        ):
            done[number] = result
            while following in done:
                yield done.pop(following)
                following += 1
    except ClusterLostError as lost:
        left = [number for number in range(following, len(tasks)) if number not in done]
        _log.warning("%s; the %d of %d tasks left are done on this machine", lost, len(left), len(tasks))
        results = _here(function, [tasks[number] for number in left], jobs)
        for number in range(following, len(tasks)):
            yield done.pop(number) if number in done else next(results)


def check_jobs(jobs: int) -> None:
    """Raise InputError for fewer than one."""
    if jobs < 1:
        raise InputError("jobs", jobs, "must be at least 1")


def absolute(path: Path, dask: str | None) -> Path:
    """The path as workers need it, who run in other folders; unchanged where there is no cluster."""
    return path if dask is None else path.resolve()


def _here(function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[T]:
    if jobs == 1:
        yield from starmap(function, tasks)
        return
    try:
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import TerminatedWorkerError
    except ImportError as error:
        raise RatedistError(
            "several --jobs need joblib, which is not installed: pip install 'ratedist[models]'"
        ) from error
    try:
        yield from Parallel(n_jobs=min(jobs, max(1, len(tasks))), return_as="generator")(
            delayed(function)(*task) for task in tasks
        )
    except TerminatedWorkerError as error:
        raise RatedistError(
            "a task ended its process (out of memory?); pass a smaller --jobs. Finished cells are kept"
        ) from error
