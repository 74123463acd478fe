"""Training a small causal language model from random weights, so that it can be interrupted anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.records import Record
from ratedist.validate.training.architectures import architecture_named
from ratedist.validate.training.corpus import Corpus, build_corpus
from ratedist.validate.training.folder import TrainingFolder
from ratedist.validate.training.saved import save_model

__all__ = ["TrainingPlan", "TrainingState", "bits_per_token", "train_model"]

_EVALUATIONS = 10
"""Points of the learning curve between its ends."""

_CURVE_WINDOWS = 24
"""Held-out windows that a point of the learning curve is measured on; the last point takes all."""

_SECONDS_BETWEEN_SAVES = 20.0

_BETAS, _DECAY, _CLIP = (0.9, 0.95), 0.1, 1.0

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and the latest losses in words."""


@dataclass(frozen=True)
class TrainingPlan:
    """All that the weights depend on, beside the text, the versions of the packages and the processor.

    Attributes:
        architecture: a key of ``ratedist.validate.training.architectures.ARCHITECTURES``.
        steps: of the optimiser (AdamW), the first twentieth of them warming up, then the rate falls in a
            half cosine to a tenth.
        seed: of the first weights and of the windows of text.
        vocabulary: tokens of the tokenizer.
        context: tokens of a window, at most this many follow each other in training.
        batch: windows per step.
        learning_rate: highest.
    """

    architecture: str
    steps: int = 400
    seed: int = 0
    vocabulary: int = 2048
    context: int = 384
    batch: int = 2
    learning_rate: float = 4e-3

    def __post_init__(self) -> None:
        architecture_named(self.architecture)
        for name, least in (("steps", 1), ("seed", 0), ("context", 2), ("batch", 1)):
            if getattr(self, name) < least:
                raise InputError(name, getattr(self, name), f"must be at least {least}")
        if not 0 < self.learning_rate < 1:
            raise InputError("learning_rate", self.learning_rate, "must lie between 0 and 1")

    @property
    def longest(self) -> int:
        """Tokens that the configuration admits: room for text generated behind a window."""
        return 2 * self.context


