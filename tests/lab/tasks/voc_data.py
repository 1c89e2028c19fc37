"""Pictures with coloured squares on them, in the folders of Pascal VOC."""

import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image

COLOURS = {"red": 0, "green": 1}


def write_voc(folder, parts, size=(48, 64)):
    """Write {part: [[(class, (left, top, right, bottom)), ...] for each image]}; the folder."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, images in parts.items():
        names = [f"{part}_{number}" for number in range(len(images))]
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name, boxes in zip(names, images, strict=True):
            picture = rng.integers(0, 60, (*size, 3), dtype=np.uint8)
            for label, (left, top, right, bottom) in boxes:
                picture[max(0, top) : bottom, max(0, left) : right, COLOURS.get(label, 2)] = 255
            Image.fromarray(picture).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
            write_annotation(folder, name, boxes, size)
    return folder


def write_annotation(folder, name, boxes, size=(48, 64)):
    root = ET.Element("annotation")
    sides = ET.SubElement(root, "size")
    for side, value in zip(("height", "width"), size, strict=True):
        ET.SubElement(sides, side).text = str(value)
    for label, corners in boxes:
        entry = ET.SubElement(root, "object")
        ET.SubElement(entry, "name").text = label
        box = ET.SubElement(entry, "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            ET.SubElement(box, side).text = str(value)
    ET.ElementTree(root).write(folder / "Annotations" / f"{name}.xml")


def squares(count, seed=0, size=(48, 64)):
    """Boxes for so many images: one to three of two classes, and none on every sixth."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        boxes = []
        for _ in range(0 if number % 6 == 5 else rng.integers(1, 4)):
            side = int(rng.integers(12, 24))
            top, left = (int(rng.integers(0, length - side)) for length in size)
            label = ("red", "green")[int(rng.integers(0, 2))]
            boxes.append((label, (left, top, left + side, top + side)))
        images.append(boxes)
    return images
