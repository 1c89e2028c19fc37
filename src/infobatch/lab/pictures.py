"""Pictures for tasks that learn from images alone: built in, or from `--data-dir`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infobatch.lab.data import TensorData
from infobatch.lab.errors import LabError
from infobatch.lab.images import ImageInputs
from infobatch.lab.task import Option, Task
from infobatch.lab.tasks import cifar10, digits

PICTURES: Mapping[str, Task] = {"digits": digits.TASK, "cifar10": cifar10.TASK}
"""By the name of the classification task that has them."""

PICTURES_OPTION = Option(
    "digits", "digits (scikit-learn's, built in) or cifar10 (from --data-dir)", tuple(PICTURES)
)


def load_pictures(name: str, data_dir: Path | None) -> TensorData:
    """The images, uint8 (N, C, H, W), and their labels.

    Raises:
        LabError: there are none in that folder; or a folder is given where none is read.
    """
    if name == "digits" and data_dir is not None:
        raise LabError(
            f"--data-dir is not read for digits, got {data_dir}: leave it away, or give "
            "--option images=cifar10"
        )
    data = PICTURES[name].load(data_dir)
    assert isinstance(data, TensorData)
    return data


def picture_inputs(name: str) -> ImageInputs:
    """Values in [-1, 1]; in training photographs are flipped with probability one half."""
    return ImageInputs(mean=(0.5,), std=(0.5,), flip=name != "digits")
