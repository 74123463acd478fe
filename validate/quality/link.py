"""How well a link from distortion to divergence holds on requests and workloads that it was not fitted on.

Cells are settings of fusion. Calibrated on half of the requests (or on the other workloads), a law of
``ratedist.kl_link`` or ``ratedist.pooled_kl_link`` predicts mean KL on the rest from the errors measured
there. Beside it stands the floor: KL of the same setting measured on the calibration half, which shares
nothing but the setting, so that its distance is what so few requests leave uncertain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.kl_link import fit_kl_link, link_accuracy
from ratedist.pooled_kl_link import fit_pooled_kl_link

__all__ = ["ALL", "FORMS", "POOLED", "FusionCells", "evaluate_links", "fusion_cells"]

FloatArray = NDArray[np.float64]
Row = Mapping[str, Any]

FORMS: tuple[tuple[str, ...], ...] = (
    ("v",),
    ("k", "v"),
    ("attention",),
    ("attention", "v"),
    ("attention", "k", "v"),
)
"""Errors that laws of one workload each are fitted in; all of them are shown."""

POOLED = ("v", "k", "attention")
"""Errors that laws pooled over workloads are fitted in."""

ERRORS = ("k", "v", "attention")
ALL = "all"
SPLITS = 20


@dataclass(frozen=True)
class FusionCells:
    """Settings of fusion on the requests of one workload.

    Attributes:
        kl: (cells, requests) mean KL of each request in nats.
        errors: relative errors by name, each (cells, requests).
    """

    kl: FloatArray
    errors: dict[str, FloatArray]

    def of(self, requests: Sequence[int]) -> FusionCells:
        """The same settings on some of the requests."""
        chosen = np.asarray(requests)
        return FusionCells(
            self.kl[:, chosen], {name: values[:, chosen] for name, values in self.errors.items()}
        )

    @property
    def mean_kl(self) -> FloatArray:
        """(cells,)."""
        return np.asarray(self.kl.mean(axis=1))

    def rms(self, names: Sequence[str]) -> dict[str, FloatArray]:
        """Root mean square over the requests of the errors named, (cells,) each."""
        return {name: np.sqrt(np.square(self.errors[name]).mean(axis=1)) for name in names}


ByWorkload = dict[str, FusionCells]
Fitted = Callable[[str, FusionCells], FloatArray]
Law = Callable[[ByWorkload], Fitted]
"""Calibrated on cells of some workloads: the KL of other cells of one workload, (cells,). Either call raises
InputError where it cannot."""


def fusion_cells(rows: Sequence[Row]) -> FusionCells:
    """Cells of one workload; rows that are not plain fusion, or lack an error, are left out."""
    kl: list[list[float]] = []
    errors: dict[str, list[list[float]]] = {name: [] for name in ERRORS}
    for row in rows:
        if row["method"] != "fusion":
            continue
        held = row["by_request"]
        found = {name: held[f"{name}_error"] for name in ERRORS}
        if any(values is None or None in values for values in found.values()):
            continue
        kl.append(held["kl"])
        for name, values in found.items():
            errors[name].append(values)
    requests = rows[0]["requests"] if rows else 0
    shape = (len(kl), requests)
    return FusionCells(
        np.array(kl, float).reshape(shape),
        {name: np.array(values, float).reshape(shape) for name, values in errors.items()},
    )


def _own_law(form: Sequence[str]) -> Law:
    """A law of the workload itself where it was calibrated on, else one of all cells together."""

    def predict(calibration: ByWorkload, workload: str, cells: FusionCells) -> FloatArray:
        used = [calibration[workload]] if workload in calibration else list(calibration.values())
        means = [one.rms(form) for one in used]
        law = fit_kl_link(
            {name: np.concatenate([mean[name] for mean in means]) for name in form},
            np.concatenate([one.mean_kl for one in used]) if used else [],
        )
        return law.predict(cells.rms(form))

    return lambda calibration: partial(predict, calibration)


def _pooled_law(error: str) -> Law:
    def fit(calibration: ByWorkload) -> Fitted:
        law = fit_pooled_kl_link(
            {name: one.errors[error] for name, one in calibration.items()},
            {name: one.kl for name, one in calibration.items()},
        )
        return lambda workload, cells: law.predict(cells.errors[error], workload)

    return fit


def _floor(calibration: ByWorkload) -> Fitted:
    return lambda workload, cells: calibration[workload].mean_kl


LAWS: dict[tuple[str, tuple[str, ...]], Law] = {
    **{("own", form): _own_law(form) for form in FORMS},
    **{("pooled", (error,)): _pooled_law(error) for error in POOLED},
}


def evaluate_links(rows: Sequence[Row], *, seed: int = 0, splits: int = SPLITS) -> list[dict[str, Any]]:
    """Held-out accuracy of every law, by protocol and workload.

    Protocols: ``requests`` fits on one half of every workload's requests and judges on the other, over
    ``splits`` random halvings; ``workloads`` fits on all other workloads and judges on this one; ``floor``
    predicts the KL that the other half had; ``itself`` fits on the very half that it judges, which no
    prediction can: what the form of the law leaves, however well its constants are known. A law is a
    workload's ``own`` (``ratedist.kl_link``; under ``workloads`` of all others together) or ``pooled`` over
    workloads (``ratedist.pooled_kl_link``).

    Returns:
        Entries ``{kind: "link", protocol, law, errors, workload, cells, within, factor,
        median_abs_log_ratio, p90_abs_log_ratio, bias, chosen}``, and workload ``"all"`` over all judged
        cells. A cell for which no law could be fitted counts as infinitely wrong, and ``reason`` says why.
        ``chosen`` marks the law that predicts one half of the calibration requests best when fitted on the
        other half (their median |ln ratio| is ``calibration_error``), so that no held-out request has a say.
    """
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    whole = {name: fusion_cells([row for row in rows if row["workload"] == name]) for name in workloads}
    halves, quarters = _halvings(whole, splits, np.random.default_rng(seed))
    others = [
        ({other: cells for other, cells in whole.items() if other != name}, {name: whole[name]})
        for name in workloads
        if len(workloads) > 1
    ]
    errors = {key: _judge(law, quarters)[ALL].get("median_abs_log_ratio") for key, law in LAWS.items()}
    known = {key: error for key, error in errors.items() if error is not None}
    best = min(known, key=lambda key: known[key]) if known else None
    tried: list[tuple[str, tuple[str, tuple[str, ...]] | None, Law, list[Experiment]]] = [
        ("floor", None, _floor, halves),
        *(("requests", key, law, halves) for key, law in LAWS.items()),
        *(("workloads", key, law, others) for key, law in LAWS.items()),
        *(("itself", key, law, [(held, held) for _, held in halves]) for key, law in LAWS.items()),
    ]
    entries = []
    for protocol, key, law, experiments in tried:
        about: dict[str, Any] = {"kind": "link", "protocol": protocol, "law": None, "errors": None}
        if key is not None:
            about |= {"law": key[0], "errors": list(key[1])}
            about |= {"chosen": key == best, "calibration_error": errors[key]}
        judged = _judge(law, experiments)
        nothing = {"reason": "there are too few requests or workloads to hold any out"}
        entries += [{**about, "workload": name, **judged.get(name, nothing)} for name in (*workloads, ALL)]
    return entries


Experiment = tuple[ByWorkload, ByWorkload]
"""What calibrates and what is held out."""


def _halvings(
    whole: ByWorkload, splits: int, rng: np.random.Generator
) -> tuple[list[Experiment], list[Experiment]]:
    """Random halvings of every workload's requests, and those of the calibration halves; of four or more."""
    orders = {name: [rng.permutation(c.kl.shape[1]) for _ in range(splits)] for name, c in whole.items()}
    halves: list[Experiment] = []
    quarters: list[Experiment] = []
    for split in range(splits):
        parts: list[ByWorkload] = [{}, {}, {}, {}]
        for name, cells in whole.items():
            order = orders[name][split]
            middle = len(order) // 2
            if middle >= 2:
                ends = [(0, middle), (middle, len(order)), (0, middle // 2), (middle // 2, middle)]
                for part, (start, end) in zip(parts, ends, strict=True):
                    part[name] = cells.of(order[start:end].tolist())
        if parts[0]:
            halves.append((parts[0], parts[1]))
            quarters.append((parts[2], parts[3]))
    return halves, quarters


def _judge(law: Law, experiments: Sequence[Experiment]) -> dict[str, dict[str, Any]]:
    """Accuracy by workload and over all; nothing where there is no experiment."""
    found: dict[str, list[tuple[FloatArray, FloatArray]]] = {}
    reasons: dict[str, str] = {}
    for calibration, held_out in experiments:
        fitted, unfit = _fit(law, calibration)
        for name, cells in held_out.items():
            measured = cells.mean_kl
            predicted, reason = np.zeros_like(measured), unfit
            if fitted is not None:
                try:
                    predicted = fitted(name, cells)
                except InputError as error:
                    reason = str(error)
            if reason:
                reasons[name] = reason
            found.setdefault(name, []).append((predicted, measured))
    judged = {
        name: {**_accuracy(pairs), **({"reason": reasons[name]} if name in reasons else {})}
        for name, pairs in found.items()
    }
    if found:
        judged[ALL] = _accuracy([pair for pairs in found.values() for pair in pairs])
    return judged if found else {ALL: {}}


def _fit(law: Law, calibration: ByWorkload) -> tuple[Fitted | None, str]:
    """The law on these cells, or why there is none."""
    try:
        return law(calibration), ""
    except InputError as error:
        return None, str(error)


def _accuracy(pairs: Sequence[tuple[FloatArray, FloatArray]]) -> dict[str, Any]:
    predicted, measured = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return asdict(link_accuracy(predicted, measured))
