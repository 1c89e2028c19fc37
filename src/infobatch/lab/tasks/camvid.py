"""CamVid: the class of every pixel of 701 street scenes (Brostow, Fauqueur and Cipolla, 2009)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from infobatch.lab.data import TaskData, TensorData
from infobatch.lab.datasets.camvid import CLASSES, UNLABELLED, LabelledImages, halved, read_camvid
from infobatch.lab.images import ImageInputs, picture
from infobatch.lab.options import number, whole_number
from infobatch.lab.segmentation import (
    IGNORED,
    MODELS,
    SegmentationInputs,
    build_segmenter,
    image_loss,
    mean_iou,
)
from infobatch.lab.task import Metric, Option, Task

_MEAN, _STD = (0.413, 0.427, 0.433), (0.302, 0.306, 0.302)


def load(data_dir: Path | None, height: int) -> TensorData:
    """Images and label maps, halved until they are at most so high."""
    train, test = read_camvid(data_dir)
    while train.maps.shape[1] > height:
        train, test = halved(train), halved(test)

    def tensors(part: LabelledImages) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(part.images.transpose(0, 3, 1, 2).copy())
        maps = torch.from_numpy(np.where(part.maps == UNLABELLED, IGNORED, part.maps))
        return images, maps.to(torch.uint8)

    return TensorData(*tensors(train), *tensors(test))


def build(name: str, width: int | None, _data: TaskData) -> nn.Module:
    """A model for eleven classes."""
    return build_segmenter(name, classes=len(CLASSES), width=width)


def _prepare(crop: float, contrast: float) -> SegmentationInputs:
    return SegmentationInputs(ImageInputs(_MEAN, _STD, contrast=contrast), crop)


def _remake(values: Mapping[str, str]) -> Task:
    height = whole_number(values, "height", at_least=16)
    crop = number(values, "crop", at_least=0.01, at_most=1)
    return replace(
        TASK,
        load=lambda data_dir: load(data_dir, height),
        prepare=_prepare(crop, 0.0),
        strong=_prepare(crop, 0.4),
    )


TASK = Task(
    name="camvid",
    description="CamVid, the class of every pixel of street scenes; 11 classes",
    epochs=20,
    batch_size=8,
    lr=2e-3,
    model="upernet",
    threads=1,
    models=tuple(MODELS),
    load=lambda data_dir: load(data_dir, 90),
    build=build,
    prepare=_prepare(0.6, 0.0),
    strong=_prepare(0.6, 0.4),
    loss=image_loss,
    evaluate=mean_iou,
    metric=Metric("mIoU", margin=1.0),
    optimizer="adamw",
    weight_decay=0.05,
    label_smoothing=0.0,
    eval_every=5,
    batch_of_test=32,
    thumbnail=picture,
    options={
        "height": Option("90", "images are halved until they are at most so many pixels high"),
        "crop": Option("0.6", "part of height and width that a training image is cropped to"),
    },
    remake=_remake,
    paper={
        "model": "upernet-r50",
        "epochs": 63,
        "batch_size": 16,
        "optimizer": "sgd",
        "lr": 0.01,
        "weight_decay": 5e-4,
    },
)
