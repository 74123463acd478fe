"""``ratedist bench matching | attention | decode | gpu``: kernels and a whole model beside their floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from ratedist.cli.bench import present
from ratedist.cli.options import Force, Json, Out, Seed

__all__ = ["attention", "decode", "gpu", "matching"]

Device = Annotated[str, typer.Option(help="Where, such as cpu or cuda.")]
Backend = Annotated[str, typer.Option(help="auto, cpu or triton.")]


def matching(
    blocks: Annotated[
        list[int] | None, typer.Option(help="Rows, and as many columns.", show_default="256 1024")
    ] = None,
    criteria: Annotated[
        list[str] | None, typer.Option(help="keys, both, mean, distance.", show_default="all")
    ] = None,
    dtypes: Annotated[
        list[str] | None, typer.Option(help="Of the pool.", show_default="float32 bfloat16")
    ] = None,
    backend: Backend = "auto",
    device: Device = "cpu",
    repeats: Annotated[int, typer.Option(help="Runs; the least counts.")] = 3,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Find the best match of every block (r = 3072) beside the matrix products alone.

    Example: `ratedist bench matching --blocks 512 --criteria keys both`
    """
    from ratedist.kernels.bench.matching import bench_matching
    from ratedist.kernels.fusion.scoring import CRITERIA

    rows = bench_matching(
        blocks=tuple(blocks or (256, 1024)),
        criteria=tuple(criteria or CRITERIA),
        dtypes=tuple(dtypes or ("float32", "bfloat16")),
        backend=backend,
        device=device,
        repeats=repeats,
        seed=seed,
    )
    columns = {
        "matching": lambda row: row["name"].removeprefix("matching/"),
        "seconds": lambda row: f"{row['seconds']:.4f}",
        "floor": lambda row: f"{row['floor_seconds']:.4f}",
        "ratio": lambda row: f"{row['ratio']:.2f}",
    }
    present(rows, columns, out=out, force=force, json=json)


def attention(
    kinds: Annotated[list[str] | None, typer.Option(help="decode, prefill.", show_default="both")] = None,
    caches: Annotated[
        list[str] | None, typer.Option(help="unfused, fused, int8, int4.", show_default="all")
    ] = None,
    dtypes: Annotated[
        list[str] | None, typer.Option(help="Of queries and cache.", show_default="float32 bfloat16")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens per request.")] = 1024,
    compression: Annotated[float, typer.Option(help="Of the caches that share blocks.")] = 2.0,
    backend: Backend = "auto",
    device: Device = "cpu",
    repeats: Annotated[int, typer.Option(help="Runs; the least counts.")] = 5,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Attend over one layer beside its floor and beside PyTorch's attention on the dense, unfused cache.

    The floor is bytes over the bandwidth of a copy or operations over the rate of a matrix product, whichever
    is more, both measured in the same run. `vs torch` is the time over that of scaled_dot_product_attention.

    Example: `ratedist bench attention --kinds decode --requests 8 --tokens 512`
    """
    from ratedist.kernels.bench.attention import CACHES, KINDS, bench_attention

    rows = bench_attention(
        kinds=tuple(kinds or KINDS),
        caches=tuple(caches or CACHES),
        dtypes=tuple(dtypes or ("float32", "bfloat16")),
        requests=requests,
        tokens=tokens,
        compression=compression,
        backend=backend,
        device=device,
        repeats=repeats,
        seed=seed,
    )
    columns = {
        "attention": lambda row: row["name"].removeprefix("attention/"),
        "ms": lambda row: f"{1e3 * row['seconds']:.2f}",
        "floor": lambda row: f"{1e3 * row['floor_seconds']:.2f}",
        "ratio": lambda row: f"{row['ratio']:.1f}",
        "torch": lambda row: f"{1e3 * row['torch_seconds']:.2f}",
        "vs torch": lambda row: f"{row['torch_ratio']:.2f}",
    }
    present(rows, columns, out=out, force=force, json=json)


def decode(
    model: Annotated[
        str | None,
        typer.Option(help="Hugging Face id, folder or GGUF file.", show_default="the embedded SmolLM2-135M"),
    ] = None,
    workload: Annotated[str, typer.Option(help="A built-in workload.")] = "system-prompt",
    requests: Annotated[int, typer.Option(help="Requests of the batch.")] = 8,
    tokens: Annotated[int, typer.Option(help="Length of the prompts.")] = 256,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 32,
    thresholds: Annotated[
        list[float] | None, typer.Option(help="Of the fused caches.", show_default="0.8 0.9")
    ] = None,
    dtype: Annotated[str, typer.Option(help="What the model computes in.")] = "auto",
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Generate with a real model: unmodified, on a paged cache, and on fused ones.

    Example: `ratedist bench decode --workload templates --requests 4 --new-tokens 16`
    """
    from ratedist.validate.bench_decode import bench_decode
    from ratedist.validate.models import load_model
    from ratedist.validate.workloads import build_prompts

    loaded = load_model(model, dtype=dtype)
    prompts = build_prompts(workload, loaded.tokenizer, requests=requests, tokens=tokens, seed=seed)
    rows = bench_decode(loaded, prompts, new_tokens=new_tokens, thresholds=tuple(thresholds or (0.8, 0.9)))
    columns = {
        "decode": lambda row: row["name"].removeprefix("decode/"),
        "ms/step": lambda row: f"{1e3 * row['seconds']:.1f}",
        "floor": lambda row: f"{1e3 * row['floor_seconds']:.1f}",
        "ratio": lambda row: f"{row['ratio']:.2f}",
        "vs unmodified": lambda row: f"{row['torch_ratio']:.2f}",
        "tokens/s": lambda row: f"{row['tokens_per_second']:.1f}",
        "cache MB": lambda row: f"{row['cache_bytes'] / 1e6:.1f}",
        "same tokens": lambda row: f"{row['same_tokens']:.0%}",
    }
    present(rows, columns, out=out, force=force, json=json)


def gpu(
    device: Annotated[str, typer.Option(help="A GPU; cpu checks the interpreted kernels.")] = "cuda",
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Check the compiled kernels on a GPU and time them: a few minutes, one record.

    The exit code is 1 if a check fails.

    Example: `ratedist bench gpu --out gpu.json`
    """
    from ratedist.kernels.bench.gpu_check import check_gpu
    from ratedist.kernels.triton_support import interpreter_if_no_gpu

    if device == "cpu":
        interpreter_if_no_gpu()
    failed: list[str] = []

    def rows() -> Iterator[dict[str, Any]]:
        for row in check_gpu(device, seed=seed):
            if row["kind"] == "check" and not row["passed"]:
                failed.append(row["name"])
            yield row

    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "what": lambda row: row["name"],
        "result": lambda row: (
            ("passed" if row["passed"] else "FAILED")
            if row["kind"] == "check"
            else f"{row['ratio']:.2f} x floor"
        ),
        "error": lambda row: f"{row['error']:.1e}" if row["kind"] == "check" else "",
        "ms": lambda row: f"{1e3 * row['seconds']:.2f}",
        "vs torch": lambda row: f"{row['torch_ratio']:.2f}" if "torch_ratio" in row else "",
    }
    present(rows(), columns, out=out, force=force, json=json)
    if failed:
        raise typer.Exit(1)
