"""What every reader returns, and the checks that every reader's data must pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infobatch.lab.errors import LabError

CIFAR10_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@dataclass(frozen=True)
class ImageArrays:
    """Images as uint8 (N, H, W, 3), labels as int64 (N,), and the classes' names in label order."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def checked(self, classes: int) -> ImageArrays:
        """Itself.

        Raises:
            LabError: shape, type or labels are not those of colour images in `classes` classes.
        """
        for part, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
                raise LabError(
                    f"{part} images must be uint8 of shape (N, H, W, 3), "
                    f"got {images.dtype} of shape {images.shape}"
                )
            if len(images) == 0 or len(images) != len(labels):
                raise LabError(
                    f"the {part} set must have one label per image and not be empty, "
                    f"got {len(images)} images and {len(labels)} labels"
                )
            if labels.min() < 0 or labels.max() >= classes:
                raise LabError(
                    f"{part} labels must lie in 0..{classes - 1} for cifar{classes}, "
                    f"got {labels.min()}..{labels.max()}"
                )
            if labels.max() >= len(self.class_names):
                raise LabError(
                    f"every class needs a name: there are {len(self.class_names)} names, "
                    f"but the {part} labels go up to {labels.max()}"
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise LabError(
                "train and test images must have one size, "
                f"got {self.train_images.shape[1:3]} and {self.test_images.shape[1:3]}"
            )
        return self


def to_labels(values: object, path: Path) -> np.ndarray:
    """Whole numbers of any type as int64 (N,).

    Raises:
        LabError: they are something else; it names the file that they are from.
    """
    try:
        given = np.asarray(values).reshape(-1)
        with np.errstate(invalid="ignore"):  # a label that is not a number is found just below
            labels = given.astype(np.int64)
        whole = given.dtype.kind in "iuf" and bool((labels == given).all())
    except (ValueError, TypeError, OverflowError):
        whole = False
    if not whole:
        raise LabError(f"the labels in {path} must be whole numbers, one per image")
    return labels


def class_names(classes: int) -> tuple[str, ...]:
    """Names for data that carry none: the official ones of CIFAR-10, otherwise numbers."""
    if classes == len(CIFAR10_NAMES):
        return CIFAR10_NAMES
    return tuple(f"class {label}" for label in range(classes))
