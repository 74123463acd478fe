"""Options and output that the commands share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratedist.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "CaptureFolder",
    "Dask",
    "Device",
    "Dtype",
    "Force",
    "FusedLayers",
    "Jobs",
    "Json",
    "Model",
    "Out",
    "PromptFile",
    "Scale",
    "Seed",
    "Workload",
    "claim_folder",
    "messages",
    "print_json",
]

Json = Annotated[bool, typer.Option("--json", help="Print the results alone, as JSON, on standard output.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Where to write; nothing is overwritten without --force.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what --out names.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Hugging Face id, folder or GGUF file.", show_default="the embedded model"),
]
PromptFile = Annotated[
    Path | None,
    typer.Option("--prompts", help="JSONL file of your own: an object with `prompt`, optional `domain`."),
]
Workload = Annotated[
    str | None, typer.Option("--workload", help="A built-in workload, as in ratedist capture.")
]
CaptureFolder = Annotated[
    Path | None,
    typer.Option("--capture", help="Folder of a capture: its requests, cut into prefix and continuation."),
]
Dtype = Annotated[str, typer.Option("--dtype", help="Compute in auto, float32, float16 or bfloat16.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 …")]
FusedLayers = Annotated[
    str | None,
    typer.Option(
        "--layers", help="Layers to fuse: all, 2-27 or 4,8,12.", show_default="all but the first and last two"
    ),
]
Scale = Annotated[str, typer.Option("--scale", help="own-norm, projection or raw.")]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        help="Parts of the work at a time (layers, workloads, batches …), each in its own process; the "
        "results are the same.",
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask",
        help="Address of a Dask scheduler, as in tcp://10.0.0.1:8786, whose workers take the parts; the "
        "results are the same. If it is lost, --jobs finishes here.",
    ),
]


def messages() -> Console:
    """Console on standard error, for progress and notes; standard output is left to results."""
    from rich.console import Console

    return Console(stderr=True)


def print_json(data: Any) -> None:
    """Write strict JSON to standard output."""
    json.dump(data, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")


def claim_folder(folder: Path, *, force: bool) -> Path:
    """Create the output folder; raises InputError where it holds something and ``force`` is false."""
    if folder.exists() and not folder.is_dir():
        raise InputError("out", str(folder), "is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise InputError("out", str(folder), "is not empty; choose another folder or pass --force")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
