"""Adult: 48,842 people of the US census of 1994, who earned more than 50,000 dollars and who less.

Becker and Kohavi, 1996, "Adult", UCI, also called Census Income. Scikit-learn's encoders, fitted
on the training part, and a perceptron with two hidden layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.data import TaskData, TensorData, plain
from infobatch.lab.tasks.base.files import find_texts, read_lines, search
from infobatch.lab.tasks.base.images import accuracy, cross_entropy
from infobatch.lab.tasks.base.task import Task

CLASSES = ("<=50K", ">50K")
NUMBERS = {
    "age": 0,
    "education-num": 4,
    "capital-gain": 10,
    "capital-loss": 11,
    "hours-per-week": 12,
}
"""Columns that are numbers, but for fnlwgt: how many people a row stands for is no feature."""
WORDS = (1, 3, 5, 6, 7, 8, 9, 13)
"""Columns that are categories: workclass, education, marital-status, occupation, relationship,
race, sex, native-country; "?", a missing value, is one of the categories."""
WIDTH = 64

_CAPITAL = [2, 3]  # of the numbers
_FIELDS = 15
_HOW_TO_GET = (
    "Download adult.zip from https://archive.ics.uci.edu/dataset/2/adult, put its adult.data and "
    "adult.test into {folder}, plain or packed as .xz or .gz, and give --data-dir {folder}."
)


# ------------------------------------------------------------------ data


@dataclass(frozen=True)
class Table:
    """Numbers (N, 5) float64, words (N, 8) of text, and labels (N,) int64, 1 above 50,000."""

    numbers: np.ndarray
    words: np.ndarray
    labels: np.ndarray


def read_adult(data_dir: Path | None) -> tuple[Table, Table]:
    """Training and test part: adult.data and adult.test in a folder, or in adult/ there.

    The official files have no header but a remark at the top of the test file, and there a full
    stop behind each label.
    """

    def find(folder: Path) -> list[Path] | None:
        return find_texts(folder, "adult.data", "adult.test")

    train, test = search("adult", data_dir, _HOW_TO_GET, find, "adult")
    return _read(train), _read(test)


def _read(path: Path) -> Table:
    numbers, words, labels = [], [], []
    for line_number, line in read_lines(path):
        if line.startswith("|"):
            continue  # the remark
        place = f"{path}, line {line_number}"
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != _FIELDS:
            raise LabError(
                f"{place}: a row has {_FIELDS} fields separated by commas, got {len(fields)}"
            )
        numbers.append([_number(fields[at], place) for at in NUMBERS.values()])
        words.append([fields[at] for at in WORDS])
        label = fields[-1].removesuffix(".")
        if label not in CLASSES:
            raise LabError(
                f"{place}: the last field must be one of {' and '.join(CLASSES)}, "
                f"got {fields[-1]!r}"
            )
        labels.append(CLASSES.index(label))
    if not labels:
        raise LabError(f"{path} holds no rows")
    return Table(np.array(numbers), np.array(words), np.array(labels, dtype=np.int64))


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise LabError(f"{place}: {', '.join(NUMBERS)} must be numbers from 0 up, got {text!r}")
    return value


def load(data_dir: Path | None) -> TensorData:
    """Every row as numbers of mean 0 and deviation 1, and a 1 for each of its categories.

    Mean, deviation and categories are those of the training part. A category that only the test
    part has becomes a row of zeros.
    """
    train, test = read_adult(data_dir)
    scaler = StandardScaler().fit(_numbers(train))
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(train.words)

    def tensors(table: Table) -> tuple[Tensor, Tensor]:
        parts = (scaler.transform(_numbers(table)), encoder.transform(table.words))
        inputs = np.hstack(parts).astype(np.float32)
        return torch.from_numpy(inputs), torch.from_numpy(table.labels)

    return TensorData(*tensors(train), *tensors(test), CLASSES)


def _numbers(table: Table) -> np.ndarray:
    """Gains and losses as logarithms: few people have any, and those have thousands."""
    numbers: np.ndarray = table.numbers.copy()
    numbers[:, _CAPITAL] = np.log1p(numbers[:, _CAPITAL])
    return numbers


# ------------------------------------------------------------------ task


def build(_name: str, width: int | None, data: TaskData) -> nn.Module:
    """Two hidden layers; 11 thousand parameters at width 64."""
    features = cast(TensorData, data).train_inputs.shape[1]
    hidden = WIDTH if width is None else width
    return nn.Sequential(
        *(nn.Linear(features, hidden), nn.ReLU()),
        *(nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, len(CLASSES)),
    )


TASK = Task(
    name="adult",
    description="Adult (census income), 48,842 rows of 13 columns, 2 classes",
    epochs=10,
    batch_size=256,
    lr=4e-3,
    model="mlp",
    models=("mlp",),
    load=load,
    build=build,
    prepare=plain,
    loss=cross_entropy,
    evaluate=accuracy,
    weight_decay=1e-2,
    batch_of_test=4096,
    by_class_logits=True,
)
