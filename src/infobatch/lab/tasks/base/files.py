"""Files as data sets come in: text, plain or packed; images; numpy's arrays."""

from __future__ import annotations

import gzip
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from infobatch.lab.errors import LabError

T = TypeVar("T")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def search(
    task: str,
    data_dir: Path | None,
    how_to_get: str,
    read: Callable[[Path], T | None],
    *subfolders: str,
) -> T:
    """What `read` finds in a folder, or in one of its sub-folders.

    Raises:
        LabError: nothing; it says what to fetch from where, with `{folder}` filled in.
    """
    how_to_get = how_to_get.format(folder=data_dir or "data")
    if data_dir is None:
        raise LabError(f"{task} needs --data-dir. {how_to_get}")
    if not data_dir.exists():
        raise LabError(f"{data_dir} does not exist. {how_to_get}")
    for folder in (data_dir, *(data_dir / name for name in subfolders)):
        if (found := read(folder)) is not None:
            return found
    raise LabError(f"no data of {task} found in {data_dir}. {how_to_get}")


# ------------------------------------------------------------------ text


def find_text(folder: Path, *names: str) -> Path | None:
    """The first of these files that lies in a folder, plain or with .xz or .gz behind its name."""
    paths = (folder / f"{name}{packed}" for name in names for packed in ("", ".xz", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def find_texts(folder: Path, *names: str) -> list[Path] | None:
    """All of these files, each plain or packed; None where one is missing."""
    paths = [path for name in names if (path := find_text(folder, name))]
    return paths if len(paths) == len(names) else None


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, unpacked; a LabError if it is damaged or in another encoding."""
    unpack = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(path.suffix, bytes)
    try:
        return unpack(path.read_bytes()).decode(encoding)
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise LabError(f"{path} is not a readable text file ({error})") from error


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines that are not blank, stripped, with their numbers from 1."""
    # Not splitlines: it takes characters such as U+0085, which texts may hold, for line ends.
    for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file, one a line, with the numbers of their lines."""
    for number, line in read_lines(path):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            raise LabError(f"{path}, line {number}: each line must be one JSON object")
        yield number, entry


# ------------------------------------------------------------------ images and arrays


def read_image(path: Path, mode: str | None = None) -> np.ndarray:
    """The pixels, (H, W) or (H, W, C); in a mode of Pillow's, or as they are in the file."""
    from PIL import Image  # needed by some formats alone

    try:
        with Image.open(path) as image:
            return np.asarray(image if mode is None else image.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:  # all of them Pillow's words for damage
        raise LabError(f"{path} is not a readable image ({error})") from error


def class_folders(train: Path, test: Path) -> list[str]:
    """Names of the class folders of two parts, in alphabetical order; a LabError if they differ."""
    names, others = (
        sorted(entry.name for entry in part.iterdir() if entry.is_dir()) for part in (train, test)
    )
    if not names or names != others:
        raise LabError(f"{train} and {test} must hold the same class folders, at least one")
    return names


def plain_arrays(path: Path) -> dict[str, np.ndarray]:
    """What an .npz file holds: x_train, y_train, x_test, y_test, and `classes` if it is there.

    Raises:
        LabError: it cannot be read, lacks one of them, or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [key for key in _ARRAYS if key not in file]:
                raise LabError(
                    f"{path} must hold {', '.join(_ARRAYS)}; it lacks {', '.join(missing)}"
                )
            return {key: file[key] for key in (*_ARRAYS, "classes") if key in file}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise LabError(f"{path} is not a readable .npz file ({error})") from error
    except ValueError as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{path} must hold plain arrays ({error})") from error


def check_images(part: str, images: np.ndarray) -> None:
    """Raise a LabError if they are not colour images of 8 bits, at least one."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise LabError(
            f"{part} images must be uint8 of shape (N, H, W, 3), N at least 1, "
            f"got {images.dtype} of shape {images.shape}"
        )


def check_one_size(train: np.ndarray, test: np.ndarray) -> None:
    """Raise a LabError if training and test images differ in height or width."""
    if train.shape[1:] != test.shape[1:]:
        raise LabError(
            "train and test images must have one size, "
            f"got {train.shape[1:3]} and {test.shape[1:3]}"
        )


def channels_first(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) to (N, C, H, W), as one block of memory."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
