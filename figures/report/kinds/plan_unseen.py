"""A plan on requests that predictors were not fitted on: compression predicted and measured."""

from __future__ import annotations

from typing import Any

from ratedist.figures.report.content import Section
from ratedist.figures.report.kinds.building import Loaded, source_of, table

__all__ = ["section"]


def section(loaded: Loaded) -> Section:
    """Every workload in a sentence, then totals and layers."""
    record = loaded.record
    totals = {
        "workload": "workload",
        "predictor": "predictor",
        "layers": "layers",
        "times smaller, predicted": "compression_predicted",
        "low": "compression_predicted_low",
        "high": "compression_predicted_high",
        "measured": "compression_measured",
        "whole cache, predicted": "cache_compression_predicted",
        "whole cache, measured": "cache_compression_measured",
        "layers within their band": "layers_within_band",
    }
    layers = {
        "workload": "workload",
        "layer": "layer",
        "setting": "setting",
        "criterion": "criterion",
        "threshold": "threshold",
        "predictor": "predictor",
        "times smaller, predicted": "compression_predicted",
        "measured": "compression_measured",
        "error of values, predicted": "v_error_predicted",
        "error of values, measured": "v_error_measured",
    }
    return Section(
        title=f"A plan for {record.provenance['model']}, predicted beside measured",
        answer=[_sentence(total) for total in record.summary],
        sources=[source_of(loaded)],
        tables=[
            table("Planned layers together", record.summary, totals),
            table("Every planned layer at its own setting", record.rows, layers, detail=True),
        ],
    )


def _sentence(total: dict[str, Any]) -> str:
    within = {True: ", within its band", False: ", outside its band", None: ""}[total["within_band"]]
    return (
        f"{total['workload']}: {total['predictor']} predicts {total['compression_predicted']:.2f} times "
        f"fewer blocks in the planned layers, {total['compression_measured']:.2f} are measured on "
        f"{total['requests']} other requests{within}."
    )
