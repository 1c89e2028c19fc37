"""What image classification tasks share: augmentation, loss and accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infobatch.lab.task import Outcome, Trained


@dataclass(frozen=True)
class Images:
    """What a model has to know of its images.

    Attributes:
        channels, classes: how many.
        size: height and width, in pixels.
    """

    channels: int
    classes: int
    size: int

    @property
    def patch(self) -> int:
        """Size of patches: of 2x2 pixels or more, such that they form a grid of 8x8 or less."""
        return max(2, self.size // 8)

    def patches(self, width: int) -> nn.Module:
        """A linear map of each patch to `width` channels."""
        return nn.Conv2d(self.channels, width, self.patch, stride=self.patch)


@dataclass(frozen=True)
class ImageInputs:
    """Turn stored images, uint8 (B, C, H, W), into normalised float32 model inputs.

    In training the batch is augmented first: a crop of the original size out of the image
    reflect-padded by `crop_padding` pixels, and a horizontal flip with probability one half
    (`flip`). Both are one gather over the batch. Random numbers come from that generator alone.
    Strong augmentation goes on: brightness and contrast are multiplied by numbers drawn from
    1 - `contrast` to 1 + `contrast`, and a square of `erase` pixels around a random place is set
    to the mean (Cutout; DeVries and Taylor, 2017, arXiv 1708.04552).
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
        """Model inputs, float32 (B, C, H, W), and the targets as they are."""
        return self.inputs(images, generator if training else None), targets

    def inputs(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Model inputs, float32 (B, C, H, W); augmented if there is a generator."""
        if generator is not None and (self.crop_padding or self.flip):
            images = self._augment(images, generator)
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape)
        std = torch.tensor(self.std, device=images.device).view(shape)
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
        batch, _, height, width = inputs.shape
        centres = torch.rand(2, batch, 1, generator=generator).to(inputs.device)
        half = self.erase / 2
        rows = (torch.arange(height, device=inputs.device) + 0.5 - centres[0] * height).abs() < half
        columns = (
            torch.arange(width, device=inputs.device) + 0.5 - centres[1] * width
        ).abs() < half
        return (rows[:, :, None] & columns[:, None, :])[:, None]

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, channels, height, width = images.shape
        draws = torch.rand(3, batch, 1, generator=generator).to(images.device)
        offsets = (draws[:2] * (2 * self.crop_padding + 1)).long() - self.crop_padding
        rows = _reflect(torch.arange(height, device=images.device) + offsets[0], height)
        columns = torch.arange(width, device=images.device).expand(batch, width)
        if self.flip:
            columns = torch.where(draws[2] < 0.5, columns.flip(1), columns)
        columns = _reflect(columns + offsets[1], width)
        source = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, -1)
        flat = images.reshape(batch, channels, height * width)
        return flat.gather(2, source.expand(-1, channels, -1)).view_as(images)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions outside [0, size) at the first and last one, which are not repeated."""
    return (size - 1) - ((size - 1) - position.abs()).abs()


def picture(image: Tensor) -> np.ndarray:
    """A stored colour image, uint8 (3, H, W), for people: (H, W, 3)."""
    return image.permute(1, 2, 0).cpu().numpy()


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of every sample, shape (B,), in float32 whatever the model computes in."""
    return F.cross_entropy(
        outputs.float(), targets, reduction="none", label_smoothing=label_smoothing
    )


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """1.0 where the likeliest class is the target and 0.0 elsewhere, shape (B,)."""
    return (outputs.argmax(dim=1) == targets).float()


def accuracy(run: Trained, *, top: int | None = None) -> Outcome:
    """How often the likeliest class is right, in percent; on all of the test set, and at worst.

    Args:
        run: what is judged.
        top: also how often one of so many likeliest classes is right.
    """
    return accuracy_of(run.test_outputs(), len(run.data.class_names), top=top)


def accuracy_of(
    batches: Iterable[tuple[Tensor, Tensor]], classes: int, *, top: int | None = None
) -> Outcome:
    """The same of logits (B, classes) and labels (B,), batch by batch."""
    found = []
    for outputs, targets in batches:
        ranked = outputs.topk(min(top or 1, outputs.shape[1])).indices
        found.append((correct(outputs, targets), (ranked == targets[:, None]).any(1), targets))
    right, near, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    scores = right.double()
    sums = torch.zeros(classes, dtype=torch.float64, device=scores.device)
    sums = sums.index_add(0, labels, scores)
    sizes = torch.bincount(labels, minlength=len(sums))
    worst = float((sums / sizes)[sizes > 0].min())
    more = {} if top is None else {f"top-{top} accuracy": 100 * float(near.double().mean())}
    return Outcome(100 * float(scores.mean()), worst_class=100 * worst, more=more)
