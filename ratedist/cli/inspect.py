"""``ratedist inspect``: why one captured layer fuses as it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratedist.cli.options import Force, Json, Out, Seed, messages, print_json
from ratedist.errors import InputError

if TYPE_CHECKING:
    from ratedist.records import Record

__all__ = ["inspect"]


def inspect(
    capture: Annotated[Path, typer.Option("--capture", help="Folder of the capture.")],
    layer: Annotated[
        int | None, typer.Option("--layer", help="Layer of the model. [default: the middle one captured]")
    ] = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Blocks fuse above this score.")] = 0.8,
    criterion: Annotated[str, typer.Option("--criterion", help="keys, or both.")] = "keys",
    variant: Annotated[str, typer.Option("--variant", help="leader or tree.")] = "leader",
    requests: Annotated[
        int | None, typer.Option("--requests", help="The first so many requests. [default: 40, or all]")
    ] = None,
    worst: Annotated[int, typer.Option("--worst", help="Merges to list.")] = 8,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The capture's model, to read texts. [default: the embedded one]"),
    ] = None,
    texts: Annotated[
        bool, typer.Option("--texts/--no-texts", help="Read texts with the model's tokenizer.")
    ] = True,
    effect: Annotated[
        bool, typer.Option("--effect", help="Also run the model over each listed merge, and compare.")
    ] = False,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Count the matches of every block beside four laws, and list the worst merges with their texts.

    Also whether the matches are a Poisson process, and how similarity falls with the distance of positions.
    `--out` names the record, from which `ratedist report` draws.

    Example: `ratedist inspect --capture captures/templates --layer 14 --threshold 0.8 --out inspect.json`
    """
    if out is not None and out.exists() and not force:
        raise InputError("out", str(out), "exists already; choose another path or pass --force")
    if effect and not texts:
        raise InputError("effect", effect, "runs the model; leave --no-texts out")
    from ratedist.records import write_record
    from ratedist.validate.inspection.run import inspect_capture
    from ratedist.validate.models import load_model

    with messages().status("opening the capture") as status:
        record = inspect_capture(
            capture,
            layer=layer,
            threshold=threshold,
            criterion=criterion,
            variant=variant,
            requests=requests,
            worst=worst,
            loaded=load_model(model, dtype="float32" if effect else "auto") if texts else None,
            effect=effect,
            seed=seed,
            progress=status.update,
        )
    if out is not None:
        write_record(record, out, force=force)
        messages().print(f"wrote {out}")
    if json:
        print_json({"rows": record.rows, "summary": record.summary, "provenance": record.provenance})
    else:
        _print(record)


def _print(record: Record) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 124)
    there = record.summary[0]
    console.print(
        f"{there['exceedances']:,} of {there['pairs']:,} pairs exceed {there['threshold']:g}, "
        f"{there['byte_equal']:,} of them byte-equal; {there['per_block']:.3g} per block, none in "
        f"{there['blocks_without']:.0%} of blocks",
        highlight=False,
    )
    for check in there["checks"]:
        console.print(f"against {check['null']}: {check['verdict']}", highlight=False)
    table = Table(title="blocks by the number of their matches", box=SIMPLE_HEAD, padding=0)
    counts = [row for row in record.rows if row["kind"] == "counts"]
    laws = [entry["law"] for entry in record.summary if entry["kind"] == "law"]
    for heading in ("matches", "blocks", *laws):
        table.add_column(heading, justify="right")
    for row in counts:
        bounds = str(row["low"]) if row["low"] == row["high"] else f"{row['low']} to {row['high']}"
        table.add_row(bounds, str(row["blocks"]), *(f"{row[law]:.1f}" for law in laws))
    console.print(table)
    table = Table(title="worst merges", box=SIMPLE_HEAD, padding=0)
    for heading in ("score", "K error", "V error", "KL", "times"):
        table.add_column(heading, justify="right")
    table.add_column("text")
    table.add_column("read as")
    for row in record.rows:
        if row["kind"] == "merge":
            table.add_row(*_cells(row))
    console.print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    effect = row.get("effect")
    mine, theirs = (
        row.get(field) or f"request {row[f'{other}request']}, block {row[f'{other}block']}"
        for field, other in (("text", ""), ("with_text", "with_"))
    )
    return [
        f"{row['score']:.3f}",
        f"{row['k_error']:.3f}",
        f"{row['v_error']:.3f}",
        f"{effect['kl_mean']:.4f}" if effect else "–",
        str(row["times"]),
        repr(mine),
        repr(theirs),
    ]
