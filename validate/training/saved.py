"""What a trained model is saved as: weights, tokenizer, a card that says what it is, and the record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import torch

from ratedist.records import Record, provenance, write_record
from ratedist.validate.captures._batch_file import file_sha256
from ratedist.validate.training.architectures import architecture_named
from ratedist.validate.training.corpus import Corpus, unigram_bits
from ratedist.validate.training.folder import RECORD, TrainingFolder

if TYPE_CHECKING:
    from ratedist.validate.training.train import TrainingPlan, TrainingState

__all__ = ["SCHEMA", "save_model"]

SCHEMA = "ratedist/training/1"
"""Schema of the record of a training."""

WEIGHTS = "model.safetensors"


def save_model(
    model: Any,
    plan: TrainingPlan,
    text: Corpus,
    state: TrainingState,
    where: TrainingFolder,
    command: list[str] | None,
) -> Record:
    """Save a trained model in its folder, all of it or nothing that passes for a model.

    Returns:
        The record: the learning curve as rows (see ``TrainingState.rows``), and as summary one entry with

        - ``held_out_bits``, per token of the documents that were not trained on, and ``held_out_bits_first``,
          the same of the random weights; both over the windows that their row was measured on;
        - ``unigram_bits``, what knowing nothing but the tokens' frequencies would need;
        - ``held_out_bits_per_byte``, which compares across tokenizers;
        - ``steps``, ``tokens`` trained on (repetitions counted) and ``seconds``.
    """
    finished = Path(mkdtemp(prefix=".finished-", dir=where.path))
    with _no_bars():
        model.eval().save_pretrained(finished)
    text.tokenizer.save_pretrained(finished)
    bits = state.rows[-1]["held_out_bits"]
    summary = {
        "architecture": plan.architecture,
        "steps": plan.steps,
        "tokens": plan.steps * plan.batch * plan.context,
        "held_out_bits_first": state.rows[0]["held_out_bits"],
        "held_out_bits": bits,
        "unigram_bits": unigram_bits(text.train, text.held_out, plan.vocabulary),
        "held_out_bits_per_byte": bits * len(text.held_out) / text.held_out_bytes,
        "seconds": round(state.seconds, 1),
    }
    config = model.config
    record = Record(
        SCHEMA,
        provenance(
            command,
            plan=asdict(plan),
            model={
                "differs": architecture_named(plan.architecture).differs,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "layers": config.num_hidden_layers,
                "query_heads": config.num_attention_heads,
                "kv_heads": config.num_key_value_heads,
                "head_dim": config.head_dim,
                "weights_hash": file_sha256(finished / WEIGHTS),
            },
            text={
                "sha256": text.digest,
                "documents": {"trained": text.documents[0], "held_out": text.documents[1]},
                "tokens": {"trained": len(text.train), "held_out": len(text.held_out)},
            },
            threads=torch.get_num_threads(),
        ),
        state.rows,
        [summary],
    )
    (finished / "README.md").write_text(_card(record), encoding="utf-8")
    write_record(record, finished / RECORD)
    where.finish(finished)
    return record


@contextmanager
def _no_bars() -> Iterator[None]:
    """Silence transformers' own bar: writing these weights takes no time."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _card(record: Record) -> str:
    """The model card: first of all what this model is not."""
    made, model, (result,) = record.provenance, record.provenance["model"], record.summary
    text, plan = made["text"], made["plan"]
    return f"""# A small {plan["architecture"]}, trained for {plan["steps"]} steps

**Not a language model of use.** It was trained from random weights for {plan["steps"]} steps on text that
ships with Python, so that the keys and values of another architecture can be looked at where no other model
is at hand. Seed {plan["seed"]}.

| | |
|---|---|
| form | {model["layers"]} layers, {model["parameters"]:,} parameters; {model["differs"]} |
| trained on | {result["tokens"]:,} tokens, drawn from the {text["tokens"]["trained"]:,} of \
{text["documents"]["trained"]} documents, {plan["context"]} at a time |
| bits per token of {text["documents"]["held_out"]} held-out documents | {result["held_out_bits"]:.3f} |
| the same before training | {result["held_out_bits_first"]:.3f} |
| the same from the tokens' frequencies alone | {result["unigram_bits"]:.3f} |
| bits per byte of held-out text | {result["held_out_bits_per_byte"]:.3f} |

The documents are those that workloads built into ratedist are made of as well: requests of these workloads
come mostly from documents that the model was trained on. The learning curve, the versions of the packages
and the command stand in `{RECORD}`.
"""
