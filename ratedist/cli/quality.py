"""``ratedist quality``: what compressed caches do to a model's predictions, fusion beside its rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratedist.cli.options import (
    Dask,
    Device,
    Dtype,
    Force,
    FusedLayers,
    Jobs,
    Json,
    Model,
    Out,
    Scale,
    Seed,
    messages,
    print_json,
)
from ratedist.cli.validate import load_figures, progress_bar
from ratedist.cli.variadic import split_numbers
from ratedist.errors import InputError

if TYPE_CHECKING:
    from ratedist.records import Record
    from ratedist.validate.models import LoadedModel
    from ratedist.validate.workloads.prompts import PromptSet

__all__ = ["quality"]

RECORD = "quality.json"
CELLS = "cells"
THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def quality(
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload", help="Built-in workloads by name, as in ratedist capture; one or several."
        ),
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            "--prompts", help="JSONL files of your own: an object with `prompt`, optional `domain`."
        ),
    ] = None,
    capture: Annotated[
        list[Path] | None,
        typer.Option(
            "--capture", help="Folders of captures: their requests, cut into prefix and continuation."
        ),
    ] = None,
    model: Model = None,
    requests: Annotated[
        int | None, typer.Option("--requests", help="Requests per workload. [default: 16, or the whole file]")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", help="Tokens of each prefix, whose cache is compressed.")
    ] = 384,
    continuation: Annotated[
        int, typer.Option("--continue", help="Tokens fed after each prefix, over which outputs are compared.")
    ] = 32,
    threshold: Annotated[
        list[str] | None,
        typer.Option("--threshold", help="Thresholds of fusion. [default: 0.4 to 0.9 by 0.1, and 0.95]"),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", help="leader, tree, or both. [default: leader]")
    ] = None,
    criterion: Annotated[
        list[str] | None,
        typer.Option(
            "--criterion", help="Match by keys, or by both keys and values. [default: keys and both]"
        ),
    ] = None,
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            "--baselines",
            help="What stands beside fusion: nothing, exact, int8, kivi1 to kivi8 (kivi4r64 leaves the last "
            "64 tokens alone), evict0.5, exact or fusion with bits (fusion+kivi4). [default: twelve of them]",
        ),
    ] = None,
    layers: FusedLayers = None,
    scale: Scale = "own-norm",
    dtype: Dtype = "auto",
    store_dtype: Annotated[
        str | None,
        typer.Option(
            "--store-dtype", help="Type of the original cache. [default: the model's 16 bits, or bfloat16]"
        ),
    ] = None,
    device: Device = "auto",
    jobs: Jobs = 1,
    dask: Dask = None,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compress the cache of real requests, by fusion and by its rivals, and compare what the model predicts.

    Every request is a prefix and a continuation of its own text; the continuation runs over the original
    cache and over every compressed one. Compression counts bytes of the whole cache. With `--out` every
    finished cell is kept: the same command goes on where it stopped, and the record (quality.json) and a
    picture follow. In bfloat16 rounding alone is a KL of about 0.002; `--dtype float32` is slower and free
    of it. `--jobs` and `--dask` take workloads; every process loads the model.

    Example: `ratedist quality --workload templates unrelated --threshold 0.7 0.8 0.9 --variant leader tree
    --baselines exact kivi4 fusion+kivi4 --out out/quality`
    """
    if not (workload or prompts or capture):
        raise InputError(
            "workload", None, "name at least one workload, prompt file (--prompts) or capture (--capture)"
        )
    from ratedist.cli.capture import parse_layers
    from ratedist.validate.quality.methods import BASELINES, fusion_methods

    names = [*(baselines or BASELINES)]
    if "fusion" not in names:
        names.append("fusion")
    methods = fusion_methods(
        names,
        split_numbers("threshold", threshold) if threshold else list(THRESHOLDS),
        variant or ["leader"],
        criterion or ["keys", "both"],
        scale,
    )
    if out is not None:
        load_figures()
        _claim(out, force=force)

    from ratedist.validate.models import load_model
    from ratedist.validate.quality.run import QualityPlan, run_quality

    loaded = load_model(model, dtype=dtype, device=device)
    sets = _prompt_sets(
        loaded, workload or [], prompts or [], capture or [], requests, tokens, continuation, seed
    )
    chosen = None if layers is None else parse_layers(layers, loaded.layers)
    if layers is not None and chosen is None:
        chosen = list(range(loaded.layers))
    plan = QualityPlan(
        methods=tuple(methods),
        continuation=continuation,
        layers=None if chosen is None else tuple(chosen),
        store_dtype=store_dtype,
        seed=seed,
    )
    with progress_bar("measuring") as progress:
        record = run_quality(
            loaded,
            sets,
            plan,
            cells=None if out is None else out / CELLS,
            jobs=jobs,
            dask=dask,
            progress=progress,
        )
    if out is not None:
        _write(record, out)
    if json:
        print_json(asdict(record))
        return
    _print(record)
    if out is not None:
        messages().print(f"record and pictures: {out}", highlight=False, soft_wrap=True)


