"""Pictures with coloured squares on them, in YOLO's folders."""

import numpy as np
from PIL import Image


def write_squares(folder, train=24, val=8, size=64):
    """Make a data set; the path of its YAML file."""
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for i in range(count):
            picture = draw.integers(0, 60, (size, size, 3), dtype=np.uint8)
            lines = []
            for _ in range(draw.integers(0 if i % 6 == 5 else 1, 4)):  # some pictures are empty
                label, side = int(draw.integers(0, 2)), int(draw.integers(10, 24))
                x, y = draw.integers(0, size - side, 2)
                picture[y : y + side, x : x + side, label] = 255
                centre = ((x + side / 2) / size, (y + side / 2) / size)
                lines.append(f"{label} {centre[0]} {centre[1]} {side / size} {side / size}")
            Image.fromarray(picture).save(folder / "images" / part / f"{i}.png")
            (folder / "labels" / part / f"{i}.txt").write_text("\n".join(lines))
    yaml = folder / "squares.yaml"
    yaml.write_text(
        f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{0: red, 1: green}}\n"
    )
    return yaml
