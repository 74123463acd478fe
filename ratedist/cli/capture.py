"""``ratedist capture``: run prompts through a model and keep its K and V."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ratedist.cli.options import (
    Device,
    Dtype,
    Force,
    Json,
    Model,
    PromptFile,
    Seed,
    messages,
    print_json,
)
from ratedist.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["capture", "parse_bytes", "parse_layers", "token_progress"]


def capture(
    out: Annotated[Path, typer.Option("--out", help="Folder of the capture; the same command resumes it.")],
    workload: Annotated[
        str | None,
        typer.Option(
            "--workload",
            help="Built-in workload: unrelated, system-prompt, documents, templates, documents-in-order, "
            "few-shot, conversation, edited, code, long-documents, tool-calls, near-duplicates, mixture, "
            "or one with your weights, as in mixture:unrelated=0.5,templates=0.5.",
        ),
    ] = None,
    prompts: PromptFile = None,
    model: Model = None,
    requests: Annotated[
        int | None, typer.Option("--requests", help="Number of requests; default 24, or the whole file.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", help="Tokens per request; default 384. Cuts the prompts of a file."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", help="Requests per batch and file; default 8, or what the limit admits."
        ),
    ] = None,
    chunk_tokens: Annotated[
        int, typer.Option("--chunk-tokens", help="Tokens of each request per forward pass.")
    ] = 128,
    layers: Annotated[
        str, typer.Option("--layers", help="Layers to keep: all, or as in 2,8 or 2-27 (first is 0).")
    ] = "all",
    dtype: Dtype = "auto",
    store_dtype: Annotated[
        str | None, typer.Option("--store-dtype", help="Store in another type than that of --dtype.")
    ] = None,
    decode: Annotated[
        int,
        typer.Option("--decode", help="Let the model continue every prompt greedily by so many tokens."),
    ] = 0,
    queries: Annotated[
        int, typer.Option("--queries", help="Keep the query vectors of so many last tokens per request too.")
    ] = 0,
    memory_limit: Annotated[
        str | None,
        typer.Option("--memory-limit", help="Memory for a batch beside the weights, as in 4GB or 512MiB."),
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
    force: Force = False,
) -> None:
    """Run prompts through a model and keep the K and V of its layers.

    Written batch by batch: after Ctrl-C or a crash the same command goes on where it stopped.

    Example:

        ratedist capture --workload documents --requests 24 --tokens 384 --out captures/documents

        ratedist capture --prompts mine.jsonl --model Qwen/Qwen2.5-0.5B-Instruct --out captures/mine
    """
    if (workload is None) == (prompts is None):
        both = "workload and prompts"
        raise InputError(both, (workload, prompts and str(prompts)), "name exactly one of them")
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    console = messages()
    begun = time.monotonic()
    with console.status("loading libraries"):
        from ratedist.validate.captures.capture import capture_cache
        from ratedist.validate.models import load_model
        from ratedist.validate.workloads import build_prompts, workload_named
        from ratedist.validate.workloads.prompts import read_prompts

        if workload is not None:
            workload_named(workload)  # refuse an unknown one before anything is loaded
    with console.status("reading the model's configuration and tokenizer"):
        loaded = load_model(model, dtype=dtype, device=device)
    if workload is not None:
        texts = build_prompts(
            workload,
            loaded.tokenizer,
            requests=24 if requests is None else requests,
            tokens=384 if tokens is None else tokens,
            seed=seed,
        )
    else:
        assert prompts is not None
        texts = read_prompts(
            prompts, loaded.tokenizer, max_tokens=loaded.max_tokens, requests=requests, tokens=tokens
        )
    with token_progress(console, texts.name) as progress:
        result = capture_cache(
            loaded,
            texts,
            out,
            layers=parse_layers(layers, loaded.layers),
            dtype=store_dtype,
            batch_size=batch_size,
            chunk_tokens=chunk_tokens,
            decode=decode,
            queries=queries,
            memory_limit=limit,
            force=force,
            progress=progress,
        )
    manifest = result.manifest
    summary = {
        "folder": str(out),
        "model": manifest.model,
        "workload": manifest.workload,
        "requests": manifest.requests,
        "tokens": sum(manifest.lengths),
        "generated": sum(manifest.generated),
        "queries": manifest.queries,
        "batch_size": manifest.origin["batch_size"],
        "domains": len(set(manifest.domains)),
        "layers": list(manifest.layers),
        "dtype": manifest.dtype,
        "bytes": sum(file.size for file in manifest.files),
        "files": [file.name for file in manifest.files],
        "seconds": round(time.monotonic() - begun, 2),
    }
    if json:
        print_json(summary)
        return
    typer.echo(
        f"{manifest.workload}: {manifest.requests} requests, {sum(manifest.lengths)} tokens, "
        f"{len(manifest.layers)} layers of {manifest.model} in {manifest.dtype}, "
        f"{sum(file.size for file in manifest.files) / 1e6:.0f} MB in {out} ({summary['seconds']} s)"
    )


def parse_layers(text: str, layers: int) -> list[int] | None:
    """Layer indices of ``all`` (None), ``2,8`` or ``2-27``, or a mixture; raises InputError."""
    if text.strip() == "all":
        return None
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError("layers", text, "write all, or indices and ranges as in 2,8 or 2-27")
        start, stop = int(first), int(last) if dash else int(first)
        if start > stop or stop >= layers:
            raise InputError("layers", text, f"must be ascending ranges within 0-{layers - 1}")
        chosen.update(range(start, stop + 1))
    return sorted(chosen)


def parse_bytes(text: str) -> int:
    """Bytes of ``4GB``, ``512MiB`` or a plain number (kB, MB … are powers of 1000); raises InputError."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kMGT]?)(i?)B?", text.strip(), re.ASCII | re.IGNORECASE)
    count = 0
    if match is not None:
        number, prefix, binary = match.groups()
        count = int(
            float(number) * (1024 if binary else 1000) ** " kMGT".upper().index(prefix.upper() or " ")
        )
    if count < 1:
        raise InputError("memory_limit", text, "write a size as in 4GB, 512MiB or 2.5GB")
    return count


@contextmanager
def token_progress(console: Console, label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of tokens done with speed and time left; yields what ``capture_cache`` calls as it goes on."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} tokens, {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(f"{label}: loading weights", total=None, speed="")
        first: tuple[float, int] | None = None

        def report(done: int, total: int) -> None:
            nonlocal first
            now = time.monotonic()
            if first is None:
                first = (now, done)
            elapsed = now - first[0]
            speed = f"{(done - first[1]) / elapsed:.0f} per second" if elapsed > 0 else ""
            bars.update(task, description=label, completed=done, total=total, speed=speed)

        yield report
