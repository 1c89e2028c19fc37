"""Masked autoencoders: images that are rebuilt from a quarter of their patches.

He et al., Masked Autoencoders Are Scalable Vision Learners, 2022, arXiv 2111.06377.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infobatch.lab.errors import LabError, need
from infobatch.lab.registry import choose
from infobatch.lab.tasks.base.images import cross_entropy

_BATCH = 32
_LR, _WEIGHT_DECAY = 2e-3, 0.05  # of fine-tuning


@dataclass(frozen=True)
class _Shape:
    """Width, layers and attention heads of encoder and decoder."""

    width: int
    layers: int
    heads: int
    decoder_width: int
    decoder_layers: int
    decoder_heads: int


VITS: Mapping[str, _Shape] = {
    "vit-small": _Shape(64, 4, 4, 32, 1, 2),
    "vit-base": _Shape(768, 12, 12, 512, 8, 16),  # that of He et al.
}
"""Every model by name."""


def build_autoencoder(
    name: str, *, channels: int, height: int, side: int, patch: int, width: int | None
) -> nn.Module:
    """A freshly initialised ViTMAEForPreTraining of transformers; 3/4 of the patches are masked."""
    transformers = need("transformers", "tasks")
    shape = choose(name, VITS, what="model")
    width = shape.width if width is None else width
    decoder_width = width * shape.decoder_width // shape.width
    unit, decoder_unit = math.lcm(4, shape.heads), math.lcm(4, shape.decoder_heads)
    if width % unit or decoder_width % decoder_unit or decoder_width == 0:
        step = math.lcm(unit, decoder_unit * shape.width // shape.decoder_width)
        raise LabError(f"--width must be a multiple of {step} for {name}, got {width}")
    if height != side or side % patch:
        raise LabError(
            f"images must be square and a multiple of {patch} pixels wide, got {height}x{side}"
        )
    config = transformers.ViTMAEConfig(
        image_size=side,
        patch_size=patch,
        num_channels=channels,
        hidden_size=width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * width,
        initializer_range=0.02 * (VITS["vit-base"].width / width) ** 0.5,
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=shape.decoder_layers,
        decoder_num_attention_heads=shape.decoder_heads,
        decoder_intermediate_size=4 * decoder_width,
    )
    model = transformers.ViTMAEForPreTraining(config)
    _initialise(model, side // patch)
    built: nn.Module = model
    return built


@torch.no_grad()
def _initialise(model: Any, across: int) -> None:
    """As He et al. have it; of a model that is not loaded, transformers 5.23 leaves this undone.

    Without positions, which it leaves at zero, no patch can be told from another.
    """
    embeddings, decoder = model.vit.embeddings, model.decoder
    for positions in (embeddings.position_embeddings, decoder.decoder_pos_embed):
        positions.copy_(sine_positions(across, positions.shape[-1]))
    weight = embeddings.patch_embeddings.projection.weight
    nn.init.xavier_uniform_(weight.view(len(weight), -1))
    for token in (embeddings.cls_token, decoder.mask_token):
        nn.init.normal_(token, std=model.config.initializer_range)


def sine_positions(across: int, width: int) -> Tensor:
    """(1, 1 + across * across, width): zeros for the class token, then patch after patch.

    Sines and cosines of column and row, at width / 4 frequencies each.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(across)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = line.repeat(across, 1), line.repeat_interleave(across, dim=0)
    patches = torch.cat([columns, rows], dim=1)
    return torch.cat([torch.zeros(1, width), patches])[None]


def masked_error(outputs: Any, images: Tensor) -> Tensor:
    """Mean squared error over the masked patches of each image (B, C, H, H), (B,), in float32.

    ViTMAEForPreTraining has patches (B, L, p * p * C) as `logits`, and a `mask` (B, L) that is 1
    where they were hidden.
    """
    batch, channels, _, side = images.shape
    across = math.isqrt(outputs.logits.shape[1])
    patch = side // across
    patches = images.view(batch, channels, across, patch, across, patch)
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, across * across, -1)
    predicted: Tensor = outputs.logits.float()
    masked: Tensor = outputs.mask
    errors = (predicted - patches).square().mean(dim=2)
    return (errors * masked).sum(dim=1) / masked.sum(dim=1)


class Classifier(nn.Module):
    """A copy of a pretrained encoder that sees all patches, and a linear layer on their mean.

    The layer starts at zero, so that nothing is drawn.
    """

    def __init__(self, pretrained: nn.Module, classes: int) -> None:
        super().__init__()
        encoder: Any = copy.deepcopy(pretrained.vit)
        encoder.embeddings.config.mask_ratio = 0.0  # the copy's own
        self.encoder = encoder
        self.patches: int = encoder.embeddings.patch_embeddings.num_patches
        self.weight = nn.Parameter(torch.zeros(classes, encoder.config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        order = torch.arange(self.patches, device=images.device).expand(len(images), -1)
        tokens = self.encoder(images, noise=order).last_hidden_state[:, 1:]
        return nn.functional.linear(tokens.mean(dim=1), self.weight, self.bias)


def fine_tuned(
    pretrained: nn.Module, images: Tensor, labels: Tensor, *, classes: int, epochs: int, seed: int
) -> Classifier:
    """A classifier that is trained on labelled images, all of its weights; always the same way.

    AdamW, down along a cosine. The order of samples comes from the seed, and nothing else is drawn.
    """
    with torch.enable_grad():
        model = Classifier(pretrained, classes).to(images.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=_WEIGHT_DECAY)
        steps = epochs * math.ceil(len(images) / _BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator).to(images.device)
            for part in order.split(_BATCH):
                loss = cross_entropy(model(images[part]), labels[part], 0.0).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()
