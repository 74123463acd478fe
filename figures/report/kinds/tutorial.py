"""The numbers that the tutorial prints."""

from __future__ import annotations

from ratedist.figures.report.content import Section
from ratedist.figures.report.kinds.building import Loaded, source_of, table

__all__ = ["section"]


def section(loaded: Loaded) -> Section:
    """The plan's promise beside what came of it, its rivals, and serving."""
    data = loaded.data
    plan = data["plan"]
    ((goal, value),) = plan["goal"].items()
    rival = max(
        (row for row in data["quality"] if row["kl_mean"] <= max(value, plan["kl_measured"])),
        key=lambda row: row["compression"],
        default=None,
    )
    answer = [
        f"A plan for {goal.replace('_', ' ')} {value:g} came to {plan['compression_measured']:.2f}× at "
        f"{plan['kl_measured']:.4f} nats on requests that it did not see "
        f"({plan['compression_predicted']:.2f}× at {plan['kl_predicted']:.4f} predicted), one setting for "
        f"all layers to {plan['uniform_compression_measured']:.2f}× at {plan['uniform_kl_measured']:.4f}."
    ]
    if rival is not None and rival["compression"] > plan["compression_measured"]:
        answer.insert(
            0,
            f"{rival['method']} is the better choice: {rival['compression']:.2f}× at "
            f"{rival['kl_mean']:.4f} nats.",
        )
    return Section(
        title="From a workload to a decision, as the tutorial does it",
        answer=answer,
        sources=[source_of(loaded)],
        tables=[
            table(
                "Rivals on the plan's held-out requests",
                data["quality"],
                {
                    "method": "method",
                    "threshold": "threshold",
                    "times smaller": "compression",
                    "KL (nats)": "kl_mean",
                    "its standard error": "kl_mean_se",
                },
            ),
            table(
                "Serving the same requests",
                data["serve"],
                {
                    "mode": "mode",
                    "pool share": "pool_share",
                    "tokens/s": "tokens_per_second",
                    "predicted": "tokens_per_second_predicted",
                    "same tokens": "same_tokens",
                },
            ),
        ],
    )
