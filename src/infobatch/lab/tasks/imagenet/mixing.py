"""Mixup and CutMix on batches: each image with another of its batch, and both their labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from infobatch.lab.tasks.base.images import cross_entropy

MIXUP_ALPHA = 0.2
CUTMIX_ALPHA = 1.0


class Mixed(NamedTuple):
    """Targets of mixed images; the loss of an image is that against both, in these parts.

    Attributes:
        labels, partners: (B,) classes of an image and of what was mixed into it.
        shares: (B,) part of the image that is its own, in [0, 1].
    """

    labels: Tensor
    partners: Tensor
    shares: Tensor


def mix(
    inputs: Tensor, labels: Tensor, generator: torch.Generator, *, cut: bool
) -> tuple[Tensor, Mixed]:
    """Mix each image of a batch with another one.

    Args:
        inputs: (B, C, H, W).
        labels: (B,).
        generator: all draws are from it: the partners, a permutation of the batch; for each image
            its share, of a Beta distribution; and where it is cut.
        cut: a rectangle of the partner (CutMix; Yun et al., 2019, arXiv 1905.04899), otherwise the
            weighted sum of both (Mixup; Zhang et al., 2018, arXiv 1710.09412).
    """
    batch = len(labels)
    order = torch.randperm(batch, generator=generator)
    draws = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    alpha = CUTMIX_ALPHA if cut else MIXUP_ALPHA
    shares = torch.from_numpy(draws.beta(alpha, alpha, batch).astype(np.float32))
    others = inputs[order.to(inputs.device)]
    if cut:
        mask = _rectangles(shares, torch.from_numpy(draws.random((2, batch))), inputs.shape[2:])
        shares = 1 - mask.float().mean(dim=(1, 2))
        mixed = torch.where(mask[:, None].to(inputs.device), others, inputs)
    else:
        weight = shares.to(inputs)[:, None, None, None]
        mixed = weight * inputs + (1 - weight) * others
    return mixed, Mixed(labels, labels[order.to(labels.device)], shares.to(inputs.device))


def _rectangles(shares: Tensor, centres: Tensor, size: torch.Size) -> Tensor:
    """Mask (B, H, W) of a rectangle with that part of the area, cut off at the border."""
    sides = []
    for centre, length in zip(centres, size, strict=True):
        half = (1 - shares).sqrt() * length / 2
        places = torch.arange(length) + 0.5
        sides.append((places - (centre * length)[:, None]).abs() < half[:, None])
    rows, columns = sides
    mask: Tensor = rows[:, :, None] & columns[:, None, :]
    return mask


def mixed_cross_entropy(outputs: Tensor, targets: Tensor | Mixed, smoothing: float) -> Tensor:
    """Cross-entropy against labels or mixed labels, shape (B,), in float32.

    The cross-entropy is linear in the target, so that this is the one against the soft target.
    """
    if isinstance(targets, Tensor):
        return cross_entropy(outputs, targets, smoothing)
    labels, partners, shares = targets
    own = mixed_cross_entropy(outputs, labels, smoothing)
    other = mixed_cross_entropy(outputs, partners, smoothing)
    mixed: Tensor = shares * own + (1 - shares) * other
    return mixed
