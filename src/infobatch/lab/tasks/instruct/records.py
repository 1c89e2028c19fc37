"""Instructions with answers: Stanford Alpaca (Taori et al., 2023) and GSM8K (Cobbe et al., 2021).

Alpaca's official alpaca_data.json is one list of records; GSM8K's official train.jsonl and
test.jsonl have one a line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.files import find_texts, read_jsonl, read_text, search

_log = logging.getLogger(__name__)

HELD_OUT = 1000
"""Records of Alpaca, which has no test set, that are held out; a tenth where it is less."""

_HOW_TO_GET = (
    "Download {files} from {site} into {{folder}}, plain or packed as .xz or .gz, and give "
    "--data-dir {{folder}}."
)
_ALPACA = _HOW_TO_GET.format(
    files="alpaca_data.json", site="https://github.com/tatsu-lab/stanford_alpaca"
)
_GSM8K = _HOW_TO_GET.format(
    files="train.jsonl and test.jsonl",
    site="https://github.com/openai/grade-school-math (grade_school_math/data)",
)
# Marks for a calculator, such as <<48/2=24>>: there is none here.
_MARKS = re.compile(r"<<[^<>\n]*>>")
_FINAL = re.compile(r"#### *\$?(-?[\d.,]*\d)")


@dataclass(frozen=True)
class Record:
    """What is asked, what it is asked about (often nothing), and the answer."""

    instruction: str
    input: str
    output: str

    @property
    def text(self) -> str:
        return "\n".join((self.instruction, self.input, self.output))


def final_answer(text: str) -> str | None:
    """The number behind the first "####", without commas; None where there is none."""
    found = _FINAL.search(text)
    return found.group(1).replace(",", "") if found else None


def read_alpaca(data_dir: Path | None) -> tuple[list[Record], list[Record]]:
    """Training and held-out records, from alpaca_data.json in a folder, or in alpaca/ there.

    The held-out ones are drawn once and always the same. Records without an instruction or an
    answer are left out, and a warning with their number logged.
    """
    (path,) = search(
        "instruct", data_dir, _ALPACA, lambda at: find_texts(at, "alpaca_data.json"), "alpaca"
    )
    try:
        entries = json.loads(read_text(path))
    except ValueError as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{path} is not JSON ({error})") from error
    if not isinstance(entries, list):
        raise LabError(f"{path} must be one JSON list of records")
    records = []
    for number, entry in enumerate(entries):
        values = _texts(entry, ("instruction", "input", "output"), f"{path}, record {number}")
        if values[0] and values[2]:
            records.append(Record(*values))
    if blank := len(entries) - len(records):
        _log.warning("%s: %d records without an instruction or an answer are left out", path, blank)
    if len(records) < 10:
        raise LabError(f"{path} must hold at least ten records, got {len(records)}")
    held_out = min(HELD_OUT, len(records) // 10)
    order = np.random.default_rng(0).permutation(len(records))
    test, train = (sorted(part.tolist()) for part in np.split(order, [held_out]))
    return [records[at] for at in train], [records[at] for at in test]


def read_gsm8k(data_dir: Path | None) -> tuple[list[Record], list[Record]]:
    """Training and test part, from train.jsonl and test.jsonl in a folder, or in gsm8k/ there."""

    def find(folder: Path) -> list[Path] | None:
        return find_texts(folder, "train.jsonl", "test.jsonl")

    train, test = search("instruct", data_dir, _GSM8K, find, "gsm8k")
    return _gsm8k_part(train), _gsm8k_part(test)


def _gsm8k_part(path: Path) -> list[Record]:
    records = []
    for number, entry in read_jsonl(path):
        place = f"{path}, line {number}"
        question, answer = _texts(entry, ("question", "answer"), place)
        if not question or final_answer(answer) is None:
            raise LabError(f'{place}: a question, and an answer that ends with "#### number"')
        records.append(Record(question, "", _MARKS.sub("", answer)))
    if not records:
        raise LabError(f"{path} holds no records")
    return records


def _texts(entry: Any, names: Sequence[str], place: str) -> list[str]:
    """The values of these names, stripped."""
    values = [entry.get(name) for name in names] if isinstance(entry, dict) else []
    texts = [value.strip() for value in values if isinstance(value, str)]
    if len(texts) < len(names):
        raise LabError(f"{place}: a record has {', '.join(names)}, each a text")
    return texts
