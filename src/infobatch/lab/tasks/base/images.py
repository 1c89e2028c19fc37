"""What tasks on images share: augmentation, loss and accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infobatch.lab.tasks.base.task import Outcome, Trained


@dataclass(frozen=True)
class Images:
    """What a model has to know of its images; `size` is height and width in pixels."""

    channels: int
    classes: int
    size: int

    @property
    def patch(self) -> int:
        """Side of a patch in pixels, such that patches form a grid of at most 8x8."""
        return max(2, self.size // 8)

    def patches(self, width: int) -> nn.Module:
        """A linear map of each patch to `width` channels."""
        return nn.Conv2d(self.channels, width, self.patch, stride=self.patch)


@dataclass(frozen=True)
class ImageInputs:
    """Turn stored images, uint8 (B, C, H, W), into normalised float32 model inputs.

    In training the batch is augmented: a crop of the original size out of the image reflect-padded
    by `crop_padding` pixels, and a horizontal flip with probability one half (`flip`). Strong
    augmentation goes on: brightness and contrast are multiplied by numbers drawn from
    1 - `contrast` to 1 + `contrast`, and a square of `erase` pixels around a random place is set
    to the mean (Cutout; DeVries and Taylor, 2017, arXiv 1708.04552). Random numbers come from the
    batch's generator alone.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False
    erase: int = 0
    contrast: float = 0.0

    def __call__(
        self, images: Tensor, targets: Any, generator: torch.Generator, training: bool
    ) -> tuple[Tensor, Any]:
        """Model inputs, float32 (B, C, H, W), and the targets unchanged."""
        return self.inputs(images, generator if training else None), targets

    def inputs(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Model inputs, float32 (B, C, H, W); augmented if there is a generator."""
        if generator is not None and (self.crop_padding or self.flip):
            images = self._cropped(images, generator)
        mean, std = (
            torch.tensor(values, device=images.device).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        inputs = images.float().div_(255)
        if generator is not None and self.contrast:
            inputs = self._change_contrast(inputs, generator)
        inputs.sub_(mean).div_(std)
        if generator is not None and self.erase:
            inputs.masked_fill_(self._erased(inputs, generator), 0.0)
        return inputs

    def _change_contrast(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(2, len(inputs), 1, 1, 1, generator=generator).to(inputs.device)
        brightness, contrast = 1.0 + self.contrast * (2.0 * draws - 1.0)
        means = inputs.mean(dim=(1, 2, 3), keepdim=True)
        changed: Tensor = (inputs - means) * contrast + means * brightness
        return changed.clamp_(0.0, 1.0)

    def _erased(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Mask (B, 1, H, W) of a square in each image, cut off at its border."""
        centres = torch.rand(2, len(inputs), 1, generator=generator).to(inputs.device)
        rows, columns = (
            (torch.arange(size, device=inputs.device) + 0.5 - centre * size).abs() < self.erase / 2
            for centre, size in zip(centres, inputs.shape[2:], strict=True)
        )
        erased: Tensor = rows[:, :, None] & columns[:, None, :]
        return erased[:, None]

    def _cropped(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        draws = torch.rand(3, batch, 1, generator=generator).to(images.device)
        offsets = (draws[:2] * (2 * self.crop_padding + 1)).long() - self.crop_padding
        rows = _reflect(torch.arange(height, device=images.device) + offsets[0], height)
        columns = torch.arange(width, device=images.device).expand(batch, width)
        if self.flip:
            columns = torch.where(draws[2] < 0.5, columns.flip(1), columns)
        columns = _reflect(columns + offsets[1], width)
        return pixels_at(images, rows[:, :, None] * width + columns[:, None, :])


def pixels_at(images: Tensor, places: Tensor) -> Tensor:
    """(B, C, h, w): of images (B, C, ...) the pixels with these numbers (B, h, w)."""
    pixels = images.flatten(2)
    index = places.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
    return pixels.gather(2, index).view(*pixels.shape[:2], *places.shape[1:])


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions outside [0, size) at the first and last one, which are not repeated."""
    return (size - 1) - ((size - 1) - position.abs()).abs()


def picture(image: Tensor) -> np.ndarray:
    """A stored colour image, uint8 (3, H, W), as (H, W, 3)."""
    return image.permute(1, 2, 0).cpu().numpy()


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of every sample, shape (B,), in float32 whatever the model computes in."""
    return F.cross_entropy(
        outputs.float(), targets, reduction="none", label_smoothing=label_smoothing
    )


def accuracy(run: Trained, *, top: int | None = None) -> Outcome:
    """Accuracy on the test set in percent, and that of the worst class; see `accuracy_of`."""
    return accuracy_of(run.test_outputs(), len(run.data.class_names), top=top)


def accuracy_of(
    batches: Iterable[tuple[Tensor, Tensor]], classes: int, *, top: int | None = None
) -> Outcome:
    """Accuracy of logits (B, classes) against labels (B,), batch by batch.

    With `top`: also how often one of so many likeliest classes is right.
    """
    found = []
    for outputs, targets in batches:
        ranked = outputs.topk(min(top or 1, outputs.shape[1])).indices
        right = outputs.argmax(dim=1) == targets
        found.append((right, (ranked == targets[:, None]).any(1), targets))
    right, near, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    scores = right.double()
    sums = torch.zeros(classes, dtype=torch.float64, device=scores.device)
    sums = sums.index_add(0, labels, scores)
    sizes = torch.bincount(labels, minlength=len(sums))
    worst = float((sums / sizes)[sizes > 0].min())
    more = {} if top is None else {f"top-{top} accuracy": 100 * float(near.double().mean())}
    return Outcome(100 * float(scores.mean()), worst_class=100 * worst, more=more)
