"""``ratedist serve``: what saved blocks buy, measured by serving a request trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ratedist.cli.options import Force, Json, Model, Out, Scale, Seed, messages, print_json

__all__ = ["serve"]


def serve(
    model: Model = None,
    workload: Annotated[str, typer.Option(help="A built-in workload.")] = "system-prompt",
    trace: Annotated[
        Path | None,
        typer.Option(help="JSONL with arrival, prompt, new_tokens in the place of a workload."),
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests that are served.")] = 24,
    profile: Annotated[int, typer.Option(help="Further requests that calibrate the capacity model.")] = 8,
    tokens: Annotated[int, typer.Option(help="Length of the prompts.")] = 384,
    new_tokens: Annotated[int, typer.Option(help="Tokens that each request generates.")] = 64,
    rate: Annotated[
        float | None, typer.Option(help="Requests per second (Poisson).", show_default="all at once")
    ] = None,
    pool: Annotated[
        list[float] | None,
        typer.Option(help="Pool size as a share of what the trace takes unfused.", show_default="0.33 0.5 1"),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Blocks fuse above this score.")] = 0.9,
    criterion: Annotated[str, typer.Option(help="Score of two blocks, such as keys or both.")] = "keys",
    scale: Scale = "own-norm",
    max_batch: Annotated[int, typer.Option(help="Requests that run at a time.")] = 32,
    step_tokens: Annotated[int, typer.Option(help="Tokens per forward pass.")] = 256,
    repeats: Annotated[int, typer.Option(help="Rounds over all cells.")] = 1,
    transformers: Annotated[
        bool, typer.Option(help="Serve with transformers' continuous batching too, which cannot fuse.")
    ] = False,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Serve a trace from a pool that is too small for it, with and without fusion.

    Continuous batching over a fixed pool of blocks on the real model: admission, prefill in chunks, greedy
    decoding, preemption. Exact prefix sharing is on in both modes. Fusion frees memory and no time, so it
    pays where more requests run at a time. Beside every run stands what the capacity model predicts from a
    profile of other requests.

    Example: `ratedist serve --workload templates --requests 12 --pool 0.33 --threshold 0.9 --out serve.json`
    """
    from ratedist.errors import InputError
    from ratedist.records import write_record
    from ratedist.validate.compare import ALONE_AT_EACH_END
    from ratedist.validate.models import load_model
    from ratedist.validate.serving.comparison import compare_serving
    from ratedist.validate.serving.trace import make_trace, read_trace
    from ratedist.validate.workloads import build_prompts

    if out is not None and out.exists() and not force:
        raise InputError("out", str(out), "exists already; choose another path or pass --force")
    for argument, value, least in (("requests", requests, 1), ("profile", profile, 2)):
        if value < least:
            raise InputError(argument, value, f"must be at least {least}")
    loaded = load_model(model)
    fused_layers = range(ALONE_AT_EACH_END, loaded.layers - ALONE_AT_EACH_END)
    if not fused_layers:
        raise InputError("model", loaded.name, f"has only {loaded.layers} layers: none is left to fuse")
    if trace is None:
        prompts = build_prompts(
            workload, loaded.tokenizer, requests=requests + profile, tokens=tokens, seed=seed
        )
        made = make_trace(prompts, new_tokens=new_tokens, rate=rate, seed=seed)
        calibration, served = made[:profile], made[profile:]
        start = served[0].arrival
        served = [type(one)(one.arrival - start, one.prompt, one.new_tokens, one.domain) for one in served]
    else:
        workload = trace.name
        read = read_trace(trace, loaded.tokenizer)
        if len(read) <= profile:
            raise InputError("trace", str(trace), f"needs more than the {profile} requests of --profile")
        calibration, served = read[:profile], read[profile:]
    console = messages()
    with console.status("loading the model") as status:
        record = compare_serving(
            loaded,
            workload,
            calibration,
            served,
            fused_layers=fused_layers,
            threshold=threshold,
            criterion=criterion,
            scale=scale,
            pools=tuple(pool or (1 / 3, 0.5, 1.0)),
            max_batch=max_batch,
            step_tokens=step_tokens,
            repeats=repeats,
            transformers=transformers,
            seed=seed,
            progress=lambda what, done, total: status.update(f"{what}: {done} of {total} tokens"),
        )
    if out is not None:
        write_record(record, out, force=force)
    if json:
        print_json({"rows": record.rows, "summary": record.summary})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{loaded.name}, {workload}: {len(served)} requests on {loaded.device.type}")
    for column in (
        "pool",
        "mode",
        "tokens/s",
        "predicted",
        "running",
        "first token",
        "preempted",
        "same tokens",
    ):
        table.add_column(column, justify="left" if column in ("pool", "mode") else "right")
    for row in record.rows:
        share = row["pool_share"]
        table.add_row(
            "no limit" if share is None else f"{share:.2f} ({row['pool_blocks']})",
            row["mode"],
            f"{row['tokens_per_second']:.1f}",
            _number(row["tokens_per_second_predicted"], ".1f"),
            _number(row["mean_running"], ".1f"),
            f"{row['time_to_first_token_mean']:.1f} s",
            _number(row["preemptions"], "d"),
            f"{row['same_tokens']:.0%}",
        )
    output = Console(width=110)
    output.print(table)
    for entry in record.summary:
        gain = entry["gain"]
        verdict = "fusion pays" if gain > 1.02 else "fusion does not pay" if gain < 0.98 else "no difference"
        output.print(
            f"pool {entry['pool_share']:.2f}: {gain:.2f} times the tokens per second "
            f"(predicted {entry['gain_predicted']:.2f}): {verdict}; with no limit on the pool it would be "
            f"{entry['ceiling']:.2f} without fusion"
        )
    if out is not None:
        console.print(f"wrote {out}")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
