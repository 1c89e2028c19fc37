"""Pretraining without labels: a masked autoencoder (He et al., 2022), judged after fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from infobatch.lab.tasks.base.data import TaskData
from infobatch.lab.tasks.base.images import ImageInputs, accuracy_of
from infobatch.lab.tasks.base.pictures import (
    PICTURES,
    PICTURES_OPTION,
    load_pictures,
    picture_inputs,
)
from infobatch.lab.tasks.base.task import Metric, Outcome, Task, Trained
from infobatch.lab.tasks.mae.masked import VITS, build_autoencoder, fine_tuned, masked_error


@dataclass(frozen=True)
class _Scale:
    """What suits the images: the side of a patch, and how they are fine-tuned on."""

    patch: int
    labelled: int
    epochs: int
    crop_padding: int = 0


_SCALES = {
    "digits": _Scale(patch=2, labelled=200, epochs=50),
    "cifar10": _Scale(patch=4, labelled=5000, epochs=20, crop_padding=4),
}


@dataclass(frozen=True)
class MaskedInputs:
    """Images, and the noise whose order says which of their patches are masked."""

    inputs: ImageInputs
    patch: int

    def __call__(
        self, images: Tensor, _labels: Tensor, generator: torch.Generator, training: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What ViTMAEForPreTraining is called with; the target is the images themselves."""
        prepared = self.inputs.inputs(images, generator if training else None)
        patches = (images.shape[-1] // self.patch) ** 2
        noise = torch.rand(len(images), patches, generator=generator).to(prepared.device)
        return {"pixel_values": prepared, "noise": noise}, prepared


def loss(outputs: Any, images: Tensor, _label_smoothing: float) -> Tensor:
    """Mean squared error over the masked patches of each image, (B,)."""
    return masked_error(outputs, images)


@dataclass(frozen=True)
class FineTuned:
    """Judges a pretrained model by its accuracy after fine-tuning a copy on few labels.

    Every run has the labels of the same samples.
    """

    scale: _Scale
    inputs: ImageInputs

    def __call__(self, run: Trained) -> Outcome:
        """Accuracy on the test set, in percent, and the loss of reconstruction there."""
        found = [masked_error(outputs, images) for outputs, images in run.test_outputs()]
        error = float(torch.cat(found).double().mean())
        order = torch.randperm(len(run.data), generator=torch.Generator().manual_seed(0))
        rows, labels = run.data.samples(order[: self.scale.labelled].to(run.device))
        model = fine_tuned(
            run.model,
            self.inputs.inputs(rows, None),
            labels,
            classes=len(run.data.class_names),
            epochs=self.scale.epochs,
            seed=run.seed,
        )
        outcome = accuracy_of(self._classified(model, run.data), len(run.data.class_names))
        return replace(outcome, more={"reconstruction loss": error})

    @torch.no_grad()
    def _classified(self, model: nn.Module, data: TaskData) -> Iterator[tuple[Tensor, Tensor]]:
        for rows, labels in data.test_batches(1000):
            yield model(self.inputs.inputs(rows, None)), labels


OPTIONS = {"images": PICTURES_OPTION}


def _of_options(values: Mapping[str, Any]) -> dict[str, Any]:
    images = values["images"]
    scale = _SCALES[images]
    inputs = picture_inputs(images, crop_padding=scale.crop_padding)

    def build(name: str, width: int | None, data: TaskData) -> nn.Module:
        (image,), _ = data.samples(torch.tensor([0]))
        channels, height, side = image.shape
        return build_autoencoder(
            name, channels=channels, height=height, side=side, patch=scale.patch, width=width
        )

    return {
        "load": lambda data_dir: load_pictures(images, data_dir),
        "build": build,
        "prepare": MaskedInputs(inputs, scale.patch),
        "evaluate": FineTuned(scale, inputs),
        "thumbnail": PICTURES[images].thumbnail,
    }


TASK = Task.with_defaults(
    OPTIONS,
    _of_options,
    name="mae",
    description="pretraining without labels: images are rebuilt from a quarter of their patches",
    epochs=40,
    batch_size=32,
    lr=3e-3,
    model="vit-small",
    models=tuple(VITS),
    loss=loss,
    metric=Metric("accuracy, fine-tuned", margin=1.0),
    schedule="cosine",
    grad_clip=1.0,
    eval_every=0,
    paper={"model": "vit-base", "epochs": 300, "prune_ratio": 0.5},
)
