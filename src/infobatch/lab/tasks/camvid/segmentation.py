"""Semantic segmentation: crops of image and map, the loss of an image, and IoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from infobatch.lab.tasks.base.images import ImageInputs, pixels_at
from infobatch.lab.tasks.base.task import Outcome, Trained
from infobatch.losses import per_sample

IGNORED = 255
"""In a label map, where a pixel has no class."""
AUXILIARY_WEIGHT = 0.4
"""Of the loss of an auxiliary head; Zhao et al., 2017, arXiv 1612.01105."""


@dataclass(frozen=True)
class SegmentationInputs:
    """Stored images and label maps to model inputs and class numbers.

    In training both are cropped to the fraction `crop` of their height and width, at a random
    place, and flipped with probability one half. A crop without any labelled pixel, which could
    have no loss, is moved to where the image's first one is in it. Random numbers come from the
    batch's generator alone. `colours` normalises the images.
    """

    colours: ImageInputs
    crop: float

    def __call__(
        self, images: Tensor, maps: Tensor, generator: torch.Generator, training: bool
    ) -> tuple[Tensor, Tensor]:
        """Model inputs, float32 (B, C, h, w), and class numbers, int64 (B, h, w), or IGNORED."""
        if training:
            images, maps = self._cropped(images, maps, generator)
        inputs = self.colours.inputs(images, generator if training else None)
        return inputs, maps.long()

    def _cropped(
        self, images: Tensor, maps: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        batch, height, width = maps.shape
        spare_rows = height - max(1, round(self.crop * height))
        spare_columns = width - max(1, round(self.crop * width))
        draws = torch.rand(3, batch, 1, generator=generator).to(maps.device)
        top = (draws[0] * (spare_rows + 1)).long()
        left = (draws[1] * (spare_columns + 1)).long()
        rows = torch.arange(height - spare_rows, device=maps.device).expand(batch, -1)
        columns = torch.arange(width - spare_columns, device=maps.device).expand(batch, -1)
        columns = torch.where(draws[2] < 0.5, columns.flip(1), columns)
        both = torch.cat([images, maps[:, None]], dim=1)

        def cut() -> Tensor:
            return pixels_at(both, (top + rows)[:, :, None] * width + (left + columns)[:, None, :])

        cropped = cut()
        unlabelled = (cropped[:, -1] == IGNORED).flatten(1).all(dim=1, keepdim=True)
        if unlabelled.any():
            first = (maps != IGNORED).flatten(1).float().argmax(dim=1, keepdim=True)
            top = torch.where(unlabelled, (first // width).clamp(max=spare_rows), top)
            left = torch.where(unlabelled, (first % width).clamp(max=spare_columns), left)
            cropped = cut()
        return cropped[:, :-1], cropped[:, -1]


def image_loss(outputs: Sequence[Tensor], targets: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy over the labelled pixels of each image, shape (B,), in float32.

    `outputs` are logits (B, classes, h, w) of the head and, if there is one, of an auxiliary head,
    whose loss counts AUXILIARY_WEIGHT; `targets` (B, H, W) are class numbers or IGNORED.
    """
    total = torch.zeros((), device=targets.device)
    for logits, weight in zip(outputs, (1.0, AUXILIARY_WEIGHT), strict=False):
        loss_map = F.cross_entropy(
            _resized(logits, targets),
            targets,
            reduction="none",
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
        )
        total = total + weight * per_sample(loss_map, targets == IGNORED)
    return total


def _resized(logits: Tensor, targets: Tensor) -> Tensor:
    return F.interpolate(
        logits.float(), size=targets.shape[1:], mode="bilinear", align_corners=False
    )


def mean_iou(run: Trained) -> Outcome:
    """Intersection over union in percent: the mean of the classes, and that of the worst one.

    Counted over the labelled pixels of the whole test set. Classes that are in none of its maps
    have no part in it.
    """
    counts: list[Tensor] = []
    for outputs, targets in run.test_outputs():
        logits = _resized(outputs[0], targets)
        classes, labelled = logits.shape[1], targets != IGNORED
        pairs = targets[labelled] * classes + logits.argmax(dim=1)[labelled]
        counts.append(torch.bincount(pairs, minlength=classes**2).view(classes, classes))
    pixels = torch.stack(counts).sum(0).double()
    right, there, predicted = pixels.diag(), pixels.sum(1), pixels.sum(0)
    ious = (right / (there + predicted - right))[there > 0]
    return Outcome(
        100 * float(ious.mean()),
        worst_class=100 * float(ious.min()),
        more={"pixel accuracy": 100 * float(right.sum() / there.sum())},
    )
