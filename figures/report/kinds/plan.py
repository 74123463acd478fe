"""A plan: one setting per layer."""

from __future__ import annotations

from ratedist.figures.report.content import Section, Table
from ratedist.figures.report.kinds.building import Loaded, source_of

__all__ = ["section"]


def section(loaded: Loaded) -> Section:
    """What the plan promises, and its settings."""
    data = loaded.data
    predicted, settings = data["predicted"], data["settings"]
    ((goal, value),) = data["goal"].items()
    uniform = predicted["uniform"]
    answer = [
        f"For {goal} {value:g}: {predicted['compression']:.2f} times smaller at a divergence of "
        f"{predicted['kl']:.4f} nats "
        f"(other requests: {predicted['kl_low']:.4f} to {predicted['kl_high']:.4f})."
    ]
    if uniform is not None:
        answer.append(f"The best single setting within it gives {uniform['compression']:.2f}.")
    return Section(
        title=f"A plan for {data['model']}",
        answer=answer,
        sources=[source_of(loaded)],
        tables=[
            Table(
                "Setting of every layer; layers that are not named stay as they are",
                ("layer", "sharing", "criterion", "threshold", "bits"),
                tuple(
                    (int(layer), m["sharing"], m["criterion"], m["threshold"], m["bits"] or 16)
                    for layer, m in settings.items()
                ),
                detail=True,
            )
        ],
    )
