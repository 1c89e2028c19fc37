"""Boxes beside images: tensors of both, and mosaics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.data import Batch, Generators, Prepare, TensorData
from infobatch.lab.tasks.base.images import ImageInputs, pixels_at
from infobatch.lab.tasks.detection.voc import BoxedImage

_NO_BOX = -1.0  # in place of a class, where an image has fewer boxes than another
_GREY = 114  # around images, as Ultralytics has it
_STRIDE = 32  # sides of images are multiples of it
_LEAST_SIDE = 2.0  # pixels, and
_LEAST_PART = 0.1  # part of its area, of a box that a crop has cut


class BoxData(TensorData):
    """Images uint8 (N, 3, H, W), and targets float32 (N, M, 5): class, then the box.

    Boxes are left, top, right and bottom in pixels. Where an image has fewer than M, the class is
    -1. A training batch has for every sample three further ones beside it, drawn from the whole
    training set, pruned or not, for mosaics: rows (B, 4, 3, H, W) and targets (B, 4, M, 5).
    """

    def batches(
        self, numbers: Iterable[list[int]], prepare: Prepare, generators: Generators
    ) -> Iterator[Batch]:
        for place, batch in enumerate(numbers):
            indices = torch.tensor(batch, device=self.device)
            generator = generators(place)
            others = torch.randint(len(self), (len(batch), 3), generator=generator)
            four = torch.cat([indices[:, None], others.to(self.device)], dim=1)
            yield Batch(indices, *prepare(*self.samples(four), generator, True))


def box_data(train: Sequence[BoxedImage], test: Sequence[BoxedImage], longer_side: int) -> BoxData:
    """Images scaled to that longer side, in the middle of a canvas that all of them fit on.

    Classes are numbered in the alphabetical order of the names in the training set.

    Raises:
        LabError: a test image has a class that is not there, or there is no box.
    """
    names = sorted({label for one in train for label in one.classes})
    if not names:
        raise LabError("no training image has a box")
    if unknown := {label for one in test for label in one.classes} - set(names):
        raise LabError(
            f"the test set has boxes of {', '.join(sorted(unknown))}, the training set only of "
            f"{', '.join(names)}"
        )
    if not any(len(one.boxes) for one in test):
        raise LabError("no test image has a box")
    sizes = [_scaled(one.image.shape[:2], longer_side) for one in (*train, *test)]
    height, width = (-(-max(side) // _STRIDE) * _STRIDE for side in zip(*sizes, strict=True))
    most = max(len(one.boxes) for one in (*train, *test))

    def tensors(part: Sequence[BoxedImage]) -> tuple[Tensor, Tensor]:
        images = np.full((len(part), height, width, 3), _GREY, dtype=np.uint8)
        targets = np.full((len(part), most, 5), _NO_BOX, dtype=np.float32)
        for one, image, target in zip(part, images, targets, strict=True):
            rows, columns = _scaled(one.image.shape[:2], longer_side)
            top, left = (height - rows) // 2, (width - columns) // 2
            image[top : top + rows, left : left + columns] = _resized(one.image, rows, columns)
            scale = np.array([columns / one.image.shape[1], rows / one.image.shape[0]] * 2)
            target[: len(one.boxes), 0] = [names.index(label) for label in one.classes]
            target[: len(one.boxes), 1:] = one.boxes * scale + [left, top, left, top]
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(targets)

    return BoxData(*tensors(train), *tensors(test))


def _scaled(shape: tuple[int, ...], longer_side: int) -> tuple[int, int]:
    height, width = shape
    factor = longer_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _resized(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    from PIL import Image  # needed by some formats alone

    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class BoxInputs:
    """Stored images and boxes to model inputs and boxes.

    In training an image is made a mosaic with the probability `mosaic`: it and the three beside it
    lie in the four quarters of a canvas of twice the size, from which a part of the original size
    is cut at a random place (Bochkovskiy et al., 2020, arXiv 2004.10934). Boxes are cut with it,
    and left out where less than a tenth of them, or than two pixels, remains. Then it is flipped
    in both directions, each with probability one half. Random numbers come from the batch's
    generator alone. `colours` normalises the images.
    """

    colours: ImageInputs
    mosaic: float

    def __call__(
        self, images: Tensor, targets: Tensor, generator: torch.Generator, training: bool
    ) -> tuple[Tensor, Tensor]:
        """Model inputs, float32 (B, 3, H, W), and boxes (B, M, 5) or (B, 4 * M, 5)."""
        if training:
            images, targets = self._augmented(images, targets, generator)
        return self.colours.inputs(images, generator if training else None), targets

    def _augmented(
        self, four: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        batch, _, _, height, width = four.shape
        draws = torch.rand(5, batch, 1, generator=generator).to(four.device)
        # The part of the canvas that is seen: all of the first image, or what the offset says.
        is_mosaic = draws[0] < self.mosaic
        top = torch.where(is_mosaic, (draws[1] * (height + 1)).long(), 0)
        left = torch.where(is_mosaic, (draws[2] * (width + 1)).long(), 0)
        rows = torch.arange(height, device=four.device).expand(batch, -1)
        columns = torch.arange(width, device=four.device).expand(batch, -1)
        upside_down, mirrored = draws[3] < 0.5, draws[4] < 0.5
        rows = top + torch.where(upside_down, rows.flip(1), rows)
        columns = left + torch.where(mirrored, columns.flip(1), columns)
        quarter = 2 * (rows >= height)[:, :, None] + (columns >= width)[:, None, :]
        source = (quarter * height + (rows % height)[:, :, None]) * width
        images = pixels_at(four.transpose(1, 2), source + (columns % width)[:, None, :])

        corner = torch.tensor([[0, 0], [width, 0], [0, height], [width, height]])
        shift = corner.to(four.device)[None] - torch.stack([left, top], dim=2)
        boxes = targets[..., 1:] + shift.repeat(1, 1, 2)[:, :, None]
        limits = torch.tensor([width, height, width, height], device=four.device)
        boxes = boxes.clamp(min=0).minimum(limits)
        sides, before = boxes[..., 2:] - boxes[..., :2], targets[..., 3:] - targets[..., 1:3]
        untouched = (sides - before).abs().amax(-1) < 1e-3
        enough = (sides >= _LEAST_SIDE).all(-1) & (sides.prod(-1) >= _LEAST_PART * before.prod(-1))
        there = (targets[..., 0] >= 0) & (untouched | enough)
        labels = torch.where(there, targets[..., 0], _NO_BOX)
        left_, top_, right, bottom = boxes.unbind(-1)
        turn, mirror = upside_down[:, :, None], mirrored[:, :, None]
        left_, right = (
            torch.where(mirror, width - right, left_),
            torch.where(mirror, width - left_, right),
        )
        top_, bottom = (
            torch.where(turn, height - bottom, top_),
            torch.where(turn, height - top_, bottom),
        )
        return images, torch.stack([labels, left_, top_, right, bottom], dim=-1).flatten(1, 2)
