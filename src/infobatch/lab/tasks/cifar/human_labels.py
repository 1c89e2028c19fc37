"""CIFAR-10N: the labels that people gave to CIFAR-10's training images.

Wei et al., Learning with Noisy Labels Revisited, ICLR 2022, arXiv 2110.12088.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infobatch.lab.errors import LabError

NAMES = {
    "aggregate": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worst": "worse_label",
}
"""What `--label-noise` calls them, and what the file does; 9, 17, 18, 18 and 40% are wrong."""

_DAMAGED = (
    *(KeyError, IndexError, ValueError, TypeError, OSError, EOFError, RuntimeError),
    pickle.UnpicklingError,
)
_SITE = "https://github.com/UCSC-REAL/cifar-10-100n"


def read_human_labels(data_dir: Path | None, name: str) -> Tensor:
    """Labels (50,000,) int64 in the official order of CIFAR-10's training set.

    The folder holds CIFAR-10_human.pt, the official file, or cifar10n.npz with its arrays.
    """
    folder = Path() if data_dir is None else data_dir if data_dir.is_dir() else data_dir.parent
    for file, read in (("CIFAR-10_human.pt", _from_torch), ("cifar10n.npz", _from_numpy)):
        path = folder / file
        if path.is_file():
            try:
                labels = np.asarray(read(path, NAMES[name])).astype(np.int64)
            except _DAMAGED as error:
                raise LabError(f"{path} is not CIFAR-10N's file of labels ({error})") from error
            if labels.shape != (50_000,) or labels.min() < 0 or labels.max() > 9:
                raise LabError(
                    f"{path}: {NAMES[name]} must be 50,000 labels 0 to 9, got {labels.shape}"
                )
            return torch.from_numpy(labels)
    raise LabError(
        f"--label-noise {name} needs CIFAR-10N: put data/CIFAR-10_human.pt of {_SITE} into {folder}"
    )


def _from_torch(path: Path, name: str) -> np.ndarray:
    plain: list[Any] = [np.ndarray, np.dtype, np.zeros(0).__reduce__()[0]]
    plain += [type(np.dtype(kind)) for kind in (np.int64, np.uint8)]
    with torch.serialization.safe_globals(plain):
        return np.asarray(torch.load(path, weights_only=True)[name])


def _from_numpy(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        return np.asarray(file[name])
