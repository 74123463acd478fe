"""``ratedist capacity``: what fewer blocks would buy on a named GPU, from published peaks."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ratedist.cli.options import Json, print_json

__all__ = ["capacity"]


def capacity(
    compression: Annotated[float, typer.Option(help="Logical over physical blocks of fused prompts.")],
    gpu: Annotated[str, typer.Option(help="a100, h100, h200, l4 or mi300x.")] = "h100",
    parameters: Annotated[float, typer.Option(help="Parameters of the model, such as 8e9.")] = 8e9,
    layers: Annotated[int, typer.Option(help="Layers of the model.")] = 32,
    kv_heads: Annotated[int, typer.Option(help="KV heads.")] = 8,
    head_dim: Annotated[int, typer.Option(help="Scalars per head.")] = 128,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 2000,
    new_tokens: Annotated[int, typer.Option(help="Tokens that a request generates.")] = 250,
    requests: Annotated[int, typer.Option(help="Requests, all there at once.")] = 512,
    max_batch: Annotated[int, typer.Option(help="Requests that run at a time.")] = 256,
    step_tokens: Annotated[int, typer.Option(help="Tokens per forward pass.")] = 2048,
    memory_share: Annotated[float, typer.Option(help="Of the GPU's memory, for weights and cache.")] = 0.9,
    json: Json = False,
) -> None:
    """Estimate tokens per second with and without fusion from a GPU's published memory, bandwidth and rate.

    Nothing is measured: kernels are taken to reach the published peaks, 16 bits per weight and per scalar of
    the cache, and fusion to free memory and no time. `ratedist serve` measures a real model.

    Example: `ratedist capacity --compression 1.6 --gpu a100 --parameters 7e9`
    """
    import numpy as np

    from ratedist.capacity import Demand, Machine, PromptBlocks, simulate_capacity, throughput_gain
    from ratedist.errors import InputError
    from ratedist.gpus import GPUS

    if gpu not in GPUS:
        raise InputError("gpu", gpu, f"must be one of {', '.join(GPUS)}")
    if not compression >= 1:
        raise InputError("compression", compression, "must be at least 1")
    if not 0 < memory_share <= 1:
        raise InputError("memory_share", memory_share, "must lie in (0, 1]")
    for name, value in (("parameters", parameters), ("layers", layers), ("requests", requests)):
        if value < 1:
            raise InputError(name, value, "must be at least 1")
    chosen, block = GPUS[gpu], 16
    kv_bytes = 2 * 2 * layers * kv_heads * head_dim
    free = memory_share * chosen.memory - 2 * parameters
    pool = int(free // (kv_bytes * block / layers))
    if pool < 1:
        raise InputError(
            "gpu",
            gpu,
            f"{chosen.name} has no room for a cache beside {2 * parameters / 1e9:.0f} GB of weights",
        )
    cost = Machine(chosen.memory, chosen.bandwidth, chosen.matrix).step_cost(parameters, kv_bytes)
    demands = [Demand(0.0, prompt, new_tokens)] * requests
    alone = layers * -(-prompt // block)
    rows: list[dict[str, Any]] = []
    for mode, factor in (("unfused", 1.0), ("fused", compression)):
        found = simulate_capacity(
            demands,
            cost,
            pool_blocks=pool,
            layers=layers,
            prompt_blocks=PromptBlocks(np.array([0.0, alone, alone * (1 + 1 / factor)])),
            block_size=block,
            max_batch=max_batch,
            step_tokens=step_tokens,
        )
        rows.append(
            {
                "mode": mode,
                "tokens_per_second": found.tokens_per_second,
                "mean_running": found.mean_running,
                "time_to_first_token_mean": float(found.time_to_first_token.mean()),
                "preemptions": found.preemptions,
                "peak_blocks": found.peak_blocks,
            }
        )
    gain = rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"]
    share = rows[0]["mean_running"] * (prompt + new_tokens / 2) * kv_bytes / (2 * parameters)
    closed = throughput_gain(compression, share)
    summary = {
        "gpu": chosen.name,
        "pool_blocks": pool,
        "gain": gain,
        "kv_share": share,
        "gain_of_a_full_pool": closed,
    }
    if json:
        print_json({"rows": rows, "summary": summary})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{chosen.name}: an estimate from published peaks, no measurement")
    for heading in ("mode", "tokens/s", "requests at a time", "first token", "preemptions"):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for row in rows:
        table.add_row(
            row["mode"],
            f"{row['tokens_per_second']:.0f}",
            f"{row['mean_running']:.1f}",
            f"{row['time_to_first_token_mean']:.1f} s",
            str(row["preemptions"]),
        )
    output = Console(width=100)
    output.print(table)
    output.print(
        f"fusion: {gain:.2f} times the tokens per second. A pass reads {share:.2f} bytes of cache per byte "
        f"of weights; a pool that is always full would gain {closed:.2f}."
    )
