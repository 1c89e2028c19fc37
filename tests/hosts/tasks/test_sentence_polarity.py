"""Sentence polarity is read in both forms or refused in words; every kind of arm trains on it."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from tests.lab.support import run_command, run_example_here

from infobatch.lab.errors import LabError
from infobatch.lab.run.results import read_results
from infobatch.lab.run.settings import Settings
from infobatch.lab.run.train import initial_model
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.base.text import SPECIAL, train_tokenizer
from infobatch.lab.tasks.sentence_polarity import read_sentence_polarity

TASK = all_tasks()["sentence-polarity"]
ARMS = "infobatch,infobatch-quantile,random,kakurenbo,es,importance-sampling,static-el2n"
SMALL = ("--option", "vocabulary=300", "--option", "length=20", "--width", "8")


def sentences(count: int, mood: int) -> list[str]:
    """Of three to six words, one of which tells; some hold a character that looks like a break."""
    rng = np.random.default_rng(mood)
    other = ["the", "film", "was", "caf\u00e9", "really", "a\u0085b", "plot"]
    found = []
    for _ in range(count):
        words = list(rng.choice(other, rng.integers(2, 6)))
        words.insert(rng.integers(len(words)), ["dreadful", "wonderful"][mood])
        found.append(" ".join(words))
    return found


KIND, UNKIND = sentences(60, 1), sentences(50, 0)


def write_official(folder: Path, kind=KIND, unkind=UNKIND) -> Path:
    """Lines end in a blank, as the official ones do."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, texts in (("pos", kind), ("neg", unkind)):
        text = "".join(f"{line} \n" for line in texts)
        (folder / f"rt-polarity.{name}").write_text(text, encoding="latin-1")
    return folder


def write_jsonl(path: Path, entries=None) -> Path:
    if entries is None:
        entries = [{"label": 1, "text": text} for text in KIND]
        entries += [{"label": 0, "text": text} for text in UNKIND]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_bytes(lzma.compress(lines.encode()) if path.suffix == ".xz" else lines.encode())
    return path.parent


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("reviews"))


def compare(reviews, out, *arguments):
    return run_command(
        *("compare", "--task", "sentence-polarity", "--data-dir", str(reviews), "--seeds", "1"),
        *(*SMALL, "--out", str(out), *arguments),
    )


@pytest.mark.parametrize("form", ["rt-polaritydata", "jsonl", "jsonl.xz"])
def test_every_form_gives_the_same_data(form, reviews, tmp_path):
    if form == "rt-polaritydata":
        write_official(tmp_path / form)
    else:
        write_jsonl(tmp_path / f"sentence_polarity.{form}")
    texts, labels = read_sentence_polarity(tmp_path)
    assert texts == KIND + UNKIND
    assert labels == [1] * 60 + [0] * 50
    assert TASK.load(tmp_path).fingerprint() == TASK.load(reviews).fingerprint()


def test_the_split_is_stratified_and_four_to_one(reviews):
    data = TASK.load(reviews)
    assert data.train_targets.bincount().tolist() == [40, 48]
    assert data.test_targets.bincount().tolist() == [10, 12]
    assert data.class_names == ("negative", "positive")


def test_the_tokenizer_has_seen_the_training_part_alone(reviews, tmp_path):
    data, texts = TASK.load(reviews), KIND + UNKIND
    numbers, labels = range(len(texts)), [1] * 60 + [0] * 50
    _, test = train_test_split(numbers, test_size=0.2, random_state=0, stratify=labels)
    for number in test:
        texts[number] = f"zyzzyva {texts[number]} zyzzyva"
    other = TASK.load(write_official(tmp_path, texts[:60], texts[60:]))
    assert torch.equal(data.train_inputs, other.train_inputs)
    assert not torch.equal(data.test_inputs, other.test_inputs)


