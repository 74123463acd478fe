"""What the models are trained on: the built-in documents, a tokenizer made for them, and their tokens."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.validate.workloads.texts import Document, documents

__all__ = ["END", "HELD_OUT_EVERY", "Corpus", "build_corpus", "train_tokenizer", "unigram_bits"]

HELD_OUT_EVERY = 10
"""Of the documents, sorted by title, every one with a number divisible by this is held out."""

END = "<|end|>"
"""Stands behind every document; token 0."""

_BYTES = 256


@dataclass(frozen=True)
class Corpus:
    """Text as token ids.

    Attributes:
        tokenizer: fast tokenizer of transformers, made from the training documents alone.
        train: (tokens,) int64, the training documents one after another, each ended by ``END``.
        held_out: the same of the others.
        held_out_bytes: of their text in UTF-8.
        documents: how many documents train, and how many are held out.
        digest: sha256 of all text in order, and so of what the running Python ships.
    """

    tokenizer: Any
    train: Tensor
    held_out: Tensor
    held_out_bytes: int
    documents: tuple[int, int]
    digest: str


def build_corpus(vocabulary: int, texts: Sequence[Document] | None = None) -> Corpus:
    """Split the documents, make a tokenizer and encode them; the same documents give the same corpus.

    Args:
        vocabulary: tokens of the tokenizer.
        texts: at least two documents; the built-in ones where None.

    Raises InputError for a vocabulary that is too small, or that the text does not fill.
    """
    found = documents() if texts is None else tuple(texts)
    held_out = [document.text for number, document in enumerate(found) if number % HELD_OUT_EVERY == 0]
    train = [document.text for number, document in enumerate(found) if number % HELD_OUT_EVERY]
    tokenizer = train_tokenizer(train, vocabulary)
    digest = hashlib.sha256("\0".join(document.text for document in found).encode()).hexdigest()
    return Corpus(
        tokenizer,
        _stream(tokenizer, train),
        _stream(tokenizer, held_out),
        sum(len(text.encode()) for text in held_out),
        (len(train), len(held_out)),
        digest,
    )


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """A tokenizer of transformers: pairs of bytes merged by frequency (BPE), ``END`` as token 0.

    Raises InputError where ``vocabulary`` leaves no room for the bytes and ``END``, or where the text has not
    pairs enough for it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < _BYTES + 1:
        raise InputError("vocabulary", vocabulary, f"must be at least {_BYTES + 1}: the bytes and {END}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        raise InputError(
            "vocabulary",
            vocabulary,
            f"the text gives {tokenizer.get_vocab_size()} tokens; ask for no more",
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def unigram_bits(train: Tensor, held_out: Tensor, vocabulary: int) -> float:
    """Bits per held-out token for a model that knows nothing but how often each token is in ``train``.

    The cross-entropy of the held-out tokens under the frequencies (count + 1) / (tokens + vocabulary).

    Test: tests/validate/training/test_corpus.py::test_unigram_bits_by_hand.
    """
    counts = torch.bincount(train, minlength=vocabulary).double() + 1
    return float(-(counts / counts.sum()).log()[held_out].mean()) / math.log(2)


def _stream(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return torch.tensor([token for text in encoded for token in (*text.ids, 0)], dtype=torch.int64)
