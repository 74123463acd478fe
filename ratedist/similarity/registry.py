"""Laws by name, and the files that carry fitted laws."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from ratedist.errors import InputError, RatedistError
from ratedist.records import earlier_name, provenance, write_atomic
from ratedist.similarity.base import Fit

__all__ = ["FITTED_LAW_SCHEMA", "known_laws", "law_from_dict", "load_law", "register", "save_law"]

FITTED_LAW_SCHEMA = "ratedist/fitted-law/1"

_LAWS: dict[str, Any] = {}
ClassT = TypeVar("ClassT", bound=type)


def register(law: ClassT) -> ClassT:
    """Class decorator: makes a law known to ``law_from_dict`` under its ``name``."""
    name = law.name  # type: ignore[attr-defined]
    if name in _LAWS:
        raise ValueError(f"two laws are named {name!r}")
    _LAWS[name] = law
    return law


def known_laws() -> list[str]:
    """Names that ``law_from_dict`` understands, sorted."""
    return sorted(_LAWS)


def law_from_dict(data: dict[str, Any]) -> Any:
    """The law that ``to_dict`` described.

    Raises InputError where ``data`` is not such a description: no name, an unknown one (the known ones are
    listed), a parameter that is missing, or one outside its domain.
    """
    if not isinstance(data, dict) or "name" not in data:
        raise InputError("law", data, "must be a dict with the law's 'name' and its parameters")
    law = _LAWS.get(data["name"])
    if law is None:
        raise InputError("law", data["name"], f"is not a known law; known are {', '.join(known_laws())}")
    try:
        return law.from_dict(data)
    except KeyError as error:
        raise InputError("law", data["name"], f"lacks its parameter {error}") from None


def save_law(fit: Any, path: Path | str, *, force: bool = False, **extra: Any) -> None:
    """Write a law, or a ``Fit`` with its standard errors, as a JSON file that ``load_law`` reads.

    ``extra`` goes into the file's provenance (what the law was fitted to). Raises InputError where ``path``
    exists and ``force`` is false.
    """
    path = Path(path)
    if path.exists() and not force:
        raise InputError("path", str(path), "exists already; choose another path or pass force=True")
    fit = fit if isinstance(fit, Fit) else Fit(fit, {}, 0)
    errors = {key: value if math.isfinite(value) else None for key, value in fit.standard_errors.items()}
    text = json.dumps(
        {
            "schema": FITTED_LAW_SCHEMA,
            "provenance": provenance(**extra),
            "law": fit.law.to_dict(),
            "standard_errors": errors,
            "sample_size": fit.sample_size,
        },
        indent=1,
        allow_nan=False,
    )
    write_atomic(path, text + "\n")


def load_law(path: Path | str) -> Fit[Any]:
    """Read what ``save_law`` wrote.

    Raises InputError where there is no such file, and RatedistError where it is not a fitted law.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("path", str(path), "no such file; write one with save_law") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RatedistError(f"{path} is not a fitted law: {error}") from error
    schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
    if schema != FITTED_LAW_SCHEMA:
        raise RatedistError(
            f"{path} has schema {schema!r}; this version reads {FITTED_LAW_SCHEMA!r}{earlier_name(schema)}"
        )
    missing = [key for key in ("law", "standard_errors", "sample_size") if key not in data]
    if missing:
        raise RatedistError(f"{path} is not a fitted law: it lacks {', '.join(missing)}")
    errors = {key: math.nan if value is None else value for key, value in data["standard_errors"].items()}
    return Fit(law_from_dict(data["law"]), errors, data["sample_size"])
