"""``ratedist bench theory``: the promises that the theory makes about its own speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from ratedist.cli.options import Force, Json, Out, Seed

__all__ = ["theory"]

_HOMOGENEOUS_SECONDS = 0.1
_MARKED_SECONDS = 2.0
_MERGES_PER_SECOND = 1e7

_CURVE = {"requests": 65_536, "blocks": 512, "thresholds": 1000}
_MARKED = {"requests": 4096, "positions": 128, "thresholds": 100}
_RUNS = 2000


def theory(
    repeats: Annotated[int, typer.Option(help="Times each is measured; the least counts.")] = 5,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """Time the recursions and the Monte Carlo, each beside what is promised of it.

    1,000 thresholds for 65,536 requests of 512 blocks, tree on uniform directions (kept blocks, error,
    band, hard core): under 0.1 s. 100 thresholds, 4,096 requests of 128 marked positions: under 2 s.
    Monte Carlo: at least 10 million kept-block merges a second. All on one core: numerical libraries are
    kept to one thread where this command loads them first. Where other work runs beside it the
    processor's seconds say more than the clock's, by which the ratio is taken.

    Example: `ratedist bench theory --json`
    """
    import os
    import sys

    if "numpy" not in sys.modules:
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = "1"

    from ratedist.cli.bench import present
    from ratedist.errors import InputError

    if repeats < 1:
        raise InputError("repeats", repeats, "must be at least 1")
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "theory": lambda row: row["name"].removeprefix("theory/"),
        "s": lambda row: f"{row['seconds']:.4f}",
        "cpu s": lambda row: f"{row['cpu_seconds']:.4f}",
        "promised": lambda row: "" if row["ratio"] is None else f"{row['promised_seconds']:.4f}",
        "ratio": lambda row: "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        "merges/s": lambda row: (
            f"{row['merges_per_second'] / 1e6:,.0f} M" if "merges_per_second" in row else ""
        ),
    }
    present(_measure(repeats, seed), columns, out=out, force=force, json=json)


def _measure(repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    import numpy as np
    import scipy

    from ratedist.fusion import leader_marked, tree_marked
    from ratedist.fusion.units import batch_units
    from ratedist.fusion_curve import fusion_curve
    from ratedist.montecarlo.chains import simulate_leader, simulate_tree
    from ratedist.similarity import Spherical

    sphere = Spherical(64)
    grid = np.linspace(0.1, 0.8, _CURVE["thresholds"])
    for variant, promised in (("tree", _HOMOGENEOUS_SECONDS), ("leader", None)):

        def whole_curve(variant: str = variant) -> None:
            fusion_curve(
                sphere,
                requests=_CURVE["requests"],
                blocks=_CURVE["blocks"],
                thresholds=grid,
                variant=variant,
            )

        yield _row(f"curve/{variant}", *_least(whole_curve, repeats), promised)

    positions, thresholds = _MARKED["positions"], np.linspace(0.6, 0.95, _MARKED["thresholds"])
    apart = np.abs(np.subtract.outer(np.arange(positions), np.arange(positions)))
    # Nearness of positions as rotary keys have it, at the scale that real caches showed.
    mean = 0.55 + 0.2 * np.exp(-apart / 4)
    exceedance = scipy.special.ndtr((mean - thresholds[:, None, None]) / 0.07)
    lengths = [positions] * _MARKED["requests"]
    for name, recursion in (("tree", tree_marked), ("leader", leader_marked)):
        for matches in (False, True):

            def marked(recursion: Callable[..., Any] = recursion, matches: bool = matches) -> None:
                recursion(exceedance, lengths, thresholds=thresholds, matches=matches)

            label = f"marked/{name}" + ("/with-matches" if matches else "")
            yield _row(label, *_least(marked, repeats), _MARKED_SECONDS)

    units = batch_units(64, 32)
    for name, simulate in (("tree", simulate_tree), ("leader", simulate_leader)):
        for scores in (True, False):
            merges: list[int] = []

            def runs(
                simulate: Callable[..., Any] = simulate, scores: bool = scores, merges: list[int] = merges
            ) -> None:
                rng = np.random.default_rng(seed)
                merges.append(simulate(sphere, units, 0.4, runs=_RUNS, rng=rng, scores=scores).merges)

            seconds, cpu_seconds = _least(runs, repeats)
            label = f"monte-carlo/{name}" + ("/with-errors" if scores else "")
            row = _row(label, seconds, cpu_seconds, merges[0] / _MERGES_PER_SECOND)
            row["merges_per_second"] = merges[0] / seconds
            yield row


def _least(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least wall-clock and least processor seconds of ``repeats`` runs, after one that fills caches."""
    work()
    wall, processor = [], []
    for _ in range(repeats):
        start, start_processor = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    return min(wall), min(processor)


def _row(name: str, seconds: float, cpu_seconds: float, promised: float | None) -> dict[str, Any]:
    return {
        "name": f"theory/{name}",
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "promised_seconds": promised,
        "ratio": None if promised is None else seconds / promised,
    }
