"""A folder of class folders: train/<class>/*.png and test/<class>/*.png."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infobatch.lab.datasets.arrays import ImageArrays
from infobatch.lab.datasets.images import read_image
from infobatch.lab.errors import LabError


def read(data_dir: Path, classes: int) -> ImageArrays | None:
    """The data set, or None without a train and a test folder here or in cifar<classes>/.

    Labels count the class folders in alphabetical order.
    """
    for folder in (data_dir, data_dir / f"cifar{classes}"):
        train, test = folder / "train", folder / "test"
        if not (train.is_dir() and test.is_dir()):
            continue
        names = _class_names(train)
        if names != _class_names(test):
            raise LabError(f"{train} and {test} must hold the same class folders")
        if not names:
            raise LabError(f"{train} must hold a folder of .png files for each class")
        train_images, train_labels = _read_part(train, names)
        test_images, test_labels = _read_part(test, names)
        return ImageArrays(train_images, train_labels, test_images, test_labels, tuple(names))
    return None


def _class_names(part: Path) -> list[str]:
    return sorted(entry.name for entry in part.iterdir() if entry.is_dir())


def _read_part(part: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    images: list[np.ndarray] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        for path in sorted((part / name).glob("*.png")):
            images.append(read_image(path, "RGB"))
            labels.append(label)
            if images[-1].shape != images[0].shape:
                raise LabError(
                    f"all images must have one size, got {images[0].shape[:2]} and "
                    f"{images[-1].shape[:2]} in {path}"
                )
    if not images:
        raise LabError(f"no .png file in the class folders of {part}")
    return np.stack(images), np.asarray(labels, dtype=np.int64)
