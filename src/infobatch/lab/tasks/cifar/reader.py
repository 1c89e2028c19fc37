"""CIFAR from disk, in whichever of the usual forms it lies there."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.files import (
    check_images,
    check_one_size,
    class_folders,
    plain_arrays,
    read_image,
    read_lines,
    search,
)

CIFAR10_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_HOW_TO_GET = (
    "Download cifar-{classes}-python.tar.gz (or cifar-{classes}-binary.tar.gz) from "
    "https://www.cs.toronto.edu/~kriz/cifar.html, unpack it in {{folder}}, and give --data-dir "
    "{{folder}}. Also read: an .npz file with x_train, y_train, x_test, y_test; folders "
    "train/<class>/*.png and test/<class>/*.png."
)
Part = tuple[np.ndarray, np.ndarray]
"""Images and labels."""


@dataclass(frozen=True)
class ImageArrays:
    """Images as uint8 (N, H, W, 3), labels as int64 (N,), and the classes' names in label order."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def check(self, classes: int) -> None:
        """Raise a LabError if these are not colour images of one size in so many classes."""
        for part, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            check_images(part, images)
            if len(images) != len(labels):
                raise LabError(
                    f"the {part} set must have one label per image, "
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
        check_one_size(self.train_images, self.test_images)


def read_cifar(data_dir: Path | None, *, classes: int) -> ImageArrays:
    """CIFAR-10 or CIFAR-100 from a folder, or from an .npz file.

    Understood are the official python batches, the official binary batches, an .npz file with
    x_train, y_train, x_test and y_test, and train/<class>/*.png beside test/<class>/*.png;
    each in the folder itself or in its sub-folder of the official name.

    Raises:
        LabError: nothing was found (the message says what to fetch from where), or what was
            found is not what it should be.
    """

    def read(folder: Path) -> ImageArrays | None:
        for form in (_python_batches, _binary_batches, _npz, _png_folders):
            if (found := form(folder, classes)) is not None:
                return found
        for archive in sorted(folder.glob("cifar-*.tar.gz")):
            raise LabError(f"no CIFAR-{classes} in {folder}, but {archive.name} is: unpack it")
        return None

    how_to_get = _HOW_TO_GET.format(classes=classes)
    arrays = search(f"cifar{classes}", data_dir, how_to_get, read)
    arrays.check(classes)
    return arrays


# ------------------------------------------------------------------ official batches


Files = tuple[str, list[str], str, str]
"""The official sub-folder; training batches, test batch and names of the classes in it."""

_PYTHON: dict[int, Files] = {
    10: (
        "cifar-10-batches-py",
        [f"data_batch_{part}" for part in range(1, 6)],
        "test_batch",
        "batches.meta",
    ),
    100: ("cifar-100-python", ["train"], "test", "meta"),
}
_BINARY: dict[int, Files] = {
    10: (
        "cifar-10-batches-bin",
        [f"data_batch_{part}.bin" for part in range(1, 6)],
        "test_batch.bin",
        "batches.meta.txt",
    ),
    100: ("cifar-100-binary", ["train.bin"], "test.bin", "fine_label_names.txt"),
}


def _python_batches(data_dir: Path, classes: int) -> ImageArrays | None:
    """Pickles, read without letting them run anything."""
    return _batches(data_dir, classes, _PYTHON[classes], _python_batch, _pickled_names)


def _binary_batches(data_dir: Path, classes: int) -> ImageArrays | None:
    """Rows of label bytes and 3072 pixel bytes."""
    read = partial(_binary_batch, label_bytes=1 if classes == 10 else 2)
    return _batches(data_dir, classes, _BINARY[classes], read, _text_names)


def _batches(
    data_dir: Path,
    classes: int,
    files: Files,
    read: Callable[[Path], Part],
    read_names: Callable[[Path], tuple[str, ...]],
) -> ImageArrays | None:
    """The data set from here or the official sub-folder; None if its files are in neither."""
    official, train, test, meta = files
    for folder in (data_dir, data_dir / official):
        if not all((folder / name).is_file() for name in (train[0], test)):
            continue
        if missing := [name for name in train if not (folder / name).is_file()]:
            raise LabError(f"{folder} lacks {', '.join(missing)}: unpack the archive again")
        images, labels = zip(*(read(folder / name) for name in train), strict=True)
        has_names = (folder / meta).is_file()
        return ImageArrays(
            np.concatenate(images),
            np.concatenate(labels),
            *read(folder / test),
            read_names(folder / meta) if has_names else _class_names(classes),
        )
    return None


def _pixels(rows: np.ndarray) -> np.ndarray:
    """(N, 3072), all red, all green, all blue, to (N, 32, 32, 3)."""
    return np.moveaxis(rows.reshape(-1, 3, 32, 32), 1, -1)


def _binary_batch(path: Path, label_bytes: int) -> Part:
    content = np.fromfile(path, dtype=np.uint8)
    row = label_bytes + 3072
    if len(content) == 0 or len(content) % row:
        raise LabError(
            f"{path} must be rows of {row} bytes, got {len(content)} bytes: download it again"
        )
    rows = content.reshape(-1, row)
    labels = rows[:, label_bytes - 1]  # of two the second, the fine label, is the class
    return _pixels(rows[:, label_bytes:]), labels.astype(np.int64)


def _text_names(path: Path) -> tuple[str, ...]:
    return tuple(line for _, line in read_lines(path))


def _python_batch(path: Path) -> Part:
    entries = _unpickle(path)
    labels = entries.get(b"fine_labels", entries.get(b"labels"))
    pixels = entries.get(b"data")
    if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (3072,) or labels is None:
        raise LabError(
            f"{path} is no CIFAR batch: it must hold 'data' of shape (N, 3072) and labels"
        )
    return _pixels(pixels), _whole_labels(labels, path)


def _pickled_names(path: Path) -> tuple[str, ...]:
    entries = _unpickle(path)
    names = entries.get(b"fine_label_names", entries.get(b"label_names"))
    if not isinstance(names, list):
        raise LabError(f"{path} holds no label names")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in old pickles; other codecs are refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


_ARRAY = np.zeros(1)
_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode_latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (module, "_reconstruct"): _ARRAY.__reduce__()[0]
        for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    },
    **{
        (module, "_frombuffer"): _ARRAY.__reduce_ex__(5)[0]
        for module in ("numpy.core.numeric", "numpy._core.numeric")
    },
}
_NOT_A_PICKLE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError),
    *(AttributeError, IndexError, KeyError, ImportError),
)


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and basic types, and refuses every other name that a pickle asks for.

    A pickle can call whatever it can import; these names only build arrays.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def _unpickle(path: Path) -> dict[bytes, Any]:
    try:
        with path.open("rb") as file:
            entries = ArrayUnpickler(file).load()
    except _NOT_A_PICKLE as error:
        raise LabError(
            f"{path} is not read: a CIFAR batch holds only arrays and labels, "
            f"but this file does not load as such ({error})"
        ) from error
    if not isinstance(entries, dict):
        raise LabError(f"{path} is no CIFAR batch: it must hold a dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in entries.items()}


# ------------------------------------------------------------------ other forms


def _npz(data_dir: Path, classes: int) -> ImageArrays | None:
    """This file, or cifar<classes>.npz or the only .npz in this folder.

    Images may be (N, H, W, 3) or (N, 3, H, W), labels (N,) or (N, 1); `classes` in the file
    names the classes.
    """
    path = data_dir if data_dir.is_file() else data_dir / f"cifar{classes}.npz"
    if not path.is_file():
        files = list(data_dir.glob("*.npz"))
        if len(files) != 1:
            return None
        path = files[0]
    arrays = plain_arrays(path)
    names = arrays.get("classes")
    return ImageArrays(
        _channels_last(arrays["x_train"]),
        _whole_labels(arrays["y_train"], path),
        _channels_last(arrays["x_test"]),
        _whole_labels(arrays["y_test"], path),
        _class_names(classes) if names is None else tuple(str(name) for name in names),
    )


def _channels_last(images: np.ndarray) -> np.ndarray:
    if images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    return images


def _whole_labels(values: object, path: Path) -> np.ndarray:
    """Whole numbers of any type as int64 (N,)."""
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


def _class_names(classes: int) -> tuple[str, ...]:
    """Names for data that carry none: the official ones of CIFAR-10, otherwise numbers."""
    return CIFAR10_NAMES if classes == 10 else tuple(f"class {label}" for label in range(classes))


def _png_folders(data_dir: Path, classes: int) -> ImageArrays | None:
    """train/<class>/*.png and test/<class>/*.png, here or in cifar<classes>/."""
    for folder in (data_dir, data_dir / f"cifar{classes}"):
        train, test = folder / "train", folder / "test"
        if train.is_dir() and test.is_dir():
            names = class_folders(train, test)
            return ImageArrays(*_png_part(train, names), *_png_part(test, names), tuple(names))
    return None


def _png_part(part: Path, names: list[str]) -> Part:
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
