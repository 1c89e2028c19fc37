"""Adult: 48,842 people of the US census of 1994, who earned more than 50,000 dollars and who less.

Becker and Kohavi, 1996, "Adult", UCI. Scikit-learn's encoders, fitted on the training part, and a
perceptron with two hidden layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn

from infobatch.lab.data import TaskData, TensorData
from infobatch.lab.datasets.adult import CLASSES, NUMBERS, Table, read_adult
from infobatch.lab.images import accuracy, cross_entropy
from infobatch.lab.task import Metric, Task

WIDTH = 64


def load(data_dir: Path | None) -> TensorData:
    """Every row as numbers of mean 0 and deviation 1, and a 1 for each of its categories.

    Mean, deviation and categories are those of the training part. A category that only the test
    part has is no category: a row of zeros.
    """
    train, test = read_adult(data_dir)
    scaler = StandardScaler().fit(_numbers(train))
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(train.words)

    def inputs(table: Table) -> Tensor:
        parts = (scaler.transform(_numbers(table)), encoder.transform(table.words))
        return torch.from_numpy(np.hstack(parts).astype(np.float32))

    return TensorData(
        inputs(train),
        torch.from_numpy(train.labels),
        inputs(test),
        torch.from_numpy(test.labels),
        CLASSES,
    )


def _numbers(table: Table) -> np.ndarray:
    """Gains and losses as logarithms: few people have any, and those have thousands."""
    numbers: np.ndarray = table.numbers.copy()
    capital = [list(NUMBERS).index(name) for name in ("capital-gain", "capital-loss")]
    numbers[:, capital] = np.log1p(numbers[:, capital])
    return numbers


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
    threads=1,  # so small a network only waits for a second one
    models=("mlp",),
    load=load,
    build=build,
    prepare=lambda rows, targets, _generator, _training: (rows, targets),
    loss=cross_entropy,
    evaluate=accuracy,
    metric=Metric(margin=0.5),
    optimizer="adamw",
    weight_decay=1e-2,
    label_smoothing=0.0,
    batch_of_test=4096,
    by_class_logits=True,
)
