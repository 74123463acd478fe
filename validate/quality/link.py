"""How well a link from distortion to divergence holds on requests and workloads that it was not fitted on.

Cells are settings of fusion. Calibrated on half of the requests (or on the other workloads), a law of
``ratedist.kl_link`` predicts mean KL on the rest from the errors measured there. Beside it stands the floor:
KL of the same setting measured on the calibration half, which shares nothing but the setting, so that its
distance is what so few requests leave uncertain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.kl_link import fit_kl_link, link_accuracy

__all__ = ["ALL", "FORMS", "evaluate_links", "link_cells"]

FloatArray = NDArray[np.float64]
Row = Mapping[str, Any]
Cells = dict[str, FloatArray]

FORMS: tuple[tuple[str, ...], ...] = (
    ("v",),
    ("k", "v"),
    ("attention",),
    ("attention", "v"),
    ("attention", "k", "v"),
)
"""Errors that laws are fitted in; all of them are shown."""

ALL = "all"
SPLITS = 20


def link_cells(rows: Sequence[Row], requests: Sequence[int] | None = None) -> Cells:
    """Cells of fusion as arrays: ``kl`` and the relative errors ``k``, ``v``, ``attention``; (cells,) each.

    Args:
        rows: of one or several workloads; those that are not plain fusion, or lack an error, are left out.
        requests: which requests count; all by default.

    KL is the mean, an error the root mean square over the requests.
    """
    found: dict[str, list[float]] = {"kl": [], "k": [], "v": [], "attention": []}
    for row in rows:
        if row["method"] != "fusion":
            continue
        held = row["by_request"]
        errors = {name: held[f"{name}_error"] for name in ("k", "v", "attention")}
        if any(e is None or None in e for e in errors.values()):
            continue
        chosen = np.arange(row["requests"]) if requests is None else np.asarray(requests)
        found["kl"].append(float(np.array(held["kl"])[chosen].mean()))
        for name, values in errors.items():
            found[name].append(float(np.sqrt(np.square(np.array(values)[chosen]).mean())))
    return {name: np.array(values) for name, values in found.items()}


def evaluate_links(rows: Sequence[Row], *, seed: int = 0, splits: int = SPLITS) -> list[dict[str, Any]]:
    """Held-out accuracy of every law, by protocol and workload.

    Protocols: ``requests`` fits on one half of a workload's requests and judges on the other, over ``splits``
    random halvings; ``workloads`` fits on all other workloads and judges on this one; ``floor`` predicts the
    KL that the other half had.

    Returns:
        Entries ``{kind: "link", protocol, errors, workload, cells, within, factor, median_abs_log_ratio,
        p90_abs_log_ratio, bias, chosen}``, and workload ``"all"`` over all judged cells. ``chosen`` marks
        the law that predicts one half of the calibration requests best when fitted on the other half (their
        median |ln ratio| is ``calibration_error``), so that no held-out request has a say. Where nothing
        could be fitted, there is a ``reason`` instead of numbers.
    """
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    by_workload = {name: [row for row in rows if row["workload"] == name] for name in workloads}
    halves, quarters = {}, []
    rng = np.random.default_rng(seed)
    for name, here in by_workload.items():
        orders = [rng.permutation(here[0]["requests"]).tolist() for _ in range(splits)]
        middle = here[0]["requests"] // 2
        halves[name] = [_split(here, order[:middle], order[middle:]) for order in orders if middle >= 2]
        quarters += [
            _split(here, order[: middle // 2], order[middle // 2 : middle]) for order in orders if middle >= 2
        ]
    others = {
        name: [
            (
                link_cells([row for row in rows if row["workload"] != name]),
                link_cells(by_workload[name]),
            )
        ]
        for name in workloads
        if len(workloads) > 1
    }
    errors = {form: _median_error(quarters, form) for form in FORMS}
    known = {form: error for form, error in errors.items() if error is not None}
    best = min(known, key=lambda form: known[form]) if known else None
    entries = []
    for protocol, form, pairs in [
        ("floor", None, halves),
        *(("requests", form, halves) for form in FORMS),
        *(("workloads", form, others) for form in FORMS),
    ]:
        about: dict[str, Any] = {
            "kind": "link",
            "protocol": protocol,
            "errors": None if form is None else list(form),
        }
        if form is not None:
            about |= {"chosen": form == best, "calibration_error": errors[form]}
        judged: list[tuple[FloatArray, FloatArray]] = []
        for name in workloads:
            found, reason = _predictions(pairs.get(name, []), form)
            judged += found
            entries.append({**about, "workload": name, **_accuracy(found, reason)})
        entries.append({**about, "workload": ALL, **_accuracy(judged, "no workload could be judged")})
    return entries


def _split(rows: Sequence[Row], calibration: list[int], held_out: list[int]) -> tuple[Cells, Cells]:
    return link_cells(rows, calibration), link_cells(rows, held_out)


def _predictions(
    pairs: Sequence[tuple[Cells, Cells]], form: Sequence[str] | None
) -> tuple[list[tuple[FloatArray, FloatArray]], str]:
    """Predicted and measured KL of every pair that a law could be fitted for, and why one could not."""
    found, reason = [], "there are too few requests or workloads to hold any out"
    for calibration, held_out in pairs:
        if form is None:
            found.append((calibration["kl"], held_out["kl"]))
            continue
        try:
            law = fit_kl_link({name: calibration[name] for name in form}, calibration["kl"])
        except InputError as error:
            reason = str(error)
            continue
        found.append((law.predict(held_out), held_out["kl"]))
    return found, reason


def _accuracy(found: Sequence[tuple[FloatArray, FloatArray]], reason: str) -> dict[str, Any]:
    if not found:
        return {"reason": reason}
    predicted, measured = (np.concatenate(side) for side in zip(*found, strict=True))
    return asdict(link_accuracy(predicted, measured))


def _median_error(pairs: Sequence[tuple[Cells, Cells]], form: Sequence[str]) -> float | None:
    found, _ = _predictions(pairs, form)
    error = _accuracy(found, "").get("median_abs_log_ratio")
    return None if error is None else float(error)
