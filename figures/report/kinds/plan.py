"""A plan: one setting per layer."""

from __future__ import annotations

from typing import Any

from ratedist.figures.report.content import Section, Table
from ratedist.figures.report.kinds.building import Loaded, source_of, table

__all__ = ["section"]


def section(loaded: Loaded) -> Section:
    """What the plan promises, what drift does to it, and its settings."""
    data = loaded.data
    predicted, settings = data["predicted"], data["settings"]
    ((goal, value),) = data["goal"].items()
    uniform, drift = predicted["uniform"], predicted.get("sensitivity", {}).get("drift")
    answer = [f"For {goal} {value:g}: {predicted['compression']:.2f} times smaller {_harm(predicted)}."]
    if uniform is not None:
        answer.append(f"The best single setting within it gives {uniform['compression']:.2f}.")
    if drift is not None:
        answer.append(drift["words"])
    return Section(
        title=f"A plan for {data['model']}",
        answer=answer,
        sources=[source_of(loaded)],
        tables=[
            *([] if drift is None else [_drift_table(drift)]),
            Table(
                "Setting of every layer; layers that are not named stay as they are",
                ("layer", "sharing", "variant", "criterion", "scale", "mode", "threshold", "bits"),
                tuple(
                    (
                        int(layer),
                        m["sharing"],
                        m["variant"],
                        m["criterion"],
                        m["scale"],
                        m.get("mode", "bff"),
                        m["threshold"],
                        m["bits"] or 16,
                    )
                    for layer, m in settings.items()
                ),
                detail=True,
            ),
        ],
    )


def _harm(predicted: dict[str, Any]) -> str:
    """What a plan costs: a divergence, or for a plan from laws alone the error of keys and values."""
    if predicted["kl"] is None:
        return (
            f"with a relative error of keys and values of {predicted['kv_error']:.3f} (by laws of "
            "similarity; no model ran, so nothing is known of its output)"
        )
    return (
        f"at a divergence of {predicted['kl']:.4f} nats "
        f"(other requests: {predicted['kl_low']:.4f} to {predicted['kl_high']:.4f})"
    )


def _drift_table(drift: dict[str, Any]) -> Table:
    return table(
        f"The plan on {drift['requests']} other requests, a share of them from {drift['to']}",
        drift["points"],
        {
            "share": "share",
            "times smaller": "compression",
            "saved": "saving",
            "KL (nats)": "kl",
            "relative error of attention": "error",
        },
    )
