"""The gallery and the page of results: everything that a folder of records shows, in two pages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ratedist.errors import InputError
from ratedist.figures.report.build import render
from ratedist.figures.report.content import Picture, Section
from ratedist.figures.report.kinds.building import Loaded
from ratedist.figures.report.sections import KINDS, load_record, sections_of
from ratedist.records import write_atomic

__all__ = ["Pages", "make_pages", "write_pages"]

IMAGES = "images/gallery"
"""Folder of the pictures, beside the pages; it holds nothing else."""

GALLERY, RESULTS = "gallery.md", "results.md"


@dataclass(frozen=True)
class Pages:
    """Both pages, and the pictures that they show.

    Attributes:
        gallery, results: Markdown.
        pictures: by file name within ``IMAGES``; drawn when their data are asked for.
        unknown: records of kinds that have no section, and what they say they are.
    """

    gallery: str
    results: str
    pictures: dict[str, Picture]
    unknown: dict[str, str]


def make_pages(records: Path, beside: Path | None = None) -> Pages:
    """Both pages from all records of a folder; nothing is drawn yet.

    Args:
        records: folder of result records; files that do not end in .json are left alone.
        beside: folder that the pages will lie in, for their links; the one above ``records`` where None.

    Raises:
        InputError: no such folder, or no record in it.
        RatedistError: a damaged record.
    """
    if not records.is_dir():
        raise InputError("records", str(records), "is no folder")
    loaded = [load_record(path) for path in sorted(records.glob("*.json"))]
    if not loaded:
        raise InputError("records", str(records), "holds no .json file; write records there with --out")
    known = [each for each in loaded if each.data.get("schema") in KINDS]
    unknown = {each.path.name: str(each.data.get("schema")) for each in loaded if each not in known}
    sections = sections_of(known)
    pictures: dict[str, Picture] = {}
    names: dict[tuple[int, int], str] = {}
    for number, section in enumerate(sections):
        for index, picture in enumerate(section.pictures):
            names[number, index] = _file_name(section, picture)
            if names[number, index] in pictures:
                raise InputError("records", names[number, index], "two pictures would have this name")
            pictures[names[number, index]] = picture
    linked = _relative(records, records.parent if beside is None else beside)
    left_out = [
        f"`{name}` is of a kind that these pages do not know, `{schema}`." for name, schema in unknown.items()
    ]
    return Pages(
        gallery=render(
            "gallery.md.j2",
            sections,
            escape=False,
            lead="Every picture is drawn from the record named below it, and from nothing else. Made by "
            "`ratedist gallery`; numbers and tables stand in [results](results.md).",
            records=linked,
            images=IMAGES,
            name_of=_file_name,
            left_out=left_out,
        ),
        results=render(
            "results.md.j2",
            sections,
            escape=False,
            lead="Every number below stands in the record that its section names, made by the command beside "
            "it. Made by `ratedist gallery`; pictures are in the [gallery](gallery.md).",
            verdicts=_verdicts(sections, known, linked),
            records=linked,
            left_out=left_out,
        ),
        pictures=pictures,
        unknown=unknown,
    )


def write_pages(pages: Pages, folder: Path) -> list[Path]:
    """Write the pages and draw their pictures; pictures in ``IMAGES`` that no page shows any more go.

    Returns the files, the pages first.
    """
    images = folder / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    written = [folder / GALLERY, folder / RESULTS]
    for name, picture in pages.pictures.items():
        data, path = picture.data, images / name
        # A file that stays as it is keeps its time, and version control quiet.
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
        written.append(path)
    for path in images.glob("*.png"):
        if path.name not in pages.pictures:
            path.unlink()
    write_atomic(written[0], pages.gallery)
    write_atomic(written[1], pages.results)
    return written


def _verdicts(sections: Sequence[Section], records: Sequence[Loaded], linked: str) -> list[str]:
    """The answer to the two questions, from the sections that have one, and where nobody asked them."""
    sentences: list[str] = []
    for section in sections:
        if section.headline:
            first, *rest = section.headline
            name = section.sources[0].record
            sentences += [f"{first} ([{name}]({linked}/{name}))", "", *(f"- {text}" for text in rest), ""]
    if not sentences:
        return []
    judged, measured = set(), set()
    for loaded in records:
        workloads = {entry["workload"] for entry in loaded.data.get("summary", []) if "workload" in entry}
        if loaded.data["schema"] == "ratedist/quality/1":
            judged |= workloads
        elif loaded.data["schema"] == "ratedist/suite/1":
            measured |= workloads
    missing = sorted(measured - judged - {"all"})
    if missing:
        sentences.append(f"Predicted and fused, but never compared in quality: {', '.join(missing)}.")
    return sentences


def _file_name(section: Section, picture: Picture) -> str:
    """Of the record, or of the kind where several records share a picture, and of the picture."""
    if len(section.sources) > 1:
        return f"{picture.name}.png"
    stem = section.sources[0].record.removesuffix(".json")
    return f"{stem}.png" if stem == picture.name else f"{stem}-{picture.name}.png"


def _relative(records: Path, beside: Path) -> str:
    return Path(os.path.relpath(records.resolve(), beside.resolve())).as_posix()
