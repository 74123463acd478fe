"""What small models are trained on: the split of the text, its tokenizer, the yardstick beside the loss."""

from __future__ import annotations

import math

import pytest
import torch

from ratedist.errors import InputError
from ratedist.validate.training.corpus import END, build_corpus, train_tokenizer, unigram_bits
from ratedist.validate.workloads.texts import Document

TEXT = "the cat sat on a mat while another dog ran over some green hills and back again"
WORDS = TEXT.split()


def documents(count: int = 25) -> list[Document]:
    texts = []
    for start in range(1, count + 1):
        texts.append(" ".join(WORDS[(start * step) % len(WORDS)] for step in range(60)))
    return [Document(f"d{number:02d}", text + f" {number}ü") for number, text in enumerate(texts)]


def test_every_tenth_document_is_held_out_whole() -> None:
    texts = documents()
    corpus = build_corpus(280, texts)
    assert corpus.documents == (22, 3)

    def back(tokens: torch.Tensor) -> list[str]:
        return corpus.tokenizer.decode(tokens.tolist()).split(END)

    assert back(corpus.held_out) == [texts[number].text for number in (0, 10, 20)] + [""]
    assert back(corpus.train) == [text.text for n, text in enumerate(texts) if n % 10] + [""]
    assert corpus.held_out_bytes == sum(len(texts[number].text.encode()) for number in (0, 10, 20))
    assert build_corpus(280, texts[:-1]).digest != corpus.digest


def test_the_tokenizer_knows_nothing_of_what_is_held_out() -> None:
    texts = documents()
    other = [Document(t.title, "zzqq " * 90) if n % 10 == 0 else t for n, t in enumerate(texts)]
    one, two = (build_corpus(280, chosen).tokenizer for chosen in (texts, other))
    assert one.get_vocab() == two.get_vocab()
    assert len(one.get_vocab()) == 280
    assert one.get_vocab()[END] == 0 == one.eos_token_id


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = train_tokenizer([text.text for text in documents()], 290)
    for text in ("cat sat", "Ünïcode \t\n  and 日本", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_unigram_bits_by_hand() -> None:
    # Counts plus one: 3, 2 and 1 of 6.
    found = unigram_bits(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2, 2]), 3)
    assert found == pytest.approx((1 + math.log2(3) + 2 * math.log2(6)) / 4)


def test_vocabularies_that_cannot_be() -> None:
    with pytest.raises(InputError, match="vocabulary = 256: must be at least 257: the bytes and"):
        train_tokenizer(["text"], 256)
    with pytest.raises(InputError, match=r"vocabulary = 400: the text gives 25\d tokens; ask for no more"):
        train_tokenizer(["ab"], 400)
