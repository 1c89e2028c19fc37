"""Scikit-learn's 1,797 handwritten digits: real images, no download, seconds a run.

Alpaydin and Kaynak, 1998, "Optical Recognition of Handwritten Digits", UCI. 8x8 grey values of
0..16; two thirds train and one third tests, stratified by class and always the same split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from infobatch.lab.tasks.base.data import TaskData, TensorData
from infobatch.lab.tasks.base.images import ImageInputs, Images, accuracy, cross_entropy
from infobatch.lab.tasks.base.models import ADAPTIVE, MODELS, build_model
from infobatch.lab.tasks.base.task import Task


def load(_data_dir: Path | None) -> TensorData:
    """The digits that come with scikit-learn, wherever other data may lie."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype(np.int64), test_size=1 / 3, random_state=0, stratify=labels
    )
    return TensorData(
        torch.from_numpy(train_x),
        torch.from_numpy(train_y),
        torch.from_numpy(test_x),
        torch.from_numpy(test_y),
        tuple(str(digit) for digit in range(10)),
    )


def build(name: str, width: int | None, _data: TaskData) -> nn.Module:
    """A model for one grey channel and ten classes."""
    return build_model(name, Images(channels=1, classes=10, size=8), width)


def thumbnail(image: Tensor) -> np.ndarray:
    """Dark ink on white, as it was written."""
    return 255 - image[0].cpu().numpy()


TASK = Task(
    name="digits",
    description="scikit-learn's 1,797 handwritten digits, 8x8 pixels, 10 classes",
    epochs=40,
    batch_size=128,
    lr=0.2,
    model="digits-cnn",
    load=load,
    build=build,
    models=tuple(MODELS),
    prepare=ImageInputs(mean=(0.305,), std=(0.376,)),
    strong=ImageInputs((0.305,), (0.376,), crop_padding=1, erase=3, contrast=0.4),
    optimizer="sgd",
    weight_decay=5e-4,
    label_smoothing=0.1,
    loss=cross_entropy,
    evaluate=accuracy,
    by_class_logits=True,
    thumbnail=thumbnail,
    architectures=(
        {"model": "digits-cnn"},
        {"model": "resnet18", "width": 4},
        {"model": "vit-tiny", "width": 32, **ADAPTIVE},
        {"model": "convnext-tiny", "width": 16, **ADAPTIVE},
    ),
)
