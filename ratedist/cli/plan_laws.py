"""``ratedist plan --from-laws``: a plan from a capture, without its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratedist.cli.options import messages
from ratedist.errors import InputError

if TYPE_CHECKING:
    from ratedist.validate.planning.plan_file import CachePlan
    from ratedist.validate.quality.methods import Method

__all__ = ["law_plan"]


def law_plan(
    capture: Path | None,
    *,
    goals: Mapping[str, float | None],
    settings: Sequence[Method],
    requests: int | None,
    serve: int | None,
    refused: Mapping[str, Any],
) -> CachePlan:
    """Plan, with progress.

    Args:
        capture: its folder.
        goals: by name, None where not given.
        settings, requests, serve: as ``plan_from_laws``.
        refused: options by name that need a model; none may be given.

    Raises InputError for a missing capture, for what is refused, and as ``plan_from_laws``.
    """
    from ratedist.validate.captures.store import Capture
    from ratedist.validate.planning.from_laws import GOALS_OF_LAWS, plan_from_laws

    given = {name: value for name, value in goals.items() if value is not None}
    unknown = [name for name in given if name not in GOALS_OF_LAWS]
    if unknown:
        raise InputError(
            unknown[0],
            given[unknown[0]],
            "cannot be planned from laws of similarity, which do not tell what the model makes of its cache; "
            "leave out --from-laws, or give --max-kv-error or --min-saving",
        )
    if len(given) != 1:
        raise InputError("goal", ", ".join(given) or None, "give exactly one of --max-kv-error, --min-saving")
    for name, value in refused.items():
        if value:
            shown = value if isinstance(value, bool | int | float | str) else str(value)
            raise InputError(name, shown, "needs the model; leave it out, or --from-laws")
    if capture is None:
        raise InputError(
            "capture", None, "name the folder whose laws to plan from; make one with ratedist capture"
        )
    ((goal, value),) = given.items()
    opened = Capture.open(capture)
    with messages().status("fitting laws") as status:
        return plan_from_laws(
            opened,
            goal,
            value,
            settings=settings,
            requests=requests,
            serve=serve,
            progress=lambda what, share: status.update(f"{what}: {share:.0%}"),
        )
