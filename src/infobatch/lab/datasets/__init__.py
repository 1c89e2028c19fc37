"""CIFAR from disk, in whichever of the usual forms it lies there."""

from __future__ import annotations

from pathlib import Path

from infobatch.lab.datasets import binary_batches, class_folders, npz, python_batches
from infobatch.lab.datasets.arrays import ImageArrays
from infobatch.lab.errors import LabError

__all__ = ["ImageArrays", "read_cifar"]

_READERS = (python_batches.read, binary_batches.read, npz.read, class_folders.read)
_SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def read_cifar(data_dir: Path | None, *, classes: int) -> ImageArrays:
    """CIFAR-10 or CIFAR-100 from a folder, or from an .npz file.

    Understood are the official python batches, the official binary batches, an .npz file with
    x_train, y_train, x_test and y_test, and train/<class>/*.png beside test/<class>/*.png;
    each in the folder itself or in its sub-folder of the official name.

    Raises:
        LabError: nothing was found (the message says what to fetch from where), or what was
            found is not what it should be.
    """
    if data_dir is None:
        raise LabError(f"cifar{classes} needs --data-dir. {_how_to_get(classes, Path('data'))}")
    if not data_dir.exists():
        raise LabError(f"{data_dir} does not exist. {_how_to_get(classes, data_dir)}")
    for read in _READERS:
        arrays = read(data_dir, classes)
        if arrays is not None:
            return arrays.checked(classes)
    raise LabError(
        f"no CIFAR-{classes} found in {data_dir}{_unpacked_hint(data_dir)}. "
        f"{_how_to_get(classes, data_dir)}"
    )


def _how_to_get(classes: int, folder: Path) -> str:
    return (
        f"Download cifar-{classes}-python.tar.gz (or cifar-{classes}-binary.tar.gz) from {_SITE}, "
        f"unpack it in {folder}, and give --data-dir {folder}. Also read: an .npz file with "
        "x_train, y_train, x_test, y_test; folders train/<class>/*.png and test/<class>/*.png."
    )


def _unpacked_hint(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    archives = sorted(path.name for path in folder.glob("cifar-*.tar.gz"))
    return f", but {archives[0]} lies there: unpack it" if archives else ""
