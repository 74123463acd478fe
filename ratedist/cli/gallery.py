"""``ratedist gallery``: the gallery and the page of results, from a folder of records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ratedist.cli.options import Force, messages
from ratedist.errors import InputError
from ratedist.records import earlier_name

__all__ = ["gallery"]


def gallery(
    records: Annotated[Path, typer.Option("--records", help="Folder of result records.")] = Path(
        "docs/records"
    ),
    out: Annotated[
        Path, typer.Option("--out", help="Folder for gallery.md, results.md and images/gallery.")
    ] = Path("docs"),
    force: Force = False,
) -> None:
    """Draw every picture and write every number that a folder of records holds, as two pages.

    The same records give the same files, byte for byte. Records of a kind that has no section are named at
    the end of both pages.

    Example: `ratedist gallery --records docs/records --out docs --force`
    """
    from ratedist.figures.report.gallery import GALLERY, RESULTS, make_pages, write_pages

    for name in (GALLERY, RESULTS):
        if (out / name).exists() and not force:
            raise InputError("out", str(out / name), "exists already; choose another folder or pass --force")
    pages = make_pages(records, out)
    with messages().status(f"drawing {len(pages.pictures)} pictures"):
        written = write_pages(pages, out)
    for name, schema in pages.unknown.items():
        messages().print(f"left out: {name}, of unknown kind {schema}{earlier_name(schema)}", style="yellow")
    messages().print(f"wrote {written[0]}, {written[1]} and {len(pages.pictures)} pictures")
