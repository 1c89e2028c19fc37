"""What image tasks share: stored bytes to model inputs, with augmentation, loss and score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ImageInputs:
    """Turn stored images, uint8 (B, C, H, W), into normalised float32 model inputs.

    With a generator the batch is augmented first: a crop of the original size out of the image
    reflect-padded by `crop_padding` pixels, and a horizontal flip with probability one half
    (`flip`). Both are one gather over the batch. Random numbers come from that generator alone.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Model inputs, float32 (B, C, H, W)."""
        if generator is not None and (self.crop_padding or self.flip):
            images = self._augment(images, generator)
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape)
        std = torch.tensor(self.std, device=images.device).view(shape)
        return images.float().div_(255).sub_(mean).div_(std)

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


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of every sample, shape (B,), in float32 whatever the model computes in."""
    return F.cross_entropy(
        outputs.float(), targets, reduction="none", label_smoothing=label_smoothing
    )


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """1.0 where the likeliest class is the target and 0.0 elsewhere, shape (B,)."""
    return (outputs.argmax(dim=1) == targets).float()
