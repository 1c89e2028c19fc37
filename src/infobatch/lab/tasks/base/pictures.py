"""Pictures for tasks that learn from images alone: built in, or from `--data-dir`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from infobatch.lab.errors import LabError
from infobatch.lab.tasks import cifar, digits
from infobatch.lab.tasks.base.data import TensorData
from infobatch.lab.tasks.base.images import ImageInputs
from infobatch.lab.tasks.base.task import Option, Task

PICTURES: Mapping[str, Task] = {"digits": digits.TASK, "cifar10": cifar.TASK[0]}
"""By the name of the classification task that has them."""

PICTURES_OPTION = Option(
    "digits", "digits (scikit-learn's, built in) or cifar10 (from --data-dir)", tuple(PICTURES)
)


def load_pictures(name: str, data_dir: Path | None) -> TensorData:
    """The images, uint8 (N, C, H, W), and their labels."""
    if name == "digits" and data_dir is not None:
        raise LabError(
            f"--data-dir is not read for digits, got {data_dir}: leave it away, or give "
            "--option images=cifar10"
        )
    return cast(TensorData, PICTURES[name].load(data_dir))


def picture_inputs(name: str, *, crop_padding: int = 0) -> ImageInputs:
    """Values in [-1, 1]; photographs are flipped in training with probability one half."""
    return ImageInputs((0.5,), (0.5,), crop_padding=crop_padding, flip=name != "digits")
