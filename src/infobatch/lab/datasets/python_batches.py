"""The official python batches: pickles, read without letting them run anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from infobatch.lab.datasets.arrays import ImageArrays, class_names, to_labels
from infobatch.lab.errors import LabError

_ARRAY = np.zeros(1)
_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): _ARRAY.__reduce__()[0] for module in _NUMPY},
    **{(module, "_frombuffer"): _ARRAY.__reduce_ex__(5)[0] for module in _NUMERIC},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}

_UNREADABLE: tuple[type[Exception], ...] = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
    ImportError,
)


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and basic types, and refuses every other name that a pickle asks for.

    A pickle can call whatever it can import; these names only build arrays.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        """One of the allowed names; UnpicklingError for any other."""
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in old pickles; other codecs are refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


def read(data_dir: Path, classes: int) -> ImageArrays | None:
    """The data set, or None if its files are neither here nor in the official sub-folder."""
    if classes == 10:
        names = [f"data_batch_{part}" for part in range(1, 6)]
        return _read(data_dir, "cifar-10-batches-py", names, "test_batch", "batches.meta")
    return _read(data_dir, "cifar-100-python", ["train"], "test", "meta")


def _read(
    data_dir: Path, official: str, train: list[str], test: str, meta: str
) -> ImageArrays | None:
    for folder in (data_dir, data_dir / official):
        if not all((folder / name).is_file() for name in (train[0], test)):
            continue
        missing = [name for name in train if not (folder / name).is_file()]
        if missing:
            raise LabError(f"{folder} lacks {', '.join(missing)}: unpack the archive again")
        parts = [_read_batch(folder / name) for name in train]
        test_images, test_labels = _read_batch(folder / test)
        return ImageArrays(
            np.concatenate([images for images, _ in parts]),
            np.concatenate([labels for _, labels in parts]),
            test_images,
            test_labels,
            _read_names(folder / meta, 10 if official == "cifar-10-batches-py" else 100),
        )
    return None


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    entries = _unpickle(path)
    labels = entries.get(b"fine_labels", entries.get(b"labels"))
    pixels = entries.get(b"data")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or labels is None:
        raise LabError(
            f"{path} is no CIFAR batch: it must hold 'data' of shape (N, 3072) and labels"
        )
    if pixels.shape[1] != 3072:
        raise LabError(f"{path} must hold rows of 3072 bytes, got {pixels.shape[1]}")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, to_labels(labels, path)


def _read_names(path: Path, classes: int) -> tuple[str, ...]:
    if not path.is_file():
        return class_names(classes)
    entries = _unpickle(path)
    names = entries.get(b"fine_label_names", entries.get(b"label_names"))
    if not isinstance(names, list):
        raise LabError(f"{path} holds no label names")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _unpickle(path: Path) -> dict[bytes, Any]:
    try:
        with path.open("rb") as file:
            entries = ArrayUnpickler(file).load()
    except _UNREADABLE as error:
        raise LabError(
            f"{path} is not read: a CIFAR batch holds only arrays and labels, "
            f"but this file does not load as such ({error})"
        ) from error
    if not isinstance(entries, dict):
        raise LabError(f"{path} is no CIFAR batch: it must hold a dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in entries.items()}
