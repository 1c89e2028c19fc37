"""BCCD: 4,888 blood cells of three kinds in 364 photographs through a microscope, with boxes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from infobatch.lab.tasks.base.data import TaskData, TensorData
from infobatch.lab.tasks.base.images import ImageInputs, picture
from infobatch.lab.tasks.base.task import Metric, Option, Task
from infobatch.lab.tasks.detection.boxes import BoxData, BoxInputs, box_data
from infobatch.lab.tasks.detection.voc import read_voc
from infobatch.lab.tasks.detection.yolo import (
    MODELS,
    build_detector,
    image_loss,
    mean_average_precision,
)

_HOW_TO_GET = (
    "Fetch the folder BCCD of https://github.com/Shenggan/BCCD_Dataset and give --data-dir "
    "path/to/BCCD; any data set in the folders of Pascal VOC will do: JPEGImages/*.jpg, "
    "Annotations/*.xml, and ImageSets/Main with trainval.txt (or train.txt and val.txt) and "
    "test.txt."
)
OPTIONS = {
    "size": Option(
        "128", "longer side that images are scaled to, in pixels", kind=int, at_least=32
    ),
    "mosaic": Option(
        "0.5", "fraction of the training images that are made mosaics", kind=float, at_most=1
    ),
}


def load(data_dir: Path | None, size: int) -> BoxData:
    """Images scaled to that longer side, with their boxes."""
    return box_data(*read_voc(data_dir, "BCCD", _HOW_TO_GET), size)


def build(name: str, width: int | None, data: TaskData) -> nn.Module:
    """A detector for as many classes as the boxes have."""
    classes = 1 + int(cast(TensorData, data).train_targets[..., 0].max())
    return build_detector(name, classes=classes, width=width)


def _of_options(values: Mapping[str, Any]) -> dict[str, Any]:
    size, mosaic = values["size"], values["mosaic"]
    zeros, ones = (0.0,) * 3, (1.0,) * 3
    return {
        "load": lambda data_dir: load(data_dir, size),
        "prepare": BoxInputs(ImageInputs(zeros, ones), mosaic),
        "strong": BoxInputs(ImageInputs(zeros, ones, contrast=0.4), mosaic),
    }


TASK = Task.with_defaults(
    OPTIONS,
    _of_options,
    name="detection",
    description="BCCD, blood cells of three kinds, found by YOLOv8",
    epochs=30,
    batch_size=8,
    lr=2e-3,
    model="yolov8",
    models=tuple(MODELS),
    build=build,
    loss=image_loss,
    evaluate=mean_average_precision,
    metric=Metric("mAP50-95", margin=1.0),
    grad_clip=10.0,
    eval_every=10,
    batch_of_test=24,
    thumbnail=picture,
)
