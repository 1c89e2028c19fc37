"""Images with boxes in the folders of Pascal VOC (Everingham et al., 2010)."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.files import read_image, search

_log = logging.getLogger(__name__)

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_LAYOUT = (
    "JPEGImages/*.jpg, Annotations/*.xml, and ImageSets/Main with trainval.txt (or train.txt and "
    "val.txt) and test.txt"
)


@dataclass(frozen=True)
class BoxedImage:
    """An image, uint8 (H, W, 3), with K boxes.

    Attributes:
        name: of its file, without folder and ending.
        classes: of the boxes, by name.
        boxes: (K, 4) float32: left, top, right and bottom in pixels, inside the image.
    """

    name: str
    image: np.ndarray
    classes: tuple[str, ...]
    boxes: np.ndarray


def read_voc(
    data_dir: Path | None, subfolder: str, how_to_get: str
) -> tuple[list[BoxedImage], list[BoxedImage]]:
    """Training and test set, from a folder of that layout or its sub-folder of that name.

    Boxes are cut off at the border of their image. Those without an area are left out, and a
    warning with their number logged.
    """

    def found(place: Path) -> Path | None:
        return place if (place / "ImageSets" / "Main").is_dir() else None

    folder = search("detection", data_dir, how_to_get, found, subfolder)
    dropped: list[str] = []
    parts = [
        [_read(folder, name, dropped) for name in names]
        for names in (_names(folder, ("trainval",), ("train", "val")), _names(folder, ("test",)))
    ]
    if dropped:
        _log.warning("%d boxes without an area are left out: %s", len(dropped), ", ".join(dropped))
    return parts[0], parts[1]


def _names(folder: Path, *choices: Sequence[str]) -> list[str]:
    for parts in choices:
        files = [folder / "ImageSets" / "Main" / f"{part}.txt" for part in parts]
        if all(file.is_file() for file in files):
            names = [name for file in files for name in file.read_text().split()]
            if not names:
                raise LabError(f"{files[0]} names no image")
            if len(names) != len(set(names)):
                raise LabError(f"{files[0]} must name every image once")
            return names
    raise LabError(f"{folder} must hold {_LAYOUT}")


def _read(folder: Path, name: str, dropped: list[str]) -> BoxedImage:
    image = read_image(folder / "JPEGImages" / f"{name}.jpg", "RGB")
    path = folder / "Annotations" / f"{name}.xml"
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, OSError) as error:
        raise LabError(f"{path} is not a readable annotation ({error})") from error
    height, width = image.shape[:2]
    stated = tuple(root.findtext(f"size/{side}", "0") for side in ("width", "height"))
    if stated not in (("0", "0"), (str(width), str(height))):
        raise LabError(
            f"{path} is for an image of {' x '.join(stated)} pixels, but {name}.jpg has "
            f"{width} x {height}"
        )
    classes, boxes = [], []
    for label, box in _boxes(path, root):
        inside = box.clip(0, [width, height, width, height])
        if (inside[2:] > inside[:2]).all():
            classes.append(label)
            boxes.append(inside)
        else:
            dropped.append(f"{label} in {name}")
    return BoxedImage(name, image, tuple(classes), np.array(boxes, dtype=np.float32).reshape(-1, 4))


def _boxes(path: Path, root: ET.Element) -> Iterator[tuple[str, np.ndarray]]:
    for entry in root.iter("object"):
        label = (entry.findtext("name") or "").strip()
        try:
            box = np.array([float(entry.findtext(f"bndbox/{side}", "")) for side in _SIDES])
        except ValueError:
            box = np.full(4, np.nan)
        if not label or not np.isfinite(box).all():
            raise LabError(
                f"every object in {path} must have a name and a bndbox with {', '.join(_SIDES)} in "
                f"pixels, got name {label!r} with {box.tolist()}"
            )
        yield label, box