def _claim(folder: Path, *, force: bool) -> None:
    """Take a new folder, or one with the cells of an unfinished run; another needs ``--force``."""
    if folder.exists() and not folder.is_dir():
        raise InputError("out", str(folder), "is a file; name a folder")
    if (folder / RECORD).exists() and not force:
        raise InputError(
            "out",
            str(folder),
            f"holds a finished {RECORD}; pass --force to write it anew (finished cells are used again), or "
            "choose another folder",
        )
    if folder.is_dir() and not force and any(entry.name != CELLS for entry in folder.iterdir()):
        raise InputError("out", str(folder), "holds other files; choose another folder or pass --force")
    (folder / CELLS).mkdir(parents=True, exist_ok=True)


def _prompt_sets(
    loaded: LoadedModel,
    workloads: Sequence[str],
    files: Sequence[Path],
    captures: Sequence[Path],
    requests: int | None,
    tokens: int,
    continuation: int,
    seed: int,
) -> list[PromptSet]:
    from ratedist.validate.captures.requests import captured_requests
    from ratedist.validate.workloads import build_prompts
    from ratedist.validate.workloads.prompts import read_prompts

    if tokens < 1:
        raise InputError("tokens", tokens, "must be at least 1")
    if continuation < 1:
        raise InputError("continue", continuation, "must be at least 1 token")
    whole = tokens + continuation + 1
    count = 16 if requests is None else requests
    sets = [
        build_prompts(name, loaded.tokenizer, requests=count, tokens=whole, seed=seed) for name in workloads
    ]
    sets += [
        read_prompts(file, loaded.tokenizer, max_tokens=loaded.max_tokens, requests=requests, tokens=whole)
        for file in files
    ]
    sets += [captured_requests(folder, loaded, requests=requests) for folder in captures]
    return sets


def _print(record: Record) -> None:
    """The answers in words, then all cells by workload from the least to the most compressed."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 124)
    for entry in record.summary:
        if entry["kind"] == "verdict":
            console.print(entry["text"], highlight=False)
    for workload in dict.fromkeys(row["workload"] for row in record.rows):
        table = Table(title=workload, box=SIMPLE_HEAD, padding=0)
        for heading in ("method", "variant", "criterion"):
            table.add_column(heading)
        for heading in ("τ", "whole\ncache", "K\nerror", "V\nerror", "attention\nerror", "KL", "KL\n99 %"):
            table.add_column(heading, justify="right")
        for heading in ("same\ntop 1", "Δ log ppl\n± s.e."):
            table.add_column(heading, justify="right")
        here = [row for row in record.rows if row["workload"] == workload]
        for row in sorted(here, key=lambda row: row["compression"]):
            table.add_row(*_cells(row))
        console.print(table)
    links = [e for e in record.summary if e["kind"] == "link" and e["workload"] == "all"]
    for entry in links:
        if entry.get("chosen") and entry["within"] is not None and entry["protocol"] != "itself":
            console.print(
                f"KL by a law {_OF[entry['law']]} from the errors of {', '.join(entry['errors'])}, on "
                f"held-out {entry['protocol']}: "
                f"within a factor of {entry['factor']:g} in {entry['within']:.0%} of {entry['cells']} cells",
                highlight=False,
            )


_OF = {"own": "of each workload", "pooled": "pooled over workloads"}


def _cells(row: Mapping[str, Any]) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    error = number(row["delta_log_ppl_se"], ".4f")
    return [
        row["method"],
        row["variant"] or "–",
        row["criterion"] or "–",
        number(row["threshold"], "g"),
        f"{row['compression']:.2f}×",
        *(number(row[f"{name}_error"], ".3f") for name in ("k", "v", "attention")),
        f"{row['kl_mean']:.4f}",
        f"{row['kl_p99']:.3f}",
        f"{row['same_top1']:.1%}",
        f"{row['delta_log_ppl']:+.4f} ± {error}",
    ]


def _write(record: Record, folder: Path) -> None:
    from ratedist.figures.quality import save_quality_figure
    from ratedist.records import write_record

    write_record(record, folder / RECORD, force=True)
    save_quality_figure(record, folder)
