"""A small model trained from random weights: what it learnt, so that nobody takes it for more than it is."""

from __future__ import annotations

from ratedist.figures.report.content import Section
from ratedist.figures.report.kinds.building import Loaded, source_of, table

__all__ = ["section"]


def section(loaded: Loaded) -> Section:
    """What the model is, its loss beside that of token frequencies, and the learning curve."""
    record = loaded.record
    (result,) = record.summary
    model = record.provenance["model"]
    answer = [
        f"No language model of use: {result['tokens']:,} tokens from random weights brought it to "
        f"{result['held_out_bits']:.2f} bits per held-out token, from {result['held_out_bits_first']:.2f}; "
        f"the frequencies of tokens alone give {result['unigram_bits']:.2f}.",
        f"{model['parameters'] / 1e6:.1f} million parameters, {model['layers']} layers; {model['differs']}.",
    ]
    return Section(
        title=f"A small {result['architecture']}, to capture another architecture",
        answer=answer,
        sources=[source_of(loaded)],
        tables=[
            table(
                "Learning curve",
                record.rows,
                {
                    "step": "step",
                    "bits per token trained on": "train_bits",
                    "bits per held-out token": "held_out_bits",
                    "seconds": "seconds",
                },
                detail=True,
            )
        ],
    )
