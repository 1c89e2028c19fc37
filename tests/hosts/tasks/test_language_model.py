"""Any text is cut into sequences that lose no held-out token; every kind of arm trains on them."""

import gzip
import json
import logging
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.lab.support import run_command, run_example_here

from infobatch.lab.errors import LabError
from infobatch.lab.run.results import read_results
from infobatch.lab.run.settings import Settings
from infobatch.lab.run.train import initial_model
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.base.text import IGNORED, SPECIAL, train_tokenizer
from infobatch.lab.tasks.language_model import load, loss
from infobatch.lab.tasks.language_model.corpora import read_corpus

TASK = all_tasks()["language-model"]
ARMS = "infobatch,infobatch-quantile,random,kakurenbo,es,selective-backprop"
WORDS = ("the king", "the queen", "speaks of", "dreams of", "caf\u00e9", "a horse", "war")


def play(lines: int, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return "".join(" ".join(rng.choice(WORDS, 5)) + ".\n" for _ in range(lines))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "tinyshakespeare.txt").write_text(play(300), encoding="utf-8")
    return folder


def compare(texts, out, *arguments):
    return run_command(
        *("compare", "--task", "language-model", "--data-dir", str(texts), "--seeds", "1"),
        *("--option", "vocabulary=300", "--option", "length=16", "--width", "16"),
        *("--out", str(out), *arguments),
    )


def write_documents(path: Path, documents: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))


# ------------------------------------------------------------------ the corpus


def test_of_one_text_the_last_tenth_is_held_out_from_the_start_of_a_line(texts):
    (train,), (held_out,) = read_corpus(texts, "tinyshakespeare")
    assert train + held_out == play(300)
    assert train.endswith(".\n")
    assert 0.09 < len(held_out) / 0.1 / len(train + held_out) / 10 <= 0.1


def test_of_ten_documents_or_more_every_tenth_is_held_out(tmp_path):
    documents = [f"document {number}" for number in range(25)]
    write_documents(tmp_path / "brown.jsonl", documents)
    train, held_out = read_corpus(tmp_path, "brown")
    assert held_out == [documents[9], documents[19]]
    assert train == documents[:9] + documents[10:19] + documents[20:]


@pytest.mark.parametrize(
    ("corpus", "train_name", "test_name"),
    [
        ("wikitext2", "wiki.train.tokens", "wiki.test.tokens"),
        ("wikitext2", "train.txt", "test.txt"),
        ("mine", "mine_train.txt", "mine_test.jsonl"),
    ],
)
def test_a_split_that_is_there_is_taken(corpus, train_name, test_name, tmp_path):
    (tmp_path / train_name).write_text("to train\n")
    if test_name.endswith("jsonl"):
        write_documents(tmp_path / test_name, ["to test"])
    else:
        (tmp_path / test_name).write_text("to test")
    assert read_corpus(tmp_path, corpus) == (["to train\n"], ["to test"])


@pytest.mark.parametrize("form", ["input.txt", "file", ".xz", ".gz"])
def test_every_form_of_a_text_is_read_alike(form, texts, tmp_path):
    plain, name = texts / "tinyshakespeare.txt", "tinyshakespeare.txt"
    raw, data_dir = plain.read_bytes(), tmp_path
    if form == "file":
        data_dir = plain
    elif form == "input.txt":
        (tmp_path / form).write_bytes(raw)
    else:
        pack = lzma.compress if form == ".xz" else gzip.compress
        (tmp_path / f"{name}{form}").write_bytes(pack(raw))
    assert read_corpus(data_dir, "tinyshakespeare") == read_corpus(texts, "tinyshakespeare")


def test_empty_documents_are_left_out_and_counted(tmp_path, caplog):
    write_documents(tmp_path / "brown.jsonl", ["one\ntwo\n" * 9, " ", ""])
    with caplog.at_level(logging.WARNING):
        train, held_out = read_corpus(tmp_path, "brown")
    assert len(train) == len(held_out) == 1
    assert "2 empty documents left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("brown.txt", b"", "holds no text"),
        ("brown.txt", b"one line and nothing else", "lines of which the last tenth"),
        ("brown.txt", b"\xff\xfe\xff", "is not a readable text file"),
        ("brown.txt.xz", lzma.compress(b"text\n" * 99)[:40], "is not a readable text file"),
        ("brown.jsonl", b'{"text": "a"}\n{"body": "b"}\n', 'line 2: "text" must be a document'),
        ("brown.jsonl", b'{"text": "a"}\nb\n', "line 2: each line must be one JSON object"),
    ],
)
def test_what_is_no_corpus_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabError, match=message):
        read_corpus(tmp_path, "brown")


@pytest.mark.parametrize("corpus", ["tinyshakespeare", "brown", "wikitext2", "mine"])
def test_what_is_missing_is_said_with_what_to_put_there(corpus, tmp_path):
    for folder in (None, tmp_path, tmp_path / "missing"):
        with pytest.raises(LabError, match=f"Put {corpus}.txt or {corpus}.jsonl") as caught:
            read_corpus(folder, corpus)
        assert ("Get it from https" in str(caught.value)) == (corpus != "mine")


# ------------------------------------------------------------------ sequences


def encoded(documents: list[str], train: list[str], vocabulary: int) -> list[int]:
    tokenizer = train_tokenizer(train, vocabulary)
    return [n for text in documents for n in (SPECIAL, *tokenizer.encode(text).ids)]


