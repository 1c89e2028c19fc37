"""Alpaca's and GSM8K's official files, and coresets of their records: what needs no tokenizer."""

import gzip
import json
import lzma

import numpy as np
import pytest
from tests.lab.support import run_command

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.instruct import choice
from infobatch.lab.tasks.instruct.choice import choose_records, features_of
from infobatch.lab.tasks.instruct.records import Record, final_answer, read_alpaca, read_gsm8k
from infobatch.lab.tasks.instruct.sequences import prompt

TOPICS = ("rivers of Europe", "prime numbers", "baking bread")


def alpaca_entries(count=60):
    return [
        {
            "instruction": f"Tell me fact {number} about {TOPICS[number % 3]}. ",
            "input": "In short." if number % 2 else "",
            "output": f"Fact {number}.",
        }
        for number in range(count)
    ]


def write_alpaca(folder, entries):
    (folder / "alpaca_data.json").write_text(json.dumps(entries))
    return folder


def write_gsm8k(folder, train, test, pack=lambda text: text.encode(), ending=""):
    for name, pairs in (("train", train), ("test", test)):
        lines = [json.dumps({"question": asked, "answer": answer}) for asked, answer in pairs]
        (folder / f"{name}.jsonl{ending}").write_bytes(pack("\n".join(lines) + "\n"))
    return folder


# ------------------------------------------------------------------ Alpaca


def test_a_tenth_of_alpaca_is_held_out_and_always_the_same(tmp_path):
    train, test = read_alpaca(write_alpaca(tmp_path, alpaca_entries()))
    assert (len(train), len(test)) == (54, 6)
    assert {record.output for record in train + test} == {f"Fact {n}." for n in range(60)}
    assert (train, test) == read_alpaca(tmp_path)
    (one,) = (record for record in train + test if record.output == "Fact 31.")
    assert one == Record("Tell me fact 31 about prime numbers.", "In short.", "Fact 31.")


def test_records_without_an_answer_are_left_out_and_counted(tmp_path, caplog):
    entries = alpaca_entries()
    entries[3]["output"] = " \n"
    entries[8]["instruction"] = ""
    train, test = read_alpaca(write_alpaca(tmp_path, entries))
    assert len(train + test) == 58
    assert "2 records without an instruction or an answer are left out" in caplog.text


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress])
def test_alpaca_may_be_packed_and_in_a_folder_of_its_name(pack, tmp_path):
    plain = read_alpaca(write_alpaca(tmp_path, alpaca_entries()))
    text = (tmp_path / "alpaca_data.json").read_bytes()
    (tmp_path / "alpaca_data.json").unlink()
    (tmp_path / "alpaca").mkdir()
    ending = {lzma.compress: "xz", gzip.compress: "gz"}[pack]
    (tmp_path / "alpaca" / f"alpaca_data.json.{ending}").write_bytes(pack(text))
    assert read_alpaca(tmp_path) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "a", "input"', "alpaca_data.json is not JSON"),
        ('{"instruction": "a"}', "must be one JSON list of records"),
        ('[{"instruction": "a", "output": "b"}]', "record 0: a record has instruction, input, ou"),
        ('[["a", "b", "c"]]', "record 0: a record has instruction, input, output, each a text"),
        (json.dumps(alpaca_entries(9)), "must hold at least ten records, got 9"),
    ],
)
def test_a_damaged_alpaca_is_refused_in_words(text, message, tmp_path):
    (tmp_path / "alpaca_data.json").write_text(text)
    with pytest.raises(LabError, match=message):
        read_alpaca(tmp_path)


