"""A diffusion model: it predicts the noise in an image; what it generates is judged.

Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv 2006.11239.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infobatch.lab.errors import LabError, need
from infobatch.lab.registry import choose

TIMESTEPS = 1000
LEVELS = 10
"""Ranges of noise within which losses are compared; their bounds are squares, as losses change
fastest where there is little noise."""
_DECAY = 0.95  # for each sample: a mean over about the last twenty at that level
_ALSO = 0.01  # of the mean odds: no timestep is never drawn
_GENERATION_STEPS = 20
_SIDE = 8  # pixels that images are averaged to before they are compared


class Denoiser(nn.Module):
    """Predicts the noise that was added to images, and remembers the usual loss at each level.

    A sample's loss says more of how much noise was drawn for it than of the sample. What is usual
    is an exponential mean over the training samples that were passed at a level, with the bias of
    its start taken out. It lies in buffers, so that a checkpoint carries it.

    Args:
        unet: called with noisy images (B, C, H, W) and timesteps (B,); the noise is its `sample`.
        noising: adds noise; a scheduler of diffusers, as is `generating`.
        generating: takes it away step by step.
        sampling: of timesteps in training, which come drawn evenly. "uniform": as they come.
            "importance": in proportion to the root of the mean square of the losses at a level,
            with inverse weights, as in improved DDPM (Nichol and Dhariwal, 2021, arXiv 2102.09672,
            section 3.3), but by level and not by timestep. "speed": more often where the noise
            changes fast, without weights, as in SpeeD (CVPR 2025).
    """

    level_loss: Tensor
    level_square: Tensor
    level_weight: Tensor

    def __init__(
        self, unet: nn.Module, noising: Any, generating: Any, sampling: str = "uniform"
    ) -> None:
        super().__init__()
        self.unet = unet
        self.noising = noising
        self.generating = generating
        self.sampling = sampling
        for name in ("level_loss", "level_square", "level_weight"):
            self.register_buffer(name, torch.zeros(LEVELS))

    def forward(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
        """What is predicted, and what losses at these timesteps are.

        Returns:
            "noise" (B, C, H, W) as predicted, "usual" (B,) loss, "importance" (B,): the weight that
            makes good how often such a timestep is drawn.
        """
        importance = torch.ones(len(timesteps), device=timesteps.device)
        if self.training and self.sampling != "uniform":
            odds = self.odds().to(timesteps.device)
            upto = odds.cumsum(0) / odds.sum()
            timesteps = torch.searchsorted(upto, (timesteps.double() + 0.5) / TIMESTEPS)
            timesteps = timesteps.clamp(max=TIMESTEPS - 1)
            if self.sampling == "importance":
                importance = (odds.mean() / odds[timesteps]).to(importance)
        predicted = self.unet(self.noising.add_noise(images, noise, timesteps), timesteps).sample
        levels = level_of(timesteps)
        if self.training:
            self._remember(levels, noise_loss(predicted.detach(), noise))
        usual = self.level_loss / self.level_weight
        usual = torch.where(self.level_weight > 0, usual, torch.ones_like(usual))
        return {"noise": predicted, "usual": usual[levels], "importance": importance}

    def odds(self) -> Tensor:
        """(TIMESTEPS,) float64: how often each timestep is to be drawn, over the others."""
        timesteps = torch.arange(TIMESTEPS)
        if self.sampling == "importance" and bool((self.level_weight > 0).all()):
            size = (self.level_square / self.level_weight).double().sqrt().cpu()
            return size[level_of(timesteps)] + _ALSO * size.mean()
        if self.sampling == "speed":
            spread = (1 - self.noising.alphas_cumprod.double()).sqrt()
            return torch.tanh(1e6 * (spread.diff(prepend=spread[:1]) - 1e-4)) + 1.5
        return torch.ones(TIMESTEPS, dtype=torch.float64)

    @torch.no_grad()
    def _remember(self, levels: Tensor, losses: Tensor) -> None:
        counts = torch.bincount(levels, minlength=LEVELS)
        stays = _DECAY**counts
        for means, values in ((self.level_loss, losses), (self.level_square, losses.square())):
            sums = torch.zeros_like(means).index_add_(0, levels, values)
            means.mul_(stays).add_((1 - stays) * sums / counts.clamp(min=1))
        self.level_weight.mul_(stays).add_(1 - stays)

    @torch.no_grad()
    def generate(self, start: Tensor) -> Tensor:
        """Images in [-1, 1] out of pure noise, the same for the same noise.

        By DDIM: Song, Meng and Ermon, 2021, arXiv 2010.02502.
        """
        self.generating.set_timesteps(_GENERATION_STEPS, device=start.device)
        images = start
        for timestep in self.generating.timesteps:
            predicted = self.unet(images, timestep).sample
            images = self.generating.step(predicted, timestep, images).prev_sample
        return images.clamp(-1, 1)


def level_of(timesteps: Tensor) -> Tensor:
    """In which range of noise they lie, 0 to `LEVELS` - 1."""
    return (LEVELS * (timesteps.double() / TIMESTEPS).sqrt()).long()


def noise_loss(predicted: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of each image's noise, (B,), in float32."""
    return (predicted.float() - noise).square().mean(dim=(1, 2, 3))


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Between the two normal distributions that have the images' means and covariances.

    The formula of the FID (Heusel et al., 2017, arXiv 1706.08500), on pixels and not on an
    Inception network's features: images are averaged to 8x8 pixels, and values lie in [-1, 1].
    """
    (mean, covariance), (other_mean, other_covariance) = _moments(one), _moments(other)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    spread = covariance.trace() + other_covariance.trace() - 2 * shared
    return float((mean - other_mean).square().sum() + spread)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    pixels = F.adaptive_avg_pool2d(images.double(), _SIDE).flatten(1)
    mean = pixels.mean(dim=0)
    return mean, (pixels - mean).T @ (pixels - mean) / len(pixels)


@dataclass(frozen=True)
class _Shape:
    """Width of the first block, that of the others over it, layers in each, and attention."""

    width: int
    factors: tuple[int, ...]
    layers: int
    groups: int
    attention: int  # the number of the block that has it


UNETS: Mapping[str, _Shape] = {
    "unet-small": _Shape(width=16, factors=(1, 2), layers=1, groups=8, attention=1),
    # Ho et al. for CIFAR-10, but for dropout, which draws from the global generator.
    "unet-ddpm": _Shape(width=128, factors=(1, 2, 2, 2), layers=2, groups=32, attention=1),
}
"""Every model by name."""


def build_denoiser(
    name: str, *, channels: int, side: int, width: int | None, sampling: str = "uniform"
) -> Denoiser:
    """A freshly initialised U-Net of diffusers, with the noise schedule of Ho et al."""
    diffusers = need("diffusers", "tasks")
    shape = choose(name, UNETS, what="model")
    width = shape.width if width is None else width
    halvings = 2 ** (len(shape.factors) - 1)
    if width % shape.groups:
        raise LabError(f"--width must be a multiple of {shape.groups} for {name}, got {width}")
    if side % halvings:
        raise LabError(f"images for {name} must be a multiple of {halvings} wide, got {side}")
    blocks = range(len(shape.factors))
    unet = diffusers.UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=shape.layers,
        block_out_channels=[width * factor for factor in shape.factors],
        down_block_types=[_block("Down", shape, number) for number in blocks],
        up_block_types=[_block("Up", shape, number) for number in reversed(blocks)],
        norm_num_groups=shape.groups,
        attention_head_dim=8,
    )
    noising = diffusers.DDPMScheduler(num_train_timesteps=TIMESTEPS)
    generating = diffusers.DDIMScheduler.from_config(noising.config)
    return Denoiser(unet, noising, generating, sampling)


def _block(direction: str, shape: _Shape, number: int) -> str:
    return f"{'Attn' if number == shape.attention else ''}{direction}Block2D"
