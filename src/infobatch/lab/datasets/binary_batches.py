"""The official binary batches: rows of label bytes and 3072 pixel bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infobatch.lab.datasets.arrays import ImageArrays, class_names
from infobatch.lab.errors import LabError

_PIXELS = 3 * 32 * 32


def read(data_dir: Path, classes: int) -> ImageArrays | None:
    """The data set, or None if its files are neither here nor in the official sub-folder."""
    if classes == 10:
        train = [f"data_batch_{part}.bin" for part in range(1, 6)]
        official, test, names, label_bytes = (
            "cifar-10-batches-bin",
            "test_batch.bin",
            "batches.meta.txt",
            1,
        )
    else:
        train = ["train.bin"]
        official, test, names, label_bytes = (
            "cifar-100-binary",
            "test.bin",
            "fine_label_names.txt",
            2,
        )
    for folder in (data_dir, data_dir / official):
        if not all((folder / name).is_file() for name in (train[0], test)):
            continue
        missing = [name for name in train if not (folder / name).is_file()]
        if missing:
            raise LabError(f"{folder} lacks {', '.join(missing)}: unpack the archive again")
        parts = [_read_batch(folder / name, label_bytes) for name in train]
        test_images, test_labels = _read_batch(folder / test, label_bytes)
        return ImageArrays(
            np.concatenate([images for images, _ in parts]),
            np.concatenate([labels for _, labels in parts]),
            test_images,
            test_labels,
            _read_names(folder / names, classes),
        )
    return None


def _read_batch(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels; of two label bytes the second, the fine label, is the class."""
    content = np.fromfile(path, dtype=np.uint8)
    row = label_bytes + _PIXELS
    if len(content) == 0 or len(content) % row:
        raise LabError(
            f"{path} must be rows of {row} bytes, got {len(content)} bytes: download it again"
        )
    rows = content.reshape(-1, row)
    images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, rows[:, label_bytes - 1].astype(np.int64)


def _read_names(path: Path, classes: int) -> tuple[str, ...]:
    if not path.is_file():
        return class_names(classes)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise LabError(f"{path} must hold the names of the classes as text ({error})") from error
    return tuple(line.strip() for line in lines if line.strip())
