"""``ratedist generate``: a model generating with its own cache and on a fused one, side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratedist.cli.options import (
    Device,
    Force,
    Json,
    Model,
    Out,
    PromptFile,
    Seed,
    Workload,
    messages,
    print_json,
)
from ratedist.errors import InputError

if TYPE_CHECKING:
    from ratedist.records import Record

__all__ = ["generate"]

DEFAULTS = {
    "threshold": 0.9,
    "variant": "leader",
    "criterion": "keys",
    "scale": "own-norm",
    "block_size": 16,
}
"""Where there is no plan."""


def generate(
    workload: Workload = None,
    prompts: PromptFile = None,
    model: Model = None,
    requests: Annotated[
        int | None, typer.Option("--requests", help="Requests in the batch; default 8, or the whole file.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", help="Tokens per prompt; default 384. Cuts the prompts of a file."),
    ] = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Tokens to generate per request.")] = 64,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            help="What ratedist plan wrote for this model. Layers, thresholds and bits are the plan's, so "
            "leave out the options below down to --block-size.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", help="Blocks fuse where their similarity exceeds this.", show_default="0.9"
        ),
    ] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", help="leader or tree.", show_default="leader")
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            "--criterion",
            help="What is compared: keys, both and others that fuse knows.",
            show_default="keys",
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option("--scale", help="own-norm, projection or raw.", show_default="own-norm"),
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", help="Quantise the full blocks that fusion keeps: 8 or 4.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", help="Layers to fuse: all, 2-27 or 4,8,12. [default: all but the first and last two]"
        ),
    ] = None,
    block_size: Annotated[
        int | None, typer.Option("--block-size", help="Tokens per block.", show_default="16")
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="Compute and store in float32, float16, bfloat16 or auto. In half precision tokens drift "
            "apart without fusion too: the model's own attention and the paged one round differently.",
        ),
    ] = "float32",
    device: Device = "auto",
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Generate greedily with the unmodified model, on a paged cache without fusion, and on a fused one.

    Says where tokens first differ, what the caches hold (as they report it, and as counted from the tensors
    in memory), and how fast each decoded. Exits with 1 if in float32 the cache without fusion gave
    another token than the unmodified model, or if a cache holds other bytes than it reports.

    Example:

        ratedist generate --workload system-prompt --requests 8 --new-tokens 64 --threshold 0.9
    """
    if (workload is None) == (prompts is None):
        both = "workload and prompts"
        raise InputError(both, (workload, prompts and str(prompts)), "name exactly one of them")
    if out is not None and out.exists() and not force:
        raise InputError("out", str(out), "exists already; choose another path or pass --force")
    options: dict[str, Any] = {
        "threshold": threshold,
        "variant": variant,
        "criterion": criterion,
        "scale": scale,
        "bits": bits,
        "layers": layers,
        "block_size": block_size,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if plan is not None and options:
        name = next(iter(options))
        raise InputError(name, options[name], "is the plan's to say; leave it out, or --plan")
    console = messages()
    with console.status("loading libraries"):
        from ratedist.cli.capture import parse_layers
        from ratedist.records import write_record
        from ratedist.validate.generate import generate_both_ways
        from ratedist.validate.models import load_model
        from ratedist.validate.planning.plan_file import read_plan
        from ratedist.validate.workloads import build_prompts
        from ratedist.validate.workloads.prompts import read_prompts
    with console.status("reading the model's configuration and tokenizer"):
        loaded = load_model(model, dtype=dtype, device=device)
    if plan is not None:
        options["plan"] = read_plan(plan)
    else:
        options = DEFAULTS | options
    if layers is not None:
        options["layers"] = parse_layers(layers, loaded.layers) or list(range(loaded.layers))
    if workload is not None:
        texts = build_prompts(
            workload,
            loaded.tokenizer,
            requests=8 if requests is None else requests,
            tokens=384 if tokens is None else tokens,
            seed=seed,
        )
    else:
        assert prompts is not None
        texts = read_prompts(
            prompts, loaded.tokenizer, max_tokens=loaded.max_tokens, requests=requests, tokens=tokens
        )
    with console.status("loading weights") as status:
        record = generate_both_ways(
            loaded,
            texts,
            new_tokens=new_tokens,
            progress=lambda name: status.update(f"generating: {name}"),
            **options,
        )
    if out is not None:
        write_record(record, out, force=force)
    if json:
        print_json(asdict(record))
    else:
        _print(record)
    verdict = record.summary[0]
    if not verdict["bytes_as_reported"]:
        console.print("[bold red]a cache holds other bytes than it reports[/bold red]")
        raise typer.Exit(1)
    if not verdict["unfused_identical"] and loaded.dtype == "float32":
        console.print("[bold red]without fusion the tokens differ from the unmodified model's[/bold red]")
        raise typer.Exit(1)


def _print(record: Record) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    settings, verdict = record.provenance, record.summary[0]
    title = (
        f"{settings['model']} ({settings['dtype']}, {settings['device']}), {settings['workload']}: "
        f"{settings['requests']} requests, {settings['new_tokens']} new tokens, "
        + ("layer by layer as planned" if settings["plan"] else f"τ = {settings['threshold']:g}")
    )
    table = Table(title=title, box=SIMPLE_HEAD)
    for heading in (
        "cache",
        "same tokens",
        "first difference",
        "prefill",
        "fusing",
        "tokens/s",
        "MB",
        "MB held",
    ):
        table.add_column(heading, justify="left" if heading == "cache" else "right")
    for row in record.rows:
        differing = [first for first in row["first_difference"] if first is not None]
        table.add_row(
            row["name"],
            f"{row['same_tokens']} of {row['tokens']}",
            f"token {min(differing)}" if differing else "none",
            f"{row['prefill_seconds']:.2f} s",
            f"{row['fuse_seconds']:.2f} s",
            f"{row['tokens_per_second']:.1f}",
            f"{row['cache_bytes'] / 1e6:.2f}",
            f"{row['held_bytes'] / 1e6:.2f}",
        )
    console = Console(width=None if Console().is_terminal else 124, highlight=False)
    console.print(table)
    fusion = record.rows[-1]["fusion"]
    console.print(
        f"fused {fusion['candidates']} blocks of {len(fusion['layers'])} layers into {fusion['kept']} "
        f"({fusion['compression']:.2f} times; {fusion['exact']} were byte-equal): the whole cache takes "
        f"{verdict['cache_bytes_saved']:.1%} less. {verdict['requests_unchanged']} of "
        f"{settings['requests']} requests have the unmodified model's tokens."
    )
    for index, texts in enumerate(verdict["texts"]):
        for name, text in texts.items():
            console.print(f"request {index}, {name}: {text!r}", markup=False)
