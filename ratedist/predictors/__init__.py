"""Predictors: from a calibration sample of block similarities to kept blocks and errors at any threshold.

One predictor per file, each a ``Predictor``; ``predictor_class`` finds one by name.
"""

from __future__ import annotations

from ratedist.errors import InputError
from ratedist.predictors.accumulation import AccumulationPredictor
from ratedist.predictors.base import VARIANTS, Prediction, Predictor
from ratedist.predictors.choose import HeldOutError, best_of, choose_predictor, held_out_errors
from ratedist.predictors.empirical import EmpiricalPredictor
from ratedist.predictors.gaussian import GaussianPredictor
from ratedist.predictors.heterogeneous import HeterogeneousPredictor
from ratedist.predictors.pareto_tail import ParetoTailPredictor
from ratedist.predictors.position_marked import PositionMarkedPredictor
from ratedist.predictors.sample import CRITERIA, SCALES, PairSample

__all__ = [
    "CRITERIA",
    "PREDICTORS",
    "SCALES",
    "VARIANTS",
    "AccumulationPredictor",
    "EmpiricalPredictor",
    "GaussianPredictor",
    "HeldOutError",
    "HeterogeneousPredictor",
    "PairSample",
    "ParetoTailPredictor",
    "PositionMarkedPredictor",
    "Prediction",
    "Predictor",
    "best_of",
    "choose_predictor",
    "held_out_errors",
    "predictor_class",
]

PREDICTORS: dict[str, type[Predictor]] = {
    predictor.name: predictor
    for predictor in (
        GaussianPredictor,
        EmpiricalPredictor,
        ParetoTailPredictor,
        PositionMarkedPredictor,
        HeterogeneousPredictor,
        AccumulationPredictor,
    )
}
"""Every predictor by name."""


def predictor_class(name: str) -> type[Predictor]:
    """The predictor of this name; raises InputError, listing those there are, for another name."""
    if name not in PREDICTORS:
        raise InputError("predictor", name, f"unknown; choose one of {', '.join(PREDICTORS)}")
    return PREDICTORS[name]
