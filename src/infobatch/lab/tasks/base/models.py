"""Small networks that a CPU can train, and the register of all models for small images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from infobatch.lab.registry import choose
from infobatch.lab.tasks.base.images import Images
from infobatch.lab.tasks.base.resnet import conv_bn, resnet18, resnet50


def conv_bn_relu(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution without bias, batch normalisation and ReLU."""
    return conv_bn(inputs, outputs, 3, stride).append(nn.ReLU(inplace=True))


class GlobalPoolClassifier(nn.Module):
    """A convolutional trunk, global average pooling and a linear layer; any image size."""

    def __init__(self, trunk: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.trunk(images).mean(dim=(2, 3))))


def digits_cnn(images: Images, width: int) -> nn.Module:
    """Three convolutions for 8x8 images; 8 thousand parameters at width 12."""
    trunk = nn.Sequential(
        conv_bn_relu(images.channels, width),
        conv_bn_relu(width, 2 * width, stride=2),
        conv_bn_relu(2 * width, 2 * width),
    )
    return GlobalPoolClassifier(trunk, 2 * width, images.classes)


def cifar_cnn(images: Images, width: int) -> nn.Module:
    """Four convolutions for 32x32 images; 61 thousand parameters at width 16."""
    trunk = nn.Sequential(
        conv_bn_relu(images.channels, width, stride=2),
        conv_bn_relu(width, 2 * width),
        nn.MaxPool2d(2),
        conv_bn_relu(2 * width, 4 * width),
        nn.MaxPool2d(2),
        conv_bn_relu(4 * width, 4 * width),
    )
    return GlobalPoolClassifier(trunk, 4 * width, images.classes)


class ViT(nn.Module):
    """A vision transformer without a class token (Dosovitskiy et al., 2021, arXiv 2010.11929).

    Patches are of 2x2 pixels in 8x8 images, and of 4x4 in 32x32 ones. Encoder
    layers normalise first; what is classified is the mean over the patches.

    Args:
        width: of a token; a head has 16 channels of it, or all where it is no multiple of 16.
        depth: encoder layers.
    """

    def __init__(self, images: Images, width: int, *, depth: int) -> None:
        super().__init__()
        self.patches = images.patches(width)
        self.places = nn.Parameter(0.02 * torch.randn((images.size // images.patch) ** 2, width))
        layers = (
            nn.TransformerEncoderLayer(
                width,
                nhead=1 if width % 16 else width // 16,
                dim_feedforward=2 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )  # each drawn anew: nn.TransformerEncoder would start all of them from the same weights
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, images.classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return cast(Tensor, self.head(self.norm(self.layers(tokens)).mean(dim=1)))


def vit_tiny(images: Images, width: int) -> nn.Module:
    """Three encoder layers; 108 thousand parameters at width 64."""
    return ViT(images, width, depth=3)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """x + scale * body(x): depthwise convolution, normalisation, widened and narrowed by 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            ChannelNorm(width),
            nn.Conv2d(width, 4 * width, 1),
            nn.GELU(),
            nn.Conv2d(4 * width, width, 1),
        )
        self.scale = nn.Parameter(0.1 * torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.scale * self.body(x))


def convnext_tiny(images: Images, width: int) -> nn.Module:
    """Two stages in the manner of ConvNeXt (Liu et al., 2022, arXiv 2201.03545).

    Patches are those of the ViT. Convolutions are 5x5, as larger ones would cover their grid.
    """
    trunk = nn.Sequential(
        images.patches(width),
        ChannelNorm(width),
        *(ConvNeXtBlock(width) for _ in range(2)),
        ChannelNorm(width),
        nn.Conv2d(width, 2 * width, 2, stride=2),
        *(ConvNeXtBlock(2 * width) for _ in range(2)),
        ChannelNorm(2 * width),
    )
    return GlobalPoolClassifier(trunk, 2 * width, images.classes)


class Airbench(nn.Sequential):
    """Seven convolutions in the manner of airbench (Jordan, 2024, arXiv 2404.00498).

    498 thousand parameters at width 32, which is half of the width there. Batch normalisation has
    its usual scales.
    """

    def __init__(self, images: Images, width: int) -> None:
        widths = (8 * images.channels, width, 4 * width, 4 * width)
        groups = (
            layer
            for inputs, outputs in pairwise(widths)
            for layer in (
                _nearly_identity(inputs, outputs),
                nn.MaxPool2d(2, ceil_mode=images.size < 9),  # at least a pixel is left after three
                nn.BatchNorm2d(outputs),
                nn.GELU(),
                _nearly_identity(outputs, outputs),
                nn.BatchNorm2d(outputs),
                nn.GELU(),
            )
        )
        super().__init__(
            nn.Conv2d(images.channels, widths[0], 2),
            nn.GELU(),
            *groups,
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(widths[-1], images.classes),
        )

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Let the first layer whiten 2x2 patches of these images (B, C, H, W), and stay so."""
        layer = cast(nn.Conv2d, self[0])
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)
        variances, directions = torch.linalg.eigh(patches.flatten(0, 2).T.cov())
        filters = (directions / (variances + 1e-3).sqrt()).T.unflatten(1, (-1, 2, 2)).flip(0)
        layer.weight.copy_(torch.cat([filters, -filters]))
        layer.weight.requires_grad_(False)


def _nearly_identity(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution without bias whose first channels start as those that it is given."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[:inputs])
    return layer


Factory = Callable[[Images, int], nn.Module]

MODELS: dict[str, tuple[Factory, int]] = {
    "digits-cnn": (digits_cnn, 12),
    "cifar-cnn": (cifar_cnn, 16),
    "vit-tiny": (vit_tiny, 64),
    "convnext-tiny": (convnext_tiny, 32),
    "airbench": (Airbench, 32),
    "resnet18": (resnet18, 64),
    "resnet50": (resnet50, 64),
}
"""Every model by name: its factory, and its own width."""

ADAPTIVE: Mapping[str, str | float] = {
    "optimizer": "adamw",
    "lr": 4e-3,
    "weight_decay": 5e-2,
}
"""What `vit-tiny` and `convnext-tiny` learn with, which SGD trains badly."""


def build_model(name: str, images: Images, width: int | None) -> nn.Module:
    """A freshly initialised model; `width` None means the model's own."""
    factory, own_width = choose(name, MODELS, what="model")
    return factory(images, own_width if width is None else width)
