"""Rendering sections to one HTML file, and the same content to Markdown with its pictures beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ratedist.errors import InputError
from ratedist.figures.report.content import Section, cell_text
from ratedist.figures.report.sections import load_record, sections_of
from ratedist.records import write_atomic

__all__ = ["build_report", "first_screen", "render", "render_html", "render_markdown"]

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
    sections = sections_of(load_record(path) for path in records)
    if out.suffix == ".html":
        write_atomic(out, render_html(sections, title))
        return [out]
    written = []
    for number, section in enumerate(sections, start=1):
        for picture in section.pictures:
            target = pictures / f"{number}-{picture.name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(picture.data)
            written.append(target)
    write_atomic(out, render_markdown(sections, title, pictures.name))
    return [out, *written]


def render_html(sections: Sequence[Section], title: str = _TITLE) -> str:
    """One self-contained page: nothing is loaded from elsewhere."""
    return render(
        "page.html.j2", sections, escape=True, title=title, lead=_LEAD, answer=first_screen(sections)
    )


def render_markdown(sections: Sequence[Section], title: str = _TITLE, pictures: str = "pictures") -> str:
    """The same content; pictures are named ``<pictures>/<number of the section>-<name>.png``."""
    return render(
        "page.md.j2",
        sections,
        escape=False,
        title=title,
        lead=_LEAD,
        answer=first_screen(sections),
        pictures=pictures,
    )


def render(template: str, sections: Sequence[Section], *, escape: bool, **values: Any) -> str:
    """A page of sections from one of the templates beside this file."""
    import jinja2

    def source(name: str) -> str:
        return resources.files("ratedist.figures.report").joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=not escape,
        loader=jinja2.FunctionLoader(source),
    )
    text = environment.get_template(template).render(
        sections=sections, cell_text=cell_text, in_table=_in_table, **values
    )
    return text.strip() + "\n"


def _in_table(text: str) -> str:
    """Text of a cell of a Markdown table, shown as it is."""
    return re.sub(r"([\\`*_<|])", r"\\\1", text)


def first_screen(sections: Sequence[Section]) -> list[str]:
    """The headlines, then the first sentence of every section without one.

    Where no section has a headline, all that the first of them says stands there.
    """
    headlines = [sentence for section in sections for sentence in section.headline]
    others = [section for section in sections if not section.headline]
    if not headlines and others:
        headlines, others = list(others[0].answer), others[1:]
    return [*headlines, *(f"{section.title}: {section.answer[0]}" for section in others if section.answer)]
