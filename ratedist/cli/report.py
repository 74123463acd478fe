"""``ratedist report``: one page from result records, the answer first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ratedist.cli.options import Force, messages

__all__ = ["report"]


def report(
    records: Annotated[list[Path], typer.Argument(help="Result records and plans, in any order.")],
    out: Annotated[
        Path, typer.Option(help="The page: .html (self-contained) or .md (with a folder of pictures).")
    ] = Path("report.html"),
    title: Annotated[
        str, typer.Option(help="Of the page.")
    ] = "What fusion of KV-cache blocks saves and costs",
    force: Force = False,
) -> None:
    """Make one self-contained page of records that other commands wrote with --out.

    The answers stand first, bad news ahead of good; then figures and tables that can be sorted and filtered.
    The page loads nothing from elsewhere.

    Example: `ratedist report out/demo/validation.json plan.json --out report.html`
    """
    from ratedist.figures.report.build import build_report

    written = build_report(records, out, title=title, force=force)
    messages().print(f"wrote {written[0]}")
