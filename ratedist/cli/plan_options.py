"""Options that the commands about plans share: what a layer may take, and what is promised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratedist.cli.variadic import split_numbers

if TYPE_CHECKING:
    from ratedist.validate.quality.methods import Method

__all__ = [
    "Bits",
    "ChunkBlocks",
    "Continuation",
    "Criteria",
    "Modes",
    "Scales",
    "Thresholds",
    "Tolerance",
    "Variants",
    "given_settings",
]

Continuation = Annotated[
    int,
    typer.Option("--continue", help="Tokens fed after each prefix, over which predictions are compared."),
]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold", help="Thresholds of fusion, e.g. 0.7 0.9.", show_default="0.6 to 0.95 by 0.05"
    ),
]
Criteria = Annotated[
    list[str] | None,
    typer.Option(
        "--criterion", help="Match by keys, or by both keys and values.", show_default="keys and both"
    ),
]
Variants = Annotated[
    list[str] | None, typer.Option("--variant", help="leader, tree, or both.", show_default="leader")
]
Scales = Annotated[
    list[str] | None,
    typer.Option("--scale", help="own-norm, projection, raw; one or several.", show_default="own-norm"),
]
Modes = Annotated[
    list[str] | None,
    typer.Option(
        "--mode",
        help="Share across requests (bff), across the chunks of each (cff), or bff cff: what suits a layer.",
        show_default="bff",
    ),
]
ChunkBlocks = Annotated[int, typer.Option("--chunk-blocks", help="With --mode cff: full blocks per chunk.")]
Bits = Annotated[
    list[int] | None,
    typer.Option("--bits", help="Bits per scalar that a layer may be stored in.", show_default="16"),
]
Tolerance = Annotated[
    float,
    typer.Option(
        "--tolerance",
        help="With --max-kl and --max-error: the 90 % band for other requests must end below so many times "
        "it. Larger saves more where requests differ much, and is broken more often.",
    ),
]


def given_settings(
    *,
    threshold: Sequence[str] | None,
    criterion: Sequence[str] | None,
    variant: Sequence[str] | None,
    scale: Sequence[str] | None,
    mode: Sequence[str] | None,
    chunk_blocks: int,
    bits: Sequence[int] | None,
) -> list[Method]:
    """The settings that a layer may take; raises InputError as ``default_settings``."""
    from ratedist.validate.planning.trials import default_settings

    given: dict[str, Any] = {
        "thresholds": split_numbers("threshold", list(threshold)) if threshold else None,
        "criteria": criterion,
        "variants": variant,
        "scales": scale,
        "modes": mode,
    }
    return default_settings(
        **{name: tuple(values) for name, values in given.items() if values},
        bits=tuple(bits or (16,)),
        chunk_blocks=chunk_blocks,
    )
