"""``ratedist bench search``: fusion by hashing, its time and its recall beside the thinning curve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Annotated, Any

import typer

from ratedist.cli.options import Force, Json, Out, Seed

__all__ = ["search"]

_EDGES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
_ABOVE = 0.9


def search(
    blocks: Annotated[
        int, typer.Option(help="Blocks of the larger pool; the smaller has a tenth.")
    ] = 100_000,
    dim: Annotated[int, typer.Option(help="Scalars of a block's keys, a multiple of 16.")] = 256,
    recall: Annotated[float, typer.Option(help="Chance to find a pair that is asked for …")] = 0.9,
    similarity: Annotated[float, typer.Option(help="… at this similarity.")] = 0.9,
    draws: Annotated[int, typer.Option(help="Draws of the hyperplanes; the least time counts.")] = 1,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """Fuse pools with planted near-duplicates by hashing, without and with a mean that all blocks share.

    A tenth of the blocks have a near-duplicate, of similarities even over 0.7 to 1 (with the mean taken
    off). Per bin of similarity the share that was found stands beside the thinning curve
    1 − (1 − (1 − arccos(s)/π)^bits)^tables, averaged over the pairs of the bin; "off" is the largest
    difference. The floor is the products with the hyperplanes alone. The exponent is that of time between the
    two pools. A million blocks of 256 scalars take 2 GB of memory.

    Example: `ratedist bench search --blocks 1000000 --draws 10`
    """
    from ratedist.cli.bench import present
    from ratedist.kernels.bench.search import bench_search

    rows = bench_search(blocks=blocks, dim=dim, recall=recall, similarity=similarity, draws=draws, seed=seed)
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "search": lambda row: row["name"].removeprefix("search/"),
        "tables": lambda row: f"{row['tables']}×{row['bits']}",
        "seconds": lambda row: f"{row['seconds']:.2f}",
        "floor": lambda row: f"{row['floor_seconds']:.2f}",
        "compared": lambda row: f"{row['compared']:,.0f}",
        "recall": lambda row: f"{row['recall_above']:.3f}",
        "off": lambda row: f"{row['largest_difference']:.3f}",
        "exp.": lambda row: "" if row["exponent"] is None else f"{row['exponent']:.2f}",
    }
    present(_beside_the_curve(rows), columns, out=out, force=force, json=json)


def _beside_the_curve(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows with their pairs put into bins of similarity, each beside the thinning curve."""
    import numpy as np

    from ratedist.process import HashRecall

    for row in rows:
        scores = row.pop("similarity").double().numpy()
        found = row.pop("found").double().numpy()
        curve = np.asarray(HashRecall(row["tables"], row["bits"])(scores))
        bins = []
        for low, high in pairwise(_EDGES):
            inside = (scores >= low) & (scores < high)
            if inside.any():
                share, expected = float(found[inside].mean()), float(curve[inside].mean())
                bins.append(
                    {
                        "low": low,
                        "high": high,
                        "pairs": int(inside.sum()),
                        "recall": share,
                        "curve": expected,
                        "difference": share - expected,
                    }
                )
        row["bins"] = bins
        row["recall_above"] = float(found[scores >= _ABOVE].mean())
        row["curve_above"] = float(curve[scores >= _ABOVE].mean())
        row["largest_difference"] = max(abs(entry["difference"]) for entry in bins)
        yield row
