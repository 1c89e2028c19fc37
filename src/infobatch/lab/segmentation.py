"""What semantic segmentation shares: crops of image and map, loss of an image, IoU, models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infobatch.lab.errors import LabError
from infobatch.lab.extras import need
from infobatch.lab.images import ImageInputs
from infobatch.lab.registry import choose
from infobatch.lab.task import Outcome, Trained
from infobatch.losses import per_sample

IGNORED = 255
"""In a label map, where a pixel has no class."""
AUXILIARY_WEIGHT = 0.4
"""Of the loss of an auxiliary head; Zhao et al., 2017, arXiv 1612.01105."""


@dataclass(frozen=True)
class SegmentationInputs:
    """Stored images and label maps to model inputs and class numbers.

    In training both are cropped to the part `crop` of their height and width, at a random place,
    and flipped with probability one half. A crop without any labelled pixel, which could have no
    loss, is moved to where the image's first one is in it. Random numbers come from that generator
    alone.

    Attributes:
        colours: what is done to the images besides.
        crop: in (0, 1].
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
        pixels = torch.cat([images, maps[:, None]], dim=1).flatten(2)

        def cut() -> Tensor:
            source = (top + rows)[:, :, None] * width + (left + columns)[:, None, :]
            source = source.view(batch, 1, -1).expand(-1, pixels.shape[1], -1)
            return pixels.gather(2, source).view(batch, -1, rows.shape[1], columns.shape[1])

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

    Args:
        outputs: logits (B, classes, h, w) of the head, and of an auxiliary one if there is one,
            whose loss is added with AUXILIARY_WEIGHT; brought to the size of the targets.
        targets: (B, H, W) class numbers, or IGNORED.
        label_smoothing: in [0, 1).
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
    counts: Tensor | None = None
    for outputs, targets in run.test_outputs():
        logits = _resized(outputs[0], targets)
        classes, labelled = logits.shape[1], targets != IGNORED
        pairs = targets[labelled] * classes + logits.argmax(dim=1)[labelled]
        found = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        counts = found if counts is None else counts + found
    assert counts is not None, "the test set is not empty"
    counts = counts.double()
    right, there, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    ious = (right / (there + predicted - right))[there > 0]
    return Outcome(
        100 * float(ious.mean()),
        worst_class=100 * float(ious.min()),
        more={"pixel accuracy": 100 * float(right.sum() / there.sum())},
    )


class _UperNet(nn.Module):
    """The logits of both heads, which the model of transformers itself does not return."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.inner = need("transformers", "tasks").UperNetForSemanticSegmentation(config)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) to logits (B, classes, h, w), of the head and the auxiliary one."""
        if self.training and len(images) == 1:
            raise LabError(
                "upernet normalises one number an image over the batch and needs two images in "
                "it; use a larger --batch-size, or --model segformer"
            )
        features = self.inner.backbone(images).feature_maps
        return self.inner.decode_head(features), self.inner.auxiliary_head(features)


class _SegFormer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.inner = need("transformers", "tasks").SegformerForSemanticSegmentation(config)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Images (B, 3, H, W) to logits (B, classes, h, w)."""
        height, width = images.shape[2:]
        if min(height, width) < 32:
            raise LabError(
                f"segformer needs images of at least 32x32 pixels, got {height}x{width}; use a "
                "larger --option height or crop"
            )
        return (self.inner(images).logits,)


def _upernet(
    classes: int, hidden_sizes: list[int], channels: int, width: int, **resnet: Any
) -> nn.Module:
    transformers = need("transformers", "tasks")
    backbone = transformers.ResNetConfig(
        embedding_size=width,
        hidden_sizes=hidden_sizes,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        **resnet,
    )
    return _UperNet(
        transformers.UperNetConfig(
            backbone_config=backbone,
            hidden_size=channels,
            auxiliary_in_channels=hidden_sizes[2],
            auxiliary_channels=channels // 2,
            num_labels=classes,
        )
    )


def upernet(classes: int, width: int) -> nn.Module:
    """UperNet (Xiao et al., 2018) on a residual network of 10 layers; 0.5 million at width 16."""
    sizes = [width, 2 * width, 4 * width, 8 * width]
    return _upernet(classes, sizes, 2 * width, width, depths=[1, 1, 1, 1], layer_type="basic")


def upernet_r50(classes: int, width: int) -> nn.Module:
    """UperNet on ResNet-50, as in the InfoBatch paper, at width 64."""
    return _upernet(classes, [4 * width, 8 * width, 16 * width, 32 * width], 8 * width, width)


def segformer(classes: int, width: int) -> nn.Module:
    """SegFormer (Xie et al., 2021), its B0 at width 32; without dropout."""
    config = need("transformers", "tasks").SegformerConfig(
        hidden_sizes=[width, 2 * width, 5 * width, 8 * width],
        decoder_hidden_size=8 * width,
        num_labels=classes,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    return _SegFormer(config)


MODELS: dict[str, tuple[Callable[[int, int], nn.Module], int]] = {
    "upernet": (upernet, 16),
    "upernet-r50": (upernet_r50, 64),
    "segformer": (segformer, 16),
}
"""Every model by name: its factory (classes, width) and its own width."""


def build_segmenter(name: str, *, classes: int, width: int | None) -> nn.Module:
    """A freshly initialised model; `width` None means the model's own."""
    factory, own_width = choose(name, MODELS, what="model")
    return factory(classes, own_width if width is None else width)