@dataclass
class TrainingState:
    """A model on its way.

    Attributes:
        model: of transformers.
        optimizer: AdamW.
        step: steps done.
        rows: the learning curve so far: ``step``, ``train_bits`` (mean per token over the steps since the
            point before, None at the first), ``held_out_bits`` and ``seconds`` of training.
        since: training bits of the steps since the last point.
        seconds: of training, over all runs.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    step: int
    rows: list[dict[str, Any]]
    since: list[float]
    seconds: float


def train_model(
    plan: TrainingPlan,
    folder: Path,
    *,
    minutes: float | None = None,
    force: bool = False,
    corpus: Corpus | None = None,
    progress: Progress | None = None,
    command: list[str] | None = None,
) -> Record | None:
    """Train, and save a folder that ``load_model`` takes; the same call goes on where another stopped.

    The weights depend on ``plan`` alone (on one machine with one number of threads), not on where training
    was interrupted.

    Args:
        plan: what to train.
        folder: where to save; created where it does not exist.
        minutes: stop after so many with what is learnt kept.
        force: begin again in a folder with another model, finished or not.
        corpus: the text; the built-in documents where None.
        progress: called after every step.
        command: what the record names as the command that made it; this process's own where None.

    Returns:
        The record that stands in the folder as ``training.json``; None where the time was up before.

    Raises:
        InputError: a folder that holds anything else, or the text is shorter than a window.
        RatedistError: the folder cannot be written, or what an interrupted run left is damaged.
    """
    if minutes is not None and minutes <= 0:
        raise InputError("minutes", minutes, "must be positive; leave it out to train to the end")
    where = TrainingFolder.claim(folder, force=force)
    text = build_corpus(plan.vocabulary) if corpus is None else corpus
    for name, tokens in (("training", text.train), ("held-out", text.held_out)):
        if len(tokens) <= plan.context:
            told = f"must be below {len(tokens)}, the tokens of {name} text"
            raise InputError("context", plan.context, told)
    settings = {**asdict(plan), "text": text.digest}
    state = _first_state(plan)
    where.resume(state, settings)
    # Not from here on: making the tokenizer and the model is no training, and is done again in every run.
    begun = saved = time.monotonic()
    before = state.seconds
    if not state.rows:
        _add_row(state, plan, text)
    while state.step < plan.steps:
        _train_step(state, plan, text.train)
        now = time.monotonic()
        state.seconds = before + now - begun
        if state.step == plan.steps or state.step % max(1, plan.steps // _EVALUATIONS) == 0:
            _add_row(state, plan, text)
        if progress is not None:
            progress(state.step, plan.steps, _in_words(state))
        up = minutes is not None and now - begun >= 60 * minutes and state.step < plan.steps
        if up or now - saved >= _SECONDS_BETWEEN_SAVES:
            where.save(state, settings)
            saved = time.monotonic()
        if up:
            return None
    return save_model(state.model, plan, text, state, where, command)


def bits_per_token(model: Any, tokens: Tensor, context: int, windows: int | None = None) -> float:
    """Mean bits that a model needs for a token of a text, given those before it in its window.

    Args:
        model: causal language model of transformers.
        tokens: (tokens,) int64, at least ``context`` + 1 of them.
        context: tokens of a window; windows follow each other, a remainder is left out.
        windows: so many, spread evenly over the text; all where None.

    Test: tests/validate/training/test_training.py::test_bits_per_token_of_a_model_that_knows_nothing.
    """
    whole = (len(tokens) - 1) // context
    chosen = range(whole) if windows is None or windows >= whole else _spread(whole, windows)
    model.eval()
    with torch.inference_mode():
        losses = [
            float(_loss(model, tokens[None, number * context : number * context + context + 1]))
            for number in chosen
        ]
    model.train()
    return sum(losses) / len(losses) / math.log(2)


def _spread(whole: int, count: int) -> list[int]:
    return [number * whole // count for number in range(count)]


def _first_state(plan: TrainingPlan) -> TrainingState:
    from transformers import AutoModelForCausalLM

    config = architecture_named(plan.architecture).config(plan.vocabulary, plan.longest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.train()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": _DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=_BETAS)
    return TrainingState(model, optimizer, 0, [], [], 0.0)


def _train_step(state: TrainingState, plan: TrainingPlan, tokens: Tensor) -> None:
    """One step, on windows that depend on the seed and the step's number alone."""
    rng = np.random.default_rng([plan.seed, state.step])
    starts = rng.integers(0, len(tokens) - plan.context, size=plan.batch)
    windows = torch.stack([tokens[start : start + plan.context + 1] for start in starts.tolist()])
    for group in state.optimizer.param_groups:
        group["lr"] = plan.learning_rate * _rate(state.step, plan.steps)
    loss = _loss(state.model, windows)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), _CLIP)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.since.append(float(loss.detach()) / math.log(2))


def _rate(step: int, steps: int) -> float:
    """Share of the highest learning rate."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def _loss(model: Any, windows: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the last ``context`` tokens of each window."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def _add_row(state: TrainingState, plan: TrainingPlan, text: Corpus) -> None:
    windows = None if state.step == plan.steps else _CURVE_WINDOWS
    state.rows.append(
        {
            "step": state.step,
            "train_bits": sum(state.since) / len(state.since) if state.since else None,
            "held_out_bits": bits_per_token(state.model, text.held_out, plan.context, windows),
            "seconds": round(state.seconds, 1),
        }
    )
    state.since.clear()


def _in_words(state: TrainingState) -> str:
    latest = state.rows[-1]
    return f"step {state.step}, held out {latest['held_out_bits']:.2f} bits per token"
