"""``ratedist validate --plan``: a plan on captured requests, predicted beside fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratedist.cli.options import claim_folder, messages, print_json
from ratedist.cli.validate import progress_bar
from ratedist.errors import InputError

if TYPE_CHECKING:
    from ratedist.records import Record

__all__ = ["RECORD", "validate_plan"]

RECORD = "plan-unseen.json"


def validate_plan(
    path: Path,
    captures: Sequence[Path],
    *,
    predictors: Sequence[str],
    backend: str,
    jobs: int,
    dask: str | None,
    seed: int,
    out: Path | None,
    force: bool,
    json: bool,
) -> None:
    """Compare, write and print; raises what ``read_plan`` and ``compare_plan`` raise, and InputError where
    there is no capture."""
    if not captures:
        raise InputError(
            "capture", None, "name at least one capture's folder; make one with ratedist capture"
        )
    from ratedist.records import write_record
    from ratedist.validate.captures.store import Capture
    from ratedist.validate.measure import runtime_for
    from ratedist.validate.planning.layer_law import PREDICTOR
    from ratedist.validate.planning.plan_file import read_plan
    from ratedist.validate.planning.unseen import compare_plan

    plan = read_plan(path)
    opened = [Capture.open(folder) for folder in captures]
    if out is not None:
        claim_folder(out, force=force)
    with progress_bar("validating the plan") as progress:
        record = compare_plan(
            opened,
            plan,
            predictors=tuple(predictors) or (PREDICTOR,),
            seed=seed,
            runtime=runtime_for(backend),
            progress=progress,
            jobs=jobs,
            dask=dask,
        )
    if out is not None:
        write_record(record, out / RECORD, force=True)
    if json:
        print_json(asdict(record))
        return
    _print(record)
    if out is not None:
        messages().print(f"record: {out / RECORD}", highlight=False, soft_wrap=True)


def _print(record: Record) -> None:
    """A table per workload and predictor: every planned layer, and all of them together."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 124, highlight=False)
    for total in record.summary:
        key = total["workload"], total["predictor"]
        table = Table(
            title=f"{total['workload']}: {total['predictor']}, and fusing {total['requests']} other requests",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for heading in ("layer", "setting", "τ", "predicted", "90 % band", "measured"):
            left = heading == "setting"
            table.add_column(heading, justify="left" if left else "right", no_wrap=left)
        for heading in ("K error\npredicted", "measured", "V error\npredicted", "measured"):
            table.add_column(heading, justify="right")
        for row in record.rows:
            if (row["workload"], row["predictor"]) == key:
                table.add_row(
                    str(row["layer"]),
                    _words(row),
                    f"{row['threshold']:g}",
                    *_compressions(row, "compression"),
                    *(
                        f"{row[f'{which}_error_{side}']:.3f}"
                        for which in ("k", "v")
                        for side in ("predicted", "measured")
                    ),
                )
        console.print(table)
        for name, what in (("compression", "planned layers"), ("cache_compression", "whole cache")):
            predicted, band, measured = _compressions(total, name)
            console.print(f"{what}: {predicted} predicted ({band}), {measured} measured")


def _words(row: Mapping[str, Any]) -> str:
    """The setting of a layer, without what is usual and what exact sharing does not depend on."""
    if not row["setting"].startswith("fusion"):
        return str(row["setting"])
    usual = {"variant": "leader", "scale": "own-norm", "mode": "bff"}
    return ", ".join(
        [row["setting"], row["criterion"], *(row[name] for name in usual if row[name] != usual[name])]
    )


def _compressions(entry: Mapping[str, Any], name: str) -> tuple[str, str, str]:
    low, high = entry[f"{name}_predicted_low"], entry[f"{name}_predicted_high"]
    band = "no band" if low is None or high is None else f"{low:.2f}–{high:.2f}"
    return f"{entry[f'{name}_predicted']:.2f}×", band, f"{entry[f'{name}_measured']:.2f}×"
