"""Rendering sections to one HTML file, and the same content to Markdown with its pictures beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ratedist.errors import InputError
from ratedist.figures.report.content import Section, cell_text
from ratedist.figures.report.sections import KINDS, read_section
from ratedist.records import write_atomic

__all__ = ["build_report", "render_html", "render_markdown"]

_TITLE = "What fusion of KV-cache blocks saves and costs"
_LEAD = "Measured on real caches, predicted for requests that the prediction did not see; bad news first."


def build_report(
    records: Sequence[Path], out: Path, *, title: str = _TITLE, force: bool = False
) -> list[Path]:
    """Write a report: HTML where ``out`` ends in .html, Markdown (with a folder of pictures) where in .md.

    Args:
        records: result records and plans, of any kind that ``KINDS`` lists; the report orders them itself.
        out: the file.
        title: of the page.
        force: overwrite.

    Returns:
        The files that were written, the report first.

    Raises:
        InputError: no records, another ending, or files that exist (without ``force``).
        RatedistError: a file that is no record.
    """
    if not records:
        raise InputError("records", [], "name at least one result record or plan")
    if out.suffix not in (".html", ".md"):
        raise InputError("out", str(out), "must end in .html or .md")
    pictures = out.with_name(f"{out.stem}-pictures")
    for path in (out, *([pictures] if out.suffix == ".md" else [])):
        if path.exists() and not force:
            raise InputError("out", str(path), "exists already; choose another path or pass --force")
    sections = [read_section(path) for path in sorted(records, key=_order)]
    if out.suffix == ".html":
        write_atomic(out, render_html(sections, title))
        return [out]
    written = []
    for number, section in enumerate(sections, start=1):
        for picture in section.pictures:
            target = pictures / f"{number}-{picture.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(picture.data)
            written.append(target)
    write_atomic(out, render_markdown(sections, title, pictures.name))
    return [out, *written]


def render_html(sections: Sequence[Section], title: str = _TITLE) -> str:
    """One self-contained page: nothing is loaded from elsewhere."""
    return _render("page.html.j2", sections, title, escape=True)


def render_markdown(sections: Sequence[Section], title: str = _TITLE, pictures: str = "pictures") -> str:
    """The same content; pictures are named ``<pictures>/<number of the section>-<name>``."""
    text = _render(
        "page.md.j2",
        sections,
        title,
        escape=False,
        pictures=pictures,
        section_name=lambda loop, section: f"{sections.index(section) + 1}-",
    )
    return text.strip() + "\n"


def _render(template: str, sections: Sequence[Section], title: str, *, escape: bool, **values: Any) -> str:
    import jinja2

    source = resources.files("ratedist.figures.report").joinpath(template).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=escape, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=not escape
    )
    return environment.from_string(source).render(
        title=title,
        lead=_LEAD,
        answer=_first_screen(sections),
        sections=sections,
        cell_text=cell_text,
        **values,
    )


def _first_screen(sections: Sequence[Section]) -> list[str]:
    """All that the first section says, and the first sentence of each of the others."""
    return [
        sentence
        for number, section in enumerate(sections)
        for sentence in (section.answer if number == 0 else section.answer[:1])
    ]


def _order(path: Path) -> tuple[int, str]:
    """Records in the order of ``KINDS``; what cannot be read comes first, and is refused by name."""
    try:
        schema = json.loads(path.read_text(encoding="utf-8")).get("schema")
    except (OSError, ValueError, AttributeError):
        return -1, str(path)
    kinds = list(KINDS)
    return (kinds.index(schema) if schema in kinds else -1), str(path)
