"""A plain .npz file with x_train, y_train, x_test and y_test."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from infobatch.lab.datasets.arrays import ImageArrays, class_names, to_labels
from infobatch.lab.errors import LabError

_KEYS = ("x_train", "y_train", "x_test", "y_test")


def read(data_dir: Path, classes: int) -> ImageArrays | None:
    """The data set from this file, or from cifar<classes>.npz or the only .npz in this folder.

    Images may be (N, H, W, 3) or (N, 3, H, W), labels (N,) or (N, 1); `classes` in the file
    names the classes. Returns None where there is no such file.
    """
    path = _find(data_dir, classes)
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in _KEYS if key not in file]
            if missing:
                raise LabError(
                    f"{path} must hold {', '.join(_KEYS)}; it lacks {', '.join(missing)}"
                )
            x_train, y_train, x_test, y_test = (file[key] for key in _KEYS)
            names = (
                tuple(str(name) for name in file["classes"])
                if "classes" in file
                else class_names(classes)
            )
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise LabError(f"{path} is not a readable .npz file ({error})") from error
    except ValueError as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{path} must hold plain arrays ({error})") from error
    return ImageArrays(
        _channels_last(x_train),
        to_labels(y_train, path),
        _channels_last(x_test),
        to_labels(y_test, path),
        names,
    )


def _find(data_dir: Path, classes: int) -> Path | None:
    if data_dir.is_file():
        return data_dir
    named = data_dir / f"cifar{classes}.npz"
    if named.is_file():
        return named
    files = sorted(data_dir.glob("*.npz"))
    return files[0] if len(files) == 1 else None


def _channels_last(images: np.ndarray) -> np.ndarray:
    if images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    return images
