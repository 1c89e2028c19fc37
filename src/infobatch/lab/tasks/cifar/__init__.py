"""CIFAR-10 and CIFAR-100: 60,000 photographs of 32x32 pixels in 10 or 100 classes.

Krizhevsky, 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from infobatch.lab.tasks.base.data import TaskData, TensorData
from infobatch.lab.tasks.base.files import channels_first
from infobatch.lab.tasks.base.images import ImageInputs, Images, accuracy, cross_entropy, picture
from infobatch.lab.tasks.base.models import ADAPTIVE, MODELS, Airbench, build_model
from infobatch.lab.tasks.base.task import Task
from infobatch.lab.tasks.cifar.human_labels import read_human_labels
from infobatch.lab.tasks.cifar.reader import read_cifar

Colour = tuple[float, float, float]
_WHITENED = 5000  # images whose patches the first layer of airbench is made for


def cifar_task(classes: int, mean: Colour, std: Colour) -> Task:
    """The task with so many classes, normalised by its mean colour.

    Augmented as in the InfoBatch paper: crops of the image reflect-padded by 4 pixels, and flips.
    """
    standard = ImageInputs(mean, std, crop_padding=4, flip=True)

    def load(data_dir: Path | None) -> TensorData:
        arrays = read_cifar(data_dir, classes=classes)
        return TensorData(
            torch.from_numpy(channels_first(arrays.train_images)),
            torch.from_numpy(arrays.train_labels),
            torch.from_numpy(channels_first(arrays.test_images)),
            torch.from_numpy(arrays.test_labels),
            arrays.class_names,
        )

    def build(name: str, width: int | None, data: TaskData) -> nn.Module:
        rows, _ = data.samples(torch.tensor([0]))
        model = build_model(name, Images(channels=3, classes=classes, size=rows.shape[-1]), width)
        if isinstance(model, Airbench):
            rows, _ = data.samples(torch.arange(min(_WHITENED, len(data))))
            model.whiten(standard.inputs(rows, None))
        return model

    return Task(
        name=f"cifar{classes}",
        description=f"CIFAR-{classes}, 60,000 photographs, 32x32 pixels, {classes} classes",
        epochs=30,
        batch_size=128,
        lr=0.2,
        model="cifar-cnn",
        threads=0,
        load=load,
        build=build,
        models=tuple(MODELS),
        prepare=standard,
        strong=ImageInputs(mean, std, crop_padding=4, flip=True, erase=16, contrast=0.4),
        human_labels=read_human_labels if classes == 10 else None,
        optimizer="sgd",
        weight_decay=5e-4,
        label_smoothing=0.1,
        loss=cross_entropy,
        evaluate=accuracy,
        by_class_logits=True,
        thumbnail=picture,
        architectures=(
            {"model": "cifar-cnn"},
            {"model": "resnet18", "width": 16},
            {"model": "vit-tiny", **ADAPTIVE},
            {"model": "convnext-tiny", **ADAPTIVE},
        ),
        paper={
            "model": "resnet18",
            "epochs": 200,
            "batch_size": 128,
            "optimizer": "sgd",
            "lr": 0.2,
            "schedule": "onecycle",
            "weight_decay": 5e-4,
            "label_smoothing": 0.1,
        },
    )


TASK = (
    cifar_task(10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    cifar_task(100, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
)
