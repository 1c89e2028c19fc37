"""Segmentation models of transformers: UperNet and SegFormer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from infobatch.lab.errors import LabError, need
from infobatch.lab.registry import choose


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
