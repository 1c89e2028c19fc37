"""BCCD: 4,888 blood cells of three kinds in 364 photographs through a microscope, with boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from infobatch.lab.data import TaskData, TensorData
from infobatch.lab.datasets.voc import read_voc
from infobatch.lab.detection import (
    MODELS,
    BoxData,
    BoxInputs,
    box_data,
    build_detector,
    image_loss,
    mean_average_precision,
)
from infobatch.lab.images import ImageInputs, picture
from infobatch.lab.options import number, whole_number
from infobatch.lab.task import Metric, Option, Task

_HOW_TO_GET = (
    "Fetch the folder BCCD of https://github.com/Shenggan/BCCD_Dataset and give --data-dir "
    "path/to/BCCD; any data set in the folders of Pascal VOC will do."
)


def load(data_dir: Path | None, size: int) -> BoxData:
    """Images scaled to that longer side, with their boxes."""
    return box_data(*read_voc(data_dir, "BCCD", _HOW_TO_GET), size)


def build(name: str, width: int | None, data: TaskData) -> nn.Module:
    """A detector for as many classes as the boxes have."""
    assert isinstance(data, TensorData)
    classes = 1 + int(data.train_targets[..., 0].max())
    return build_detector(name, classes=classes, width=width)


def _prepare(mosaic: float, contrast: float) -> BoxInputs:
    return BoxInputs(ImageInputs((0.0,) * 3, (1.0,) * 3, contrast=contrast), mosaic)


def _remake(values: Mapping[str, str]) -> Task:
    size = whole_number(values, "size", at_least=32)
    mosaic = number(values, "mosaic", at_least=0, at_most=1)
    return replace(
        TASK,
        load=lambda data_dir: load(data_dir, size),
        prepare=_prepare(mosaic, 0.0),
        strong=_prepare(mosaic, 0.4),
    )


TASK = Task(
    name="detection",
    description="BCCD, blood cells of three kinds, found by YOLOv8",
    epochs=30,
    batch_size=8,
    lr=2e-3,
    model="yolov8",
    threads=1,
    models=tuple(MODELS),
    load=lambda data_dir: load(data_dir, 128),
    build=build,
    prepare=_prepare(0.5, 0.0),
    strong=_prepare(0.5, 0.4),
    loss=image_loss,
    evaluate=mean_average_precision,
    metric=Metric("mAP50-95", margin=1.0),
    optimizer="adamw",
    weight_decay=0.05,
    label_smoothing=0.0,
    grad_clip=10.0,
    eval_every=10,
    batch_of_test=24,
    thumbnail=picture,
    options={
        "size": Option("128", "longer side that images are scaled to, in pixels"),
        "mosaic": Option("0.5", "part of the training images that are made mosaics"),
    },
    remake=_remake,
)
