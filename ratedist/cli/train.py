"""``ratedist train``: a small model of another architecture, from random weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ratedist.cli.options import Force, Json, Seed, messages, print_json

__all__ = ["train"]


def train(
    architecture: Annotated[
        str,
        typer.Option(
            "--architecture",
            help="qwen2 (biases in the projections, 4 query and 2 KV heads of 80) or gemma3 (every other "
            "layer a sliding window, 4 query heads and 1 KV head of 96).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the model; the same command resumes it.")],
    steps: Annotated[
        int, typer.Option("--steps", help="Steps of 2 × 384 tokens; the default takes minutes on a CPU.")
    ] = 400,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Stop after so many; the same command goes on from there."),
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train a small causal language model from random weights on built-in text.

    It serves to look at the keys and values of another architecture where no other model is at hand, and is
    no use as a language model: the card in the folder says so, with the loss on text that was held out. The
    same seed gives the same weights on one machine, interrupted or not.

    Example:

        ratedist train --architecture qwen2 --out models/small-qwen2

        ratedist capture --model models/small-qwen2 --workload documents --out captures/qwen2-documents
    """
    from ratedist.cli.suite import time_left
    from ratedist.validate.training.train import TrainingPlan, train_model

    plan = TrainingPlan(architecture, steps=steps, seed=seed)
    with time_left("training") as progress:
        record = train_model(
            plan,
            out,
            minutes=minutes,
            force=force,
            progress=lambda done, whole, words: progress(done / whole, words),
        )
    if record is None:
        messages().print(f"time is up; the same command goes on in {out}", highlight=False, soft_wrap=True)
        if json:
            print_json({"finished": False, "out": str(out)})
        return
    if json:
        print_json({"finished": True, "out": str(out), **asdict(record)})
        return
    (result,) = record.summary
    typer.echo(
        f"{out}: {result['held_out_bits']:.2f} bits per held-out token, {result['steps']} steps "
        f"({result['held_out_bits_first']:.2f} before, {result['unigram_bits']:.2f} from token frequencies "
        f"alone); {result['seconds']:.0f} s"
    )
