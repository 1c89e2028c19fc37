"""Small convolutional networks that a CPU can train, and the register of all models."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from infobatch.lab.registry import choose
from infobatch.lab.resnet import resnet18, resnet50


def conv_bn_relu(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution without bias, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class GlobalPoolClassifier(nn.Module):
    """A convolutional trunk, global average pooling and a linear layer; any image size."""

    def __init__(self, trunk: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        return cast(Tensor, self.head(self.trunk(images).mean(dim=(2, 3))))


def digits_cnn(channels: int, classes: int, width: int) -> nn.Module:
    """Three convolutions for 8x8 images; 8 thousand parameters at width 12."""
    trunk = nn.Sequential(
        conv_bn_relu(channels, width),
        conv_bn_relu(width, 2 * width, stride=2),
        conv_bn_relu(2 * width, 2 * width),
    )
    return GlobalPoolClassifier(trunk, 2 * width, classes)


def cifar_cnn(channels: int, classes: int, width: int) -> nn.Module:
    """Four convolutions for 32x32 images; 61 thousand parameters at width 16."""
    trunk = nn.Sequential(
        conv_bn_relu(channels, width, stride=2),
        conv_bn_relu(width, 2 * width),
        nn.MaxPool2d(2),
        conv_bn_relu(2 * width, 4 * width),
        nn.MaxPool2d(2),
        conv_bn_relu(4 * width, 4 * width),
    )
    return GlobalPoolClassifier(trunk, 4 * width, classes)


MODELS: dict[str, tuple[Callable[[int, int, int], nn.Module], int]] = {
    "digits-cnn": (digits_cnn, 12),
    "cifar-cnn": (cifar_cnn, 16),
    "resnet18": (resnet18, 64),
    "resnet50": (resnet50, 64),
}
"""Every model by name: its factory (channels, classes, width) and its own width."""


def build_model(name: str, *, channels: int, classes: int, width: int | None) -> nn.Module:
    """A freshly initialised model; `width` None means the model's own."""
    factory, own_width = choose(name, MODELS, what="model")
    return factory(channels, classes, own_width if width is None else width)
