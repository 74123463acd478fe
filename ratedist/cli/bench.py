"""``ratedist bench``: what is measured on this machine, each time beside the floor that its work sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ratedist.cli.options import Force, Json, Out, Seed, messages, print_json
from ratedist.cli.variadic import ManyValuesCommand

__all__ = ["SCHEMA", "app", "present"]

SCHEMA = "ratedist/bench/1"

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Measure on this machine, each time beside the floor that the work itself sets.",
)


@app.callback()
def _bench() -> None:
    # With a callback, a single command keeps its name instead of becoming `bench` itself.
    pass


@app.command("fusion", cls=ManyValuesCommand)
def fusion(
    requests: Annotated[int, typer.Option(help="Requests of the batch.")] = 128,
    blocks: Annotated[int, typer.Option(help="Full blocks per request.")] = 64,
    thresholds: Annotated[
        list[float] | None, typer.Option(help="One or more thresholds.", show_default="0.6 0.75 0.9")
    ] = None,
    variants: Annotated[list[str] | None, typer.Option(help="leader, tree.", show_default="both")] = None,
    datasets: Annotated[
        list[str] | None, typer.Option(help="fusing, apart, dense.", show_default="fusing apart")
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, cpu or triton.")] = "auto",
    device: Annotated[str, typer.Option(help="Where the layer lies, such as cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(help="Runs of fusion and of the floor; the least counts.")] = 3,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Fuse a synthetic float32 layer (r = 3072) beside the similarity products that it needs.

    The floor is those products alone, as matrix products of contiguous blocks; the ratio is the time of
    the whole fusion over it. Extra memory is the peak of what torch allocates, as a share of the
    layer's keys and values. Fusion and floor run in turn, but other work on the machine falls on
    both unevenly: measure on a quiet one.

    Example: `ratedist bench fusion --requests 32 --thresholds 0.75 0.9`
    """
    from ratedist.kernels.bench.fusion import DEFAULT_DATASETS, MEASURED, THRESHOLDS, bench_fusion

    rows = bench_fusion(
        requests=requests,
        blocks=blocks,
        thresholds=tuple(thresholds or THRESHOLDS),
        variants=tuple(variants or MEASURED),
        datasets=tuple(datasets or DEFAULT_DATASETS),
        backend=backend,
        device=device,
        repeats=repeats,
        seed=seed,
    )
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "fusion": lambda row: row["name"].removeprefix("fusion/"),
        "seconds": lambda row: f"{row['seconds']:.3f}",
        "floor": lambda row: f"{row['floor_seconds']:.3f}",
        "ratio": lambda row: f"{row['ratio']:.2f}",
        "extra memory": lambda row: f"{row['extra_share']:.1%}",
        "compression": lambda row: f"{row['compression']:.2f}",
    }
    present(rows, columns, out=out, force=force, json=json)


def present(
    rows: Iterable[dict[str, Any]],
    columns: dict[str, Callable[[dict[str, Any]], str]],
    *,
    out: Path | None,
    force: bool,
    json: bool,
) -> None:
    """Measure (iterate over ``rows``), show a table or the record as JSON, and write it to ``out``.

    Raises InputError where ``out`` exists and ``force`` is false, before anything is measured.
    """
    from ratedist.errors import InputError
    from ratedist.records import Record, provenance, write_record

    if out is not None and out.exists() and not force:
        raise InputError("out", str(out), "exists already; choose another path or pass --force")
    console = messages()
    measured = []
    with console.status("measuring") as status:
        for row in rows:
            measured.append(row)
            status.update(f"measured {row['name']}")
    record = Record(SCHEMA, provenance(), measured)
    if out is not None:
        write_record(record, out, force=force)
    if json:
        print_json(
            {"schema": record.schema, "provenance": record.provenance, "rows": record.rows, "summary": []}
        )
        return

    from rich.console import Console
    from rich.table import Table

    table = Table()
    for index, heading in enumerate(columns):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for row in measured:
        table.add_row(*(cell(row) for cell in columns.values()))
    Console().print(table)