@pytest.mark.parametrize("length", [16, 17])
def test_sequences_are_the_text_and_every_held_out_token_counts_once(length, tmp_path):
    documents = [play(4, seed) for seed in range(20)]
    write_documents(tmp_path / "brown.jsonl", documents)
    data = load(tmp_path, "brown", 300, length)
    train, held_out = read_corpus(tmp_path, "brown")

    tokens = encoded(train, train, 300)
    whole = len(data) * length
    assert 0 <= len(tokens) - 1 - whole < length
    assert data.train_inputs.flatten().tolist() == tokens[:whole]
    assert data.train_targets.flatten().tolist() == tokens[1 : whole + 1]

    tokens = encoded(held_out, train, 300)
    counted = data.test_targets != IGNORED
    assert data.test_inputs[counted].tolist() == tokens[:-1]
    assert data.test_targets[counted].tolist() == tokens[1:]
    assert data.test_bytes == len("".join(held_out).encode())
    assert 257 < data.vocabulary <= 300
    assert data.labels is None


def test_a_text_shorter_than_a_sequence_is_refused(texts):
    with pytest.raises(LabError, match="must have more tokens than --option length, 100000"):
        load(texts, "tinyshakespeare", 300, 100_000)


def model_and_data(texts, **changes):
    data = load(texts, "tinyshakespeare", 300, 16)
    given = {"width": 16, "device": "cpu", "data": "", **changes}
    return initial_model(TASK, Settings.of_task(TASK, given), data, 0).eval(), data


def test_a_sample_s_loss_is_what_transformers_says_of_it_alone(texts):
    model, data = model_and_data(texts)
    inputs, targets = TASK.prepare(data.train_inputs[:5], data.train_targets[:5], None, True)
    with torch.no_grad():
        losses = loss(model(**inputs), targets, 0.0)
        for row, target, found in zip(inputs["input_ids"], targets, losses, strict=True):
            whole = torch.cat([row, target[-1:]])[None]
            torch.testing.assert_close(model(input_ids=whole, labels=whole).loss, found)
    assert losses.shape == (5,)
    assert losses.dtype == torch.float32


def test_the_metric_weighs_tokens_alike_and_bits_are_per_byte_of_text(texts):
    model, data = model_and_data(texts)

    class Run:
        def test_outputs(self):
            for start in range(0, len(data.test_inputs), 3):
                part = slice(start, start + 3)
                rows = TASK.prepare(data.test_inputs[part], data.test_targets[part], None, False)
                with torch.no_grad():
                    yield model(**rows[0]), rows[1]

    run = Run()
    run.data = data
    outcome = TASK.evaluate(run)
    nats = []
    with torch.no_grad():
        for inputs, targets in zip(data.test_inputs, data.test_targets, strict=True):
            chances = model(input_ids=inputs[None].long()).logits[0].log_softmax(1)
            nats += [
                -float(chances[place, target])
                for place, target in enumerate(targets.tolist())
                if target != IGNORED
            ]
    assert len(nats) % 16, "the last sequence must be padded for this to show anything"
    assert outcome.metric == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    held_out = read_corpus(texts, "tinyshakespeare")[1][0]
    bits = sum(nats) / math.log(2) / len(held_out.encode())
    assert outcome.more["bits per byte"] == pytest.approx(bits, rel=1e-5)
    assert outcome.more["perplexity"] == pytest.approx(math.exp(outcome.metric))
    assert outcome.worst_class is None


# ------------------------------------------------------------------ arms


def test_every_kind_of_arm_runs(texts, tmp_path):
    result = compare(
        texts,
        tmp_path,
        "--arms",
        f"full,{ARMS}",
        "--epochs",
        "4",
        "--batch-size",
        "40",
        "--cost",
        "0.8",
    )
    assert result.exit_code == 0, result.output
    full, *others = read_results(tmp_path)
    assert len(others) == len(ARMS.split(","))
    for other in others:
        assert full.cost_fraction == 1 > other.cost_fraction
        assert 0 < other.metric < math.log(300) + 1
        assert other.more["bits per byte"] > 0


def test_it_learns(texts, tmp_path):
    result = compare(texts, tmp_path, "--arms", "full", "--batch-size", "8", "--lr", "0.01")
    assert result.exit_code == 0, result.output
    (run,) = read_results(tmp_path)
    train, held_out = read_corpus(texts, "tinyshakespeare")
    tokens = torch.tensor(encoded(train, train, 300)).bincount(minlength=300) + 1.0
    alone = -(tokens / tokens.sum()).log()[encoded(held_out, train, 300)[1:]].mean()
    assert run.metric < 0.8 * alone, "it must beat the frequencies of tokens"
    assert run.settings.options["corpus"] == "tinyshakespeare"
    assert run.curves.metric[-1] < run.curves.metric[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--option", "vocabulary=256"), "vocabulary must be a whole number from 257 up, got 256"),
        (("--option", "length=0"), "length must be a whole number from 1 up, got 0"),
        (("--option", "corpus=other"), "no data of language-model with corpus other found"),
        (("--width", "12"), "--width must be a multiple of 8"),
    ],
)
def test_what_cannot_be_is_refused(words, message, texts, tmp_path):
    result = compare(texts, tmp_path, "--arms", "full", *words)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False])
def test_the_example_runs(given, texts):
    words = ["--data-dir", str(texts), "--length", "16", "--epochs", "2"] if given else []
    output = run_example_here("language_model.py", *words)
    assert float(output.rpartition("held-out loss: ")[2].split()[0]) < 0.9 * math.log(1024)
    assert "sample passes saved" in output
