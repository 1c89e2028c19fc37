"""Images out of noise: an unconditional diffusion model (Ho, Jain and Abbeel, 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infobatch.lab.tasks.base.data import TaskData, TensorData
from infobatch.lab.tasks.base.images import ImageInputs
from infobatch.lab.tasks.base.pictures import (
    PICTURES,
    PICTURES_OPTION,
    load_pictures,
    picture_inputs,
)
from infobatch.lab.tasks.base.task import Metric, Option, Outcome, Task, Trained
from infobatch.lab.tasks.diffusion.denoising import (
    TIMESTEPS,
    UNETS,
    build_denoiser,
    frechet_distance,
    noise_loss,
)

TEST_TIMESTEPS = tuple(range(50, TIMESTEPS, 100))
_TEST_IMAGES = 2000  # of more, the first are taken
_GENERATED = 250
_DRAWN = -1


def load(data_dir: Path | None, images: str) -> TensorData:
    """Images, and as targets the timesteps at which they are denoised.

    Training images have -1: their timestep is drawn each time. Test images come once with each of
    the same ten timesteps.
    """
    pictures = load_pictures(images, data_dir)
    test = pictures.test_inputs[:_TEST_IMAGES]
    timesteps = torch.tensor(TEST_TIMESTEPS)
    return TensorData(
        pictures.train_inputs,
        torch.full((len(pictures),), _DRAWN),
        test.repeat(len(timesteps), 1, 1, 1),
        timesteps.repeat_interleave(len(test)),
    )


def build(name: str, width: int | None, data: TaskData, sampling: str) -> nn.Module:
    """A U-Net for images of this size."""
    (image,), _ = data.samples(torch.tensor([0]))
    channels, side = image.shape[0], image.shape[-1]
    return build_denoiser(name, channels=channels, side=side, width=width, sampling=sampling)


@dataclass(frozen=True)
class NoisyInputs:
    """Images, the noise that is added to them, and how much of it; the target is the noise."""

    inputs: ImageInputs

    def __call__(
        self, images: Tensor, timesteps: Tensor, generator: torch.Generator, training: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Timesteps that are not given are drawn, evenly from all."""
        prepared = self.inputs.inputs(images, generator if training else None)
        noise = torch.randn(prepared.shape, generator=generator).to(prepared.device)
        drawn = torch.randint(TIMESTEPS, (len(images),), generator=generator).to(timesteps)
        chosen = torch.where(timesteps == _DRAWN, drawn, timesteps)
        return {"images": prepared, "noise": noise, "timesteps": chosen}, noise


def loss(outputs: Mapping[str, Tensor], noise: Tensor, _label_smoothing: float) -> Tensor:
    """Mean squared error of each image's noise, (B,), times the weight of its timestep."""
    return outputs["importance"] * noise_loss(outputs["noise"], noise)


def above_usual(outputs: Mapping[str, Tensor], noise: Tensor) -> Tensor:
    """The loss over what is usual at that level of noise, (B,)."""
    return noise_loss(outputs["noise"], noise) / outputs["usual"]


def evaluate(run: Trained) -> Outcome:
    """The loss on the test set, and how far generated images are from it."""
    losses = [noise_loss(outputs["noise"], noise) for outputs, noise in run.test_outputs()]
    inputs = picture_inputs("digits")  # as stored, so that they are not flipped
    rows = torch.cat([inputs.inputs(images, None) for images, _ in run.data.test_batches(1000)])
    start = torch.randn((_GENERATED, *rows.shape[1:]), generator=torch.Generator().manual_seed(0))
    model: Any = run.model.eval()
    generated = model.generate(start.to(run.device))
    return Outcome(
        float(torch.cat(losses).double().mean()),
        more={"Fréchet distance of pixels": frechet_distance(generated, rows)},
    )


OPTIONS = {
    "images": PICTURES_OPTION,
    "score": Option(
        "raw",
        "raw (the loss) or timestep (the loss over what is usual at its level of noise)",
        ("raw", "timestep"),
    ),
    "timesteps": Option(
        "uniform",
        "how they are drawn: uniform; importance (by the losses, with inverse weights); speed",
        ("uniform", "importance", "speed"),
    ),
}


def _of_options(values: Mapping[str, Any]) -> dict[str, Any]:
    images = values["images"]
    return {
        "load": lambda data_dir: load(data_dir, images),
        "prepare": NoisyInputs(picture_inputs(images)),
        "build": partial(build, sampling=values["timesteps"]),
        "rank": above_usual if values["score"] == "timestep" else None,
        "thumbnail": PICTURES[images].thumbnail,
    }


TASK = Task.with_defaults(
    OPTIONS,
    _of_options,
    name="diffusion",
    description="images out of noise: the noise in an image is predicted",
    epochs=20,
    batch_size=64,
    lr=2e-3,
    model="unet-small",
    models=tuple(UNETS),
    loss=loss,
    evaluate=evaluate,
    metric=Metric("denoising loss", "MSE", higher_is_better=False, margin=0.002, digits=4),
    weight_decay=0.0,
    grad_clip=1.0,
    eval_every=0,
    paper={"prune_ratio": 0.5, "delta": 0.825},
)