def test_what_to_fetch_from_where_is_said_before_anything_else_is_needed(tmp_path):
    result = run_command("compare", "--task", "instruct", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "Download alpaca_data.json from https://github.com/tatsu-lab" in result.stderr
    with pytest.raises(LabError, match=r"no data of instruct found in .*grade-school"):
        read_gsm8k(tmp_path)


# ------------------------------------------------------------------ GSM8K


@pytest.mark.parametrize("ending", ["", ".xz", ".gz"])
def test_gsm8k_is_read_without_marks_for_a_calculator(ending, tmp_path):
    pack = {"": str.encode, ".xz": lambda t: lzma.compress(t.encode())}.get(
        ending, lambda t: gzip.compress(t.encode())
    )
    answer = "Half of 48 is 48/2 = <<48/2=24>>24.\n#### 24"
    write_gsm8k(tmp_path, [("How many?", answer)] * 3, [("And now?", answer)], pack, ending)
    train, test = read_gsm8k(tmp_path)
    assert train == [Record("How many?", "", "Half of 48 is 48/2 = 24.\n#### 24")] * 3
    assert [record.instruction for record in test] == ["And now?"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a", "answer": "24"}', 'train.jsonl, line 1: .* ends with "#### number"'),
        ('{"question": "", "answer": "#### 2"}', "train.jsonl, line 1: a question"),
        ('{"question": "a"}', "line 1: a record has question, answer, each a text"),
        ("[1]", "line 1: each line must be one JSON object"),
        ("", "train.jsonl holds no records"),
    ],
)
def test_a_damaged_gsm8k_is_refused_in_words(line, message, tmp_path):
    write_gsm8k(tmp_path, [], [("a", "#### 1")])
    (tmp_path / "train.jsonl").write_text(line + "\n")
    with pytest.raises(LabError, match=message):
        read_gsm8k(tmp_path)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 7.\n#### 7", "7"),
        ("#### 1,234 and #### 9", "1234"),
        ("#### -3.5.", "-3.5"),
        ("####  $12", "12"),
        ("the answer is 7", None),
        ("#### none", None),
    ],
)
def test_the_final_answer_is_the_number_behind_the_first_mark(text, answer):
    assert final_answer(text) == answer


# ------------------------------------------------------------------ prompts and coresets


def test_the_prompt_has_the_sections_of_stanford_alpaca():
    assert prompt(Record("Add.", "1, 2", "3")) == (
        "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n"
    )
    assert prompt(Record("Add 1, 2.", "", "3")) == "### Instruction:\nAdd 1, 2.\n\n### Response:\n"


def records(count=300):
    entries = alpaca_entries(count)
    return [Record(**{name: text.strip() for name, text in entry.items()}) for entry in entries]


@pytest.mark.parametrize("coreset", ["random:40", "dq:40"])
@pytest.mark.parametrize("part", [2000, 90])
def test_a_coreset_is_so_many_records_in_their_order_and_always_the_same(
    coreset, part, monkeypatch
):
    monkeypatch.setattr(choice, "PART", part)
    everything = records()
    chosen = choose_records(everything, coreset)
    places = [everything.index(record) for record in chosen]
    assert len(places) == 40
    assert places == sorted(set(places))
    assert choose_records(everything, coreset) == chosen
    assert choose_records(everything, "none") == everything


def test_chosen_records_can_be_written_as_a_file_of_alpaca_s(tmp_path):
    chosen = choose_records(records(), "dq:40")
    train, test = read_alpaca(write_alpaca(tmp_path, [vars(record) for record in chosen]))
    assert sorted(map(repr, train + test)) == sorted(map(repr, chosen))


def test_dq_sees_which_records_speak_of_the_same():
    everything = records(90)
    x = features_of(everything)
    distances = ((x[:, None] - x) ** 2).sum(2) + 1e9 * np.eye(len(x))
    nearest = distances.argmin(axis=1)
    assert (nearest % 3 == np.arange(90) % 3).mean() > 0.9  # by chance: a third


@pytest.mark.parametrize(
    ("coreset", "message"),
    [
        ("el2n:40", "coreset must be none, random:N or dq:N, got el2n:40"),
        ("dq", "coreset must be none, random:N or dq:N, got dq"),
        ("dq:1e3", "coreset must be none, random:N or dq:N, got dq:1e3"),
        ("random:301", "coreset must name 1 to 300 records, got 301"),
        ("dq:0", "coreset must name 1 to 300 records, got 0"),
    ],
)
def test_a_coreset_that_there_is_not_is_refused(coreset, message):
    with pytest.raises(LabError, match=message):
        choose_records(records(), coreset)
