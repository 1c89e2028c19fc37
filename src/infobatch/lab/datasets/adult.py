"""Adult, also called Census Income: who earned more than 50,000 dollars in 1994 (Becker, Kohavi).

The official adult.data and adult.test: comma-separated, no header but a remark at the top of the
test file, labels of the test file with a full stop behind them, "?" where a value is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infobatch.lab.datasets.files import find_text, read_lines
from infobatch.lab.errors import LabError

CLASSES = ("<=50K", ">50K")
NUMBERS = {
    "age": 0,
    "education-num": 4,
    "capital-gain": 10,
    "capital-loss": 11,
    "hours-per-week": 12,
}
"""Columns that are numbers, but for fnlwgt: how many people a row stands for is no feature."""
WORDS = {
    "workclass": 1,
    "education": 3,
    "marital-status": 5,
    "occupation": 6,
    "relationship": 7,
    "race": 8,
    "sex": 9,
    "native-country": 13,
}
"""Columns that are categories; "?" is one of them."""

_FIELDS = 15
_SITE = "https://archive.ics.uci.edu/dataset/2/adult"


@dataclass(frozen=True)
class Table:
    """Numbers (N, 5) float64, words (N, 8) of text, and labels (N,) int64, 1 above 50,000."""

    numbers: np.ndarray
    words: np.ndarray
    labels: np.ndarray


def read_adult(data_dir: Path | None) -> tuple[Table, Table]:
    """Training and test part, from adult.data and adult.test in a folder, or in adult/ there.

    Raises:
        LabError: a file is missing (the message says what to fetch from where) or damaged.
    """
    if data_dir is None:
        raise LabError(f"adult needs --data-dir. {_how_to_get(Path('data'))}")
    for folder in (data_dir, data_dir / "adult"):
        train, test = find_text(folder, "adult.data"), find_text(folder, "adult.test")
        if train is not None and test is not None:
            return _read(train), _read(test)
    raise LabError(
        f"no adult.data beside an adult.test found in {data_dir}. {_how_to_get(data_dir)}"
    )


def _how_to_get(folder: Path) -> str:
    return (
        f"Download adult.zip from {_SITE}, put its adult.data and adult.test into {folder}, plain "
        f"or packed as .xz or .gz, and give --data-dir {folder}."
    )


def _read(path: Path) -> Table:
    numbers, words, labels = [], [], []
    for line_number, line in read_lines(path):
        if line.startswith("|"):
            continue  # the remark at the top of adult.test
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != _FIELDS:
            raise LabError(
                f"{path}, line {line_number}: a row has {_FIELDS} fields separated by commas, "
                f"got {len(fields)}"
            )
        numbers.append([_number(fields[at], path, line_number) for at in NUMBERS.values()])
        words.append([fields[at] for at in WORDS.values()])
        label = fields[-1].removesuffix(".")
        if label not in CLASSES:
            raise LabError(
                f"{path}, line {line_number}: the last field must be one of "
                f"{' and '.join(CLASSES)}, got {fields[-1]!r}"
            )
        labels.append(CLASSES.index(label))
    if not labels:
        raise LabError(f"{path} holds no rows")
    return Table(np.array(numbers), np.array(words), np.array(labels, dtype=np.int64))


def _number(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        names = ", ".join(NUMBERS)
        raise LabError(f"{path}, line {line}: {names} must be numbers from 0 up, got {text!r}")
    return value
