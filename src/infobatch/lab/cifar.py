"""CIFAR-10 and CIFAR-100 as tasks: they differ in the number of classes and the mean colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from infobatch.lab.data import TaskData, TensorData
from infobatch.lab.datasets import ImageArrays, read_cifar
from infobatch.lab.datasets.human_labels import read_human_labels
from infobatch.lab.images import ImageInputs, Images, accuracy, cross_entropy, picture
from infobatch.lab.models import ADAPTIVE, MODELS, build_model
from infobatch.lab.task import Task


def cifar_task(
    *, classes: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Task:
    """The task for the data set with that many classes, normalised by its mean colour.

    Augmented as in the InfoBatch paper: crops of the image reflect-padded by 4 pixels, and flips.
    """

    def load(data_dir: Path | None) -> TensorData:
        return _to_tensors(read_cifar(data_dir, classes=classes))

    def build(name: str, width: int | None, data: TaskData) -> nn.Module:
        rows, _ = data.samples(torch.tensor([0]))
        return build_model(name, Images(channels=3, classes=classes, size=rows.shape[-1]), width)

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
        prepare=ImageInputs(mean=mean, std=std, crop_padding=4, flip=True),
        strong=ImageInputs(mean, std, crop_padding=4, flip=True, erase=16, contrast=0.4),
        human_labels=read_human_labels if classes == 10 else None,
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


def _to_tensors(arrays: ImageArrays) -> TensorData:
    def images(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))

    return TensorData(
        images(arrays.train_images),
        torch.from_numpy(arrays.train_labels),
        images(arrays.test_images),
        torch.from_numpy(arrays.test_labels),
        arrays.class_names,
    )