def test_a_tokenizer_is_the_same_every_time_and_special_comes_out_of_no_text():
    first, second = (train_tokenizer(KIND + UNKIND, 400) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.get_vocab_size() <= 400
    assert first.id_to_token(SPECIAL) == "<|special|>"
    assert SPECIAL not in first.encode("a <|special|> b").ids
    assert first.decode(first.encode("a <|special|> b").ids) == "a <|special|> b"


def test_padding_changes_no_output(reviews):
    data = TASK.load(reviews)
    settings = Settings.of_task(TASK, {"width": 8, "device": "cpu", "data": ""})
    model = initial_model(TASK, settings, data, 0).eval()
    rows = data.train_inputs[:30]
    with torch.no_grad():
        together = model(rows.long())
        for number, row in enumerate(rows):
            cut, _ = TASK.prepare(row[None], data.train_targets[:1], None, False)
            assert SPECIAL not in cut
            torch.testing.assert_close(model(cut)[0], together[number])


def test_batches_are_cut_where_their_longest_sentence_ends(reviews):
    data = TASK.load(reviews)
    inputs, targets = TASK.prepare(data.train_inputs[:8], data.train_targets[:8], None, True)
    assert inputs.dtype == torch.long
    assert inputs.shape == (8, int((data.train_inputs[:8] != SPECIAL).sum(1).max()))
    assert torch.equal(targets, data.train_targets[:8])


def test_every_kind_of_arm_runs(reviews, tmp_path):
    result = compare(
        reviews,
        tmp_path,
        "--arms",
        f"full,{ARMS}",
        "--epochs",
        "4",
        "--batch-size",
        "22",
        "--cost",
        "0.8",
    )
    assert result.exit_code == 0, result.output
    full, *others = read_results(tmp_path)
    assert len(others) == len(ARMS.split(","))
    for other in others:
        assert full.cost_fraction == 1 > other.cost_fraction
        assert 0 <= other.worst_class <= other.metric <= 100


def test_it_learns(reviews, tmp_path):
    small = ("--epochs", "12", "--batch-size", "8", "--lr", "0.01")
    result = compare(reviews, tmp_path, "--arms", "full", *small)
    assert result.exit_code == 0, result.output
    (run,) = read_results(tmp_path)
    assert run.metric > 90
    assert run.settings.options == {"vocabulary": "300", "length": "20"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"label": 2, "text": "good"}, 'line 2: "text" must be a sentence and "label" 0 or 1'),
        ({"label": 1, "text": " "}, 'line 2: "text" must be a sentence'),
        ({"label": 1}, 'line 2: "text" must be a sentence .* got None and 1'),
        (["good", 1], "line 2: each line must be one JSON object"),
    ],
)
def test_a_line_that_is_no_sentence_is_refused(entry, message, tmp_path):
    write_jsonl(tmp_path / "sentence_polarity.jsonl", [{"label": 1, "text": "fine"}, entry])
    with pytest.raises(LabError, match=message):
        read_sentence_polarity(tmp_path)


def test_damaged_files_and_classes_that_are_too_small_are_refused(tmp_path):
    path = tmp_path / "sentence_polarity.jsonl.xz"
    write_jsonl(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LabError, match=r"sentence_polarity\.jsonl\.xz is not a readable text file"):
        read_sentence_polarity(tmp_path)
    write_official(tmp_path, KIND, UNKIND[:4])
    with pytest.raises(LabError, match="at least 5 sentences of each class, got 4"):
        read_sentence_polarity(tmp_path)


@pytest.mark.parametrize("place", [None, "missing", "half"])
def test_what_is_missing_is_said_with_where_to_get_it(place, tmp_path):
    if place == "half":
        (write_official(tmp_path / "half") / "rt-polarity.neg").unlink()
    with pytest.raises(LabError, match=r'Download "sentence polarity dataset v1\.0" from https'):
        read_sentence_polarity(None if place is None else tmp_path / place)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--option", "vocabulary=256"), "vocabulary must be a whole number from 257 up, got 256"),
        (("--option", "length=long"), "length must be a whole number from 1 up, got long"),
        (("--width", "6"), "--width must be a multiple of 4"),
    ],
)
def test_what_cannot_be_is_refused(words, message, reviews, tmp_path):
    result = compare(reviews, tmp_path, "--arms", "full", *words)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False])
def test_the_example_runs(given, reviews):
    words = ["--data-dir", str(reviews), "--epochs", "8"] if given else []
    output = run_example_here("sentence_polarity.py", *words)
    assert float(output.rpartition("test accuracy: ")[2].split("%")[0]) > 65
    assert "sample passes saved" in output
