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
    arrays = plain_arrays(path)
    names = arrays.get("classes")
    return ImageArrays(
        _channels_last(arrays["x_train"]),
        to_labels(arrays["y_train"], path),
        _channels_last(arrays["x_test"]),
        to_labels(arrays["y_test"], path),
        class_names(classes) if names is None else tuple(str(name) for name in names),
    )


def plain_arrays(path: Path) -> dict[str, np.ndarray]:
    """What an .npz file holds: x_train, y_train, x_test, y_test, and `classes` if it is there.

    Raises:
        LabError: it cannot be read, lacks one of them, or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [key for key in _KEYS if key not in file]:
                raise LabError(
                    f"{path} must hold {', '.join(_KEYS)}; it lacks {', '.join(missing)}"
                )
            return {key: file[key] for key in (*_KEYS, "classes") if key in file}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise LabError(f"{path} is not a readable .npz file ({error})") from error
    except ValueError as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{path} must hold plain arrays ({error})") from error


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
