"""ResNet-18 and ResNet-50 (He et al., 2016, arXiv 1512.03385).

For small images as the InfoBatch paper trains them on CIFAR: a 3x3 stem with stride 1, no
max-pooling, and the four stages of the ImageNet networks. For large ones with ImageNet's stem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from infobatch.lab.tasks.base.images import Images


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias, and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)); the shortcut is a 1x1 projection where the shape changes."""

    def __init__(self, body: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def basic_block(inputs: int, width: int, stride: int) -> Residual:
    """Two 3x3 convolutions; `width` channels out."""
    body = nn.Sequential(
        conv_bn(inputs, width, 3, stride), nn.ReLU(inplace=True), conv_bn(width, width, 3)
    )
    return Residual(body, inputs, width, stride)


def bottleneck_block(inputs: int, width: int, stride: int) -> Residual:
    """1x1, 3x3, 1x1 convolutions; four times `width` channels out."""
    body = nn.Sequential(
        conv_bn(inputs, width, 1),
        nn.ReLU(inplace=True),
        conv_bn(width, width, 3, stride),
        nn.ReLU(inplace=True),
        conv_bn(width, 4 * width, 1),
    )
    return Residual(body, inputs, 4 * width, stride)


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, global average pooling and a linear layer.

    Args:
        depths: blocks per stage.
        bottleneck: bottleneck blocks, with an expansion of 4, in place of basic ones.
        large: a 7x7 stem with stride 2 and max-pooling, which leave a sixteenth of the pixels.
    """

    def __init__(
        self,
        images: Images,
        width: int,
        *,
        depths: Sequence[int],
        bottleneck: bool,
        large: bool = False,
    ) -> None:
        super().__init__()
        block, expansion = (bottleneck_block, 4) if bottleneck else (basic_block, 1)
        kernel, stride = (7, 2) if large else (3, 1)
        self.stem = nn.Sequential(
            conv_bn(images.channels, width, kernel, stride), nn.ReLU(inplace=True)
        )
        if large:
            self.stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        stages = nn.Sequential()
        features = width
        for stage, depth in enumerate(depths):
            stage_width = width * 2**stage
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                stages.append(block(features, stage_width, stride))
                features = stage_width * expansion
        self.stages = stages
        self.head = nn.Linear(features, images.classes)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.stages(self.stem(images)).mean(dim=(2, 3))))


def resnet18(images: Images, width: int, *, large: bool = False) -> nn.Module:
    """ResNet-18; at width 64 with 10 classes 11.2 million parameters."""
    return ResNet(images, width, depths=(2, 2, 2, 2), bottleneck=False, large=large)


def resnet50(images: Images, width: int, *, large: bool = False) -> nn.Module:
    """ResNet-50; at width 64 with 10 classes 23.5 million parameters."""
    return ResNet(images, width, depths=(3, 4, 6, 3), bottleneck=True, large=large)
