"""From records to the sections of a report, by the schema that each names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ratedist.errors import InputError, RatedistError
from ratedist.figures.report.content import Section
from ratedist.figures.report.kinds import (
    adaptive,
    benchmark,
    curves,
    generation,
    inspection,
    kernels,
    plan,
    plan_check,
    plan_unseen,
    quality,
    serving,
    suite,
    training,
    transfer,
    tutorial,
    validation,
)
from ratedist.figures.report.kinds.building import Loaded, each, refusing_damaged
from ratedist.records import earlier_name

__all__ = ["KINDS", "load_record", "read_section", "sections_of"]

KINDS: dict[str, Callable[[Sequence[Loaded]], list[Section]]] = {
    "ratedist/quality/1": each(quality.section),
    "ratedist/suite/1": each(suite.section),
    "ratedist/transfer/1": each(transfer.section),
    "ratedist/training/1": each(training.section),
    "ratedist/validation/1": each(validation.section),
    "ratedist/plan/1": each(plan.section),
    "ratedist/plan-check/1": each(plan_check.section),
    "ratedist/plan-unseen/1": each(plan_unseen.section),
    "ratedist/serve/1": serving.sections,
    "ratedist/generate/1": each(generation.section),
    "ratedist/inspect/1": inspection.sections,
    "ratedist/adapt/1": each(adaptive.section),
    "ratedist/ladder/1": each(curves.ladder_section),
    "ratedist/curve/1": each(curves.curve_section),
    "ratedist/tutorial/1": each(tutorial.section),
    "ratedist/bench/1": each(benchmark.section),
    "ratedist/kernels/1": each(kernels.section),
}
"""By schema, in the order in which a report has them; all records of a kind at once."""


def load_record(path: Path) -> Loaded:
    """Read a record of any kind.

    Raises:
        InputError: no such file.
        RatedistError: it is no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("record", str(path), "no such file") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RatedistError(f"{path} is not a result record: {error}") from error
    return Loaded(path, data if isinstance(data, dict) else {})


def sections_of(records: Iterable[Loaded]) -> list[Section]:
    """The sections of records, in the order of ``KINDS``, then of the files' names.

    Raises RatedistError for a record of a kind that reports do not know (the message lists the others), and
    for a damaged one.
    """
    known: dict[str, list[Loaded]] = {schema: [] for schema in KINDS}
    for loaded in sorted(records, key=lambda loaded: (loaded.path.name, str(loaded.path))):
        schema = loaded.data.get("schema")
        if schema not in KINDS:
            raise RatedistError(
                f"{loaded.path} has schema {schema!r}; reports know {', '.join(KINDS)}{earlier_name(schema)}"
            )
        known[schema].append(loaded)
    sections = []
    for schema, here in known.items():
        with refusing_damaged(here):
            sections += KINDS[schema](here) if here else []
    return sections


def read_section(path: Path) -> Section:
    """The section of a single record; errors as ``load_record`` and ``sections_of``."""
    (section,) = sections_of([load_record(path)])
    return section
