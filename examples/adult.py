"""Tabular data: scikit-learn's encoders, a perceptron in PyTorch, and InfoBatch in three lines.

    python examples/adult.py --data-dir FOLDER    # with UCI's adult.data and adult.test
    python examples/adult.py                      # without: a generated table

Needs scikit-learn. Prints the accuracy on the test part and what was saved.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.compose import make_column_transformer
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch.utils.data import DataLoader, TensorDataset

from infobatch import InfoBatch

NUMBERS = [0, 4, 10, 11, 12]  # of Adult's columns; the others but 2 are categories
WORDS = [1, 3, 5, 6, 7, 8, 9, 13]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data-dir", type=Path)
parser.add_argument("--epochs", type=int, default=10)
args = parser.parse_args()


def rows(path):
    with path.open(newline="") as file:
        return [row for row in csv.reader(file, skipinitialspace=True) if len(row) == 15]


if args.data_dir:
    train, test = (np.array(rows(args.data_dir / name)) for name in ("adult.data", "adult.test"))
    encode = make_column_transformer(
        (StandardScaler(), NUMBERS),
        (OneHotEncoder(handle_unknown="ignore"), WORDS),
        sparse_threshold=0,
    )
    train_x, test_x = encode.fit_transform(train), encode.transform(test)
    train_y, test_y = (np.char.startswith(part[:, 14], ">50K") for part in (train, test))
else:
    x, y = make_classification(6000, 20, n_informative=8, flip_y=0.1, random_state=0)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=1 / 3, random_state=0)


def tensors(x, y):
    return TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.long))


train_set, test_set = tensors(train_x, train_y), tensors(test_x, test_y)
torch.manual_seed(0)
model = torch.nn.Sequential(
    *(torch.nn.Linear(train_x.shape[1], 64), torch.nn.ReLU()),
    *(torch.nn.Linear(64, 64), torch.nn.ReLU()),
    torch.nn.Linear(64, 2),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

pruner = InfoBatch(train_set, num_epochs=args.epochs)  # 1
loader = DataLoader(train_set, batch_size=256, sampler=pruner.sampler)  # 2: was shuffle=True

for _ in range(args.epochs):
    for x, y in loader:
        losses = F.cross_entropy(model(x), y, reduction="none")
        loss = pruner.update(losses)  # 3: was losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

with torch.no_grad():
    x, y = test_set.tensors
    accuracy = (model(x).argmax(1) == y).float().mean()
print(f"test accuracy: {100 * accuracy:.2f}%")
print(pruner.summary())
