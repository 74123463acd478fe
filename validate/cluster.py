"""Running tasks on a Dask cluster through joblib, and noticing when the cluster is gone.

joblib's Dask backend waits for ever for a task whose worker was killed or whose scheduler went away, so the
results come in from a thread, and this one looks after the cluster while none does.
"""

from __future__ import annotations

import platform
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ratedist.errors import InputError, RatedistError
from ratedist.validate.captures._batch_file import file_sha256

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["PATIENCE", "ClusterLostError", "on_cluster", "what_results_depend_on"]

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that a scheduler has to answer, and that a cluster may be without workers."""

_LOOK = 0.5
"""Seconds without a result after which the cluster is looked at."""

PACKAGES = ("ratedist", "numpy", "scipy", "torch", "joblib", "distributed")
"""What workers need in the same version."""


class ClusterLostError(RatedistError):
    """The scheduler, or all of its workers, went away while tasks were left."""


def on_cluster(
    address: str,
    function: Callable[..., T],
    tasks: Sequence[tuple[Any, ...]],
    *,
    files: Sequence[Path] = (),
    packages: Sequence[str] = (),
    backend: str = "cpu",
) -> Iterator[tuple[int, T]]:
    """(number of the task, its result) of every task, as they are finished.

    Args:
        address: of the Dask scheduler.
        function: of a module that workers can import too.
        tasks: its arguments.
        files: what the tasks read; every worker must see the same content at the same path.
        packages: what they need in the same version, beside ``PACKAGES``.
        backend: what fuses; must run alike on every worker.

    Raises:
        InputError: no scheduler or no worker answers, or a worker would not give the same results.
        ClusterLostError: the cluster went away; the results so far are whole.
        RatedistError: distributed is not installed, or a task ended its worker, as often as Dask tries it.
        Exception: what ``function`` raised.
    """
    client = _connect(address)
    try:
        _check_workers(client, address, [str(path) for path in files], (*PACKAGES, *packages), backend)
        results: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue()
        feeder = threading.Thread(
            target=_feed, args=(client, function, tasks, results), name="ratedist-dask", daemon=True
        )
        feeder.start()
        alone_since: float | None = None
        left = len(tasks)
        while left:
            try:
                number, result, error = results.get(timeout=_LOOK)
            except queue.Empty:
                alone_since = _look_after(client, address, alone_since)
                continue
            if error is not None and number < 0:  # joblib's or Dask's, not the task's
                _look_after(client, address, None)
                raise ClusterLostError(f"the Dask cluster at {address} was lost ({error})") from error
            if error is not None:
                raise error
            left -= 1
            yield number, result
    finally:
        client.close(timeout=2)


def what_results_depend_on(files: Sequence[str], packages: Sequence[str], backend: str) -> dict[str, str]:
    """Versions, the content of files (sha256, or "missing") and what fuses, of the process it runs in."""
    from ratedist.validate.measure import runtime_for

    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    found |= {package: metadata.version(package) for package in packages}
    for file in files:
        path = Path(file)
        found[file] = file_sha256(path) if path.is_file() else "missing"
    runtime = runtime_for(backend)
    found["backend"] = f"{runtime.backend} on {runtime.device_name}"
    return found


def _connect(address: str) -> Client:
    try:
        from distributed import Client
    except ImportError as error:
        raise RatedistError(
            "a Dask cluster needs distributed, which is not installed: pip install 'ratedist[cluster]'"
        ) from error
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False, name="ratedist")
    except (OSError, ValueError) as error:  # a timeout is an OSError; an address that is none, a ValueError
        raise InputError(
            "dask",
            address,
            f"no Dask scheduler answers there ({_first_line(error)}); start one with dask scheduler, or "
            "leave --dask out",
        ) from error
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except OSError as error:
        client.close()
        raise InputError(
            "dask", address, f"has no worker; start some with dask worker {address}, or leave --dask out"
        ) from error
    return client


def _check_workers(
    client: Client, address: str, files: list[str], packages: Sequence[str], backend: str
) -> None:
    mine = what_results_depend_on(files, packages, backend)
    try:
        theirs = client.run(what_results_depend_on, files, packages, backend)
    except Exception as error:  # whatever a foreign process says when it cannot run our function
        raise InputError(
            "dask",
            address,
            f"a worker cannot run ratedist ({_first_line(error)}); install this version there",
        ) from error
    for worker, found in theirs.items():
        for name, value in mine.items():
            if found[name] != value and name in files:
                missing = "does not see" if found[name] == "missing" else "sees another content of"
                raise InputError(
                    "dask", address, f"worker {worker} {missing} {name}; put it where all machines see it"
                )
            if found[name] != value:
                raise InputError(
                    "dask",
                    address,
                    f"worker {worker} has {name} {found[name]}, this process {value}; the results would not "
                    "be the same",
                )


def _feed(
    client: Client,
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    results: queue.Queue[tuple[int, Any, BaseException | None]],
) -> None:
    from joblib import Parallel, delayed, parallel_config
    from joblib.parallel import get_active_backend

    try:
        with parallel_config(backend="dask", client=client):
            backend, _ = get_active_backend()
            cores = backend.effective_n_jobs
            # joblib would run the tasks here, in this thread, if the cluster has a single core.
            backend.effective_n_jobs = lambda jobs: max(2, cores(jobs))
            for result in Parallel(n_jobs=-1, batch_size=1, return_as="generator_unordered")(
                delayed(_numbered)(number, function, task) for number, task in enumerate(tasks)
            ):
                results.put(result)
    except BaseException as error:
        results.put((-1, None, error))


def _numbered(
    number: int, function: Callable[..., T], task: tuple[Any, ...]
) -> tuple[int, T | None, Exception | None]:
    """Runs on a worker; what the task raises comes back as a value, apart from what Dask itself raises."""
    import torch

    torch.set_num_threads(1)  # tasks run beside each other, one to a core
    try:
        return number, function(*task), None
    except Exception as error:
        return number, None, error


def _look_after(client: Client, address: str, alone_since: float | None) -> float | None:
    """Since when the cluster has no worker, None where it has some; raises where it is gone."""
    if client.status != "running":
        raise ClusterLostError(f"the Dask cluster at {address} was lost (its scheduler is gone)")
    # A task's own exception comes back as a value: an error here is Dask's, of a task that ends its workers.
    if any(state.status == "error" for state in list(client.futures.values())):
        raise RatedistError(
            f"a task ended its worker on the Dask cluster at {address}, as often as Dask tries it (out of "
            "memory?). Give the workers more memory, or leave --dask out; finished cells are kept"
        )
    try:
        workers = len(client.nthreads())
    except Exception as error:  # the connection may break at any point of the question
        raise ClusterLostError(f"the Dask cluster at {address} was lost ({_first_line(error)})") from error
    if workers:
        return None
    now = time.monotonic()
    alone_since = now if alone_since is None else alone_since
    if now - alone_since > PATIENCE:
        raise ClusterLostError(f"the Dask cluster at {address} was lost (its workers are gone)")
    return alone_since


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
