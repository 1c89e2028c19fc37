"""One image file as an array."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infobatch.lab.errors import LabError


def read_image(path: Path, mode: str | None = None) -> np.ndarray:
    """The pixels, (H, W) or (H, W, C); in a mode of Pillow's, or as they are in the file.

    Raises:
        LabError: the file is not a readable image.
    """
    from PIL import Image  # needed by some formats alone

    try:
        with Image.open(path) as image:
            return np.asarray(image if mode is None else image.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:  # all of them Pillow's words for damage
        raise LabError(f"{path} is not a readable image ({error})") from error
