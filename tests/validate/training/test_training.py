"""Training from random weights: what is learnt, what the seed decides, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ratedist.errors import InputError, RatedistError
from ratedist.records import Record, read_record
from ratedist.validate.captures.capture import capture_cache
from ratedist.validate.models import load_model
from ratedist.validate.training.architectures import ARCHITECTURES
from ratedist.validate.training.corpus import Corpus, build_corpus
from ratedist.validate.training.folder import UNFINISHED
from ratedist.validate.training.saved import SCHEMA, WEIGHTS
from ratedist.validate.training.train import TrainingPlan, bits_per_token, train_model
from ratedist.validate.workloads import build_prompts
from ratedist.validate.workloads.texts import Document

PLAN = TrainingPlan("qwen2", steps=6, vocabulary=280, context=24, batch=2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    lines = ("one two three four five six seven. ", "alpha beta gamma delta. ", "red green blue. ")
    return build_corpus(280, [Document(f"{n:02d}", lines[n % 3] * 12 + str(n)) for n in range(30)])


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    folder = tmp_path_factory.mktemp("models") / "small"
    record = train_model(PLAN, folder, corpus=corpus, command=["test"])
    assert record is not None
    return folder, record


def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


def test_bits_per_token_of_a_model_that_knows_nothing() -> None:
    class Uniform(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 32))

    tokens = torch.arange(100) % 32
    assert bits_per_token(Uniform(), tokens, 10) == pytest.approx(5)
    assert bits_per_token(Uniform(), tokens, 10, windows=3) == pytest.approx(5)


def test_bits_per_token_scores_each_token_by_those_before_it() -> None:
    class Copies(torch.nn.Module):
        """Sure that the next token is the last one plus one."""

        def forward(self, input_ids, use_cache):
            logits = torch.nn.functional.one_hot((input_ids + 1) % 8, 8).float() * 50
            return SimpleNamespace(logits=logits)

    assert bits_per_token(Copies(), torch.arange(81) % 8, 16) < 1e-6
    wrong = torch.arange(81) % 8
    wrong[40] = 0 if wrong[40] else 4  # one token of 80, and the one behind it, surprise by 50 nats
    assert bits_per_token(Copies(), wrong, 16) == pytest.approx(2 * 50 / 80 / math.log(2), rel=1e-3)


def test_it_learns_text_that_it_was_not_shown(trained: tuple[Path, Record]) -> None:
    (result,) = trained[1].summary
    assert result["held_out_bits"] < result["held_out_bits_first"] - 0.5
    rows = trained[1].rows
    assert [row["step"] for row in rows] == list(range(7))
    assert rows[0]["train_bits"] is None
    assert rows[-1]["held_out_bits"] == result["held_out_bits"]
    assert abs(rows[0]["held_out_bits"] - math.log2(280)) < 1


def test_the_folder_is_a_model_that_can_be_captured(trained: tuple[Path, Record], tmp_path: Path) -> None:
    folder, record = trained
    loaded = load_model(folder)
    assert (loaded.name, loaded.layers, loaded.kv_heads, loaded.query_heads) == ("small", 8, 2, 4)
    assert (loaded.head_dim, loaded.dtype) == (80, "float32")
    assert loaded.model.model.layers[0].self_attn.k_proj.bias is not None
    prompts = build_prompts("templates", loaded.tokenizer, requests=2, tokens=40)
    capture = capture_cache(loaded, prompts, tmp_path / "c")
    assert capture.layer(5).k.shape[1:] == (16, 2, 80)
    assert capture.manifest.weights_hash == record.provenance["model"]["weights_hash"]


def test_what_was_saved_is_what_was_measured(trained: tuple[Path, Record], corpus: Corpus) -> None:
    folder, record = trained
    again = bits_per_token(load_model(folder).model, corpus.held_out, PLAN.context)
    assert again == pytest.approx(record.summary[0]["held_out_bits"], rel=1e-6)
    (result,) = record.summary
    expected = result["held_out_bits"] * len(corpus.held_out) / corpus.held_out_bytes
    assert result["held_out_bits_per_byte"] == pytest.approx(expected)


def test_the_card_says_what_the_model_is(trained: tuple[Path, Record]) -> None:
    folder, record = trained
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Not a language model of use" in card
    assert "from random weights for 6 steps" in card
    (result,) = record.summary
    for name in ("held_out_bits", "held_out_bits_first", "unigram_bits"):
        assert f"{result[name]:.3f}" in card
    assert read_record(folder / "training.json", SCHEMA) == record
    assert record.provenance["model"]["differs"] == ARCHITECTURES["qwen2"].differs


def test_gemma_slides_in_every_other_layer(corpus: Corpus, tmp_path: Path) -> None:
    plan = replace(PLAN, architecture="gemma3", steps=1)
    assert train_model(plan, tmp_path / "g", corpus=corpus) is not None
    loaded = load_model(tmp_path / "g")
    assert loaded.layer_types == ("sliding_attention", "full_attention") * 4
    assert (loaded.sliding_window, loaded.kv_heads, loaded.head_dim) == (64, 1, 96)
    assert loaded.model is not None  # its cache is what the configuration promises


def test_the_seed_alone_decides(trained: tuple[Path, Record], corpus: Corpus, tmp_path: Path) -> None:
    torch.manual_seed(99)  # what came before does not matter
    train_model(PLAN, tmp_path / "again", corpus=corpus)
    train_model(replace(PLAN, seed=1), tmp_path / "other", corpus=corpus)
    assert weights(tmp_path / "again") == weights(trained[0])
    assert weights(tmp_path / "other") != weights(trained[0])


def test_an_interruption_leaves_no_trace(trained, corpus: Corpus, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("ratedist.validate.training.train._SECONDS_BETWEEN_SAVES", 0.0)
    folder = tmp_path / "stopped"

    def stop(done: int, whole: int, words: str) -> None:
        if done == 4:  # three steps are stored by now, the fourth is lost
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(PLAN, folder, corpus=corpus, progress=stop)
    assert [file.name for file in folder.iterdir()] == [UNFINISHED]
    with pytest.raises(InputError, match=r"without config\.json"):
        load_model(folder)
    with pytest.raises(InputError, match=r"other settings \(seed: 0 → 3\); go on with those"):
        train_model(replace(PLAN, seed=3), folder, corpus=corpus)
    steps = []
    record = train_model(PLAN, folder, corpus=corpus, progress=lambda done, whole, words: steps.append(done))
    assert steps == [4, 5, 6]
    assert weights(folder) == weights(trained[0])
    assert record is not None

    def curve(rows: list[dict]) -> list[dict]:
        return [{**row, "seconds": None} for row in rows]

    assert curve(record.rows) == curve(trained[1].rows)
    assert not (folder / UNFINISHED).exists()


def test_time_that_is_up(corpus: Corpus, tmp_path: Path) -> None:
    done = []

    def advance(step: int, whole: int, words: str) -> None:
        done.append(step)

    for _ in range(2):
        found = train_model(PLAN, tmp_path / "m", minutes=1e-9, corpus=corpus, progress=advance)
        assert found is None
    assert done == [1, 2]
    assert train_model(PLAN, tmp_path / "m", corpus=corpus, progress=advance) is not None
    assert done == [1, 2, 3, 4, 5, 6]


def test_folders_that_are_not_ours(trained: tuple[Path, Record], corpus: Corpus, tmp_path: Path) -> None:
    before = weights(trained[0])
    with pytest.raises(InputError, match="holds a finished model; name another folder, or pass --force"):
        train_model(PLAN, trained[0], corpus=corpus)
    assert weights(trained[0]) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file; name a folder"):
        train_model(PLAN, tmp_path / "file", corpus=corpus)
    for force in (False, True):
        with pytest.raises(InputError, match="holds something else; name a new folder"):
            train_model(PLAN, tmp_path, corpus=corpus, force=force)
    assert (tmp_path / "file").read_text() == "mine"


def test_force_trains_anew(corpus: Corpus, tmp_path: Path) -> None:
    short = replace(PLAN, steps=1)
    train_model(short, tmp_path / "m", corpus=corpus)
    train_model(replace(short, seed=5), tmp_path / "m", corpus=corpus, force=True)
    record = json.loads((tmp_path / "m" / "training.json").read_text(encoding="utf-8"))
    assert record["provenance"]["plan"]["seed"] == 5


def test_a_damaged_state_is_named(corpus: Corpus, tmp_path: Path) -> None:
    train_model(PLAN, tmp_path / "m", minutes=1e-9, corpus=corpus)
    file = tmp_path / "m" / UNFINISHED
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RatedistError, match=r"training\.partial\.pt cannot be read .*pass --force"):
        train_model(PLAN, tmp_path / "m", corpus=corpus)


def test_values_that_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="architecture = 'gpt5': unknown; choose one of qwen2, gemma3"):
        TrainingPlan("gpt5")
    for name, value in (("steps", 0), ("seed", -1), ("context", 1), ("batch", 0)):
        with pytest.raises(InputError, match=rf"{name} = {value}: must be at least"):
            TrainingPlan("qwen2", **{name: value})
    with pytest.raises(InputError, match="learning_rate = 0: must lie between 0 and 1"):
        TrainingPlan("qwen2", learning_rate=0)
    with pytest.raises(InputError, match="minutes = 0: must be positive; leave it out"):
        train_model(PLAN, tmp_path / "m", minutes=0, corpus=corpus)
    with pytest.raises(InputError, match=r"context = 100000: must be below \d+, the tokens of training"):
        train_model(replace(PLAN, context=100000), tmp_path / "m", corpus=corpus)
    assert not (tmp_path / "m" / "config.json").exists()
