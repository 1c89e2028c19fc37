"""CamVid: the class of every pixel of 701 street scenes (Brostow, Fauqueur and Cipolla, 2009)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infobatch.lab.tasks.base.data import TaskData, TensorData
from infobatch.lab.tasks.base.files import channels_first
from infobatch.lab.tasks.base.images import ImageInputs, picture
from infobatch.lab.tasks.base.task import Metric, Option, Task
from infobatch.lab.tasks.camvid.models import MODELS, build_segmenter
from infobatch.lab.tasks.camvid.reader import (
    CLASSES,
    UNLABELLED,
    LabelledImages,
    halved,
    read_camvid,
)
from infobatch.lab.tasks.camvid.segmentation import (
    IGNORED,
    SegmentationInputs,
    image_loss,
    mean_iou,
)

OPTIONS = {
    "height": Option(
        "90", "images are halved until they are at most so many pixels high", kind=int, at_least=16
    ),
    "crop": Option(
        "0.6",
        "fraction of height and width that a training image is cropped to",
        kind=float,
        at_least=0.01,
        at_most=1,
    ),
}


def load(data_dir: Path | None, height: int) -> TensorData:
    """Images and label maps, halved until they are at most so high."""
    train, test = read_camvid(data_dir)
    while train.maps.shape[1] > height:
        train, test = halved(train), halved(test)

    def tensors(part: LabelledImages) -> tuple[Tensor, Tensor]:
        maps = np.where(part.maps == UNLABELLED, IGNORED, part.maps).astype(np.uint8)
        return torch.from_numpy(channels_first(part.images)), torch.from_numpy(maps)

    return TensorData(*tensors(train), *tensors(test))


def build(name: str, width: int | None, _data: TaskData) -> nn.Module:
    """A model for eleven classes."""
    return build_segmenter(name, classes=len(CLASSES), width=width)


def _of_options(values: Mapping[str, Any]) -> dict[str, Any]:
    height, crop = values["height"], values["crop"]
    mean, std = (0.413, 0.427, 0.433), (0.302, 0.306, 0.302)
    return {
        "load": lambda data_dir: load(data_dir, height),
        "prepare": SegmentationInputs(ImageInputs(mean, std), crop),
        "strong": SegmentationInputs(ImageInputs(mean, std, contrast=0.4), crop),
    }


TASK = Task.with_defaults(
    OPTIONS,
    _of_options,
    name="camvid",
    description="CamVid, the class of every pixel of street scenes; 11 classes",
    epochs=20,
    batch_size=8,
    lr=2e-3,
    model="upernet",
    models=tuple(MODELS),
    build=build,
    loss=image_loss,
    evaluate=mean_iou,
    metric=Metric("mIoU", margin=1.0),
    eval_every=5,
    batch_of_test=32,
    thumbnail=picture,
    paper={
        "model": "upernet-r50",
        "epochs": 63,
        "batch_size": 16,
        "optimizer": "sgd",
        "lr": 0.01,
        "weight_decay": 5e-4,
    },
)
