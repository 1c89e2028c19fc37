"""Images in class folders, as ImageNet-1k is laid out: photographs of any size, read from disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infobatch.lab.errors import LabError, need
from infobatch.lab.tasks.base.data import TaskData
from infobatch.lab.tasks.base.images import ImageInputs, Images, accuracy, picture
from infobatch.lab.tasks.base.resnet import resnet18, resnet50
from infobatch.lab.tasks.base.task import Option, Outcome, Task, Trained
from infobatch.lab.tasks.imagenet.folders import Crops, FolderData, read_image_folder
from infobatch.lab.tasks.imagenet.mixing import mix, mixed_cross_entropy

_NORMALISED = ImageInputs(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_MODELS: Mapping[str, Callable[[Images, int], nn.Module]] = {
    "resnet18": partial(resnet18, large=True),
    "resnet50": partial(resnet50, large=True),
}
OPTIONS = {
    "image-size": Option("224", "height and width of the model's images", kind=int, at_least=8),
    "mix": Option("none", "none, mixup or cutmix", ("none", "mixup", "cutmix")),
    "smallest-crop": Option(
        "0.08", "least fraction of an image in a crop", kind=float, at_least=1e-3, at_most=1
    ),
    "workers": Option("2", "processes that read images; 0: none besides the training", kind=int),
    "corrupt": Option(
        "error", "error: stop at an unreadable image; skip: leave it out", ("error", "skip")
    ),
}


@dataclass(frozen=True)
class _Inputs:
    """Normalise, and in training mix images if asked to; crops and flips are the reader's."""

    mix: str

    def __call__(
        self, rows: Tensor, targets: Tensor, generator: torch.Generator, training: bool
    ) -> tuple[Tensor, Any]:
        inputs = _NORMALISED.inputs(rows, None)
        if not training or self.mix == "none":
            return inputs, targets
        return mix(inputs, targets, generator, cut=self.mix == "cutmix")


def load(data_dir: Path | None, *, crops: Crops, workers: int, corrupt: str) -> FolderData:
    """The images under `data_dir`."""
    if data_dir is None:
        raise LabError(
            "imagenet needs --data-dir, a folder with train/CLASS/*.jpg and val/CLASS/*.jpg: "
            "ImageNet-1k from https://www.image-net.org/download.php, its validation images sorted "
            "into class folders, or any images of yours in that layout"
        )
    data = read_image_folder(data_dir, crops, workers)
    return data.without_unreadable() if corrupt == "skip" else data


def build(name: str, width: int | None, data: TaskData, *, size: int) -> nn.Module:
    """A model of this package, or of timm or torchvision where they are installed."""
    classes = len(data.class_names)
    if name in _MODELS:
        images = Images(channels=3, classes=classes, size=size)
        return _MODELS[name](images, 64 if width is None else width)
    if width is not None:
        raise LabError(f"--width is for {' and '.join(_MODELS)}, not for {name}")
    library, _, wanted = name.partition(":")
    make = _from_timm if library == "timm" else _from_torchvision
    try:
        return make(wanted, classes, size)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"--model {name} cannot be built ({error})") from error


def _from_timm(name: str, classes: int, size: int) -> nn.Module:
    create: Callable[..., nn.Module] = need("timm", "timm").create_model
    try:
        return create(name, num_classes=classes, img_size=size)
    except TypeError:  # most networks take any size, and no such argument
        return create(name, num_classes=classes)


def _from_torchvision(name: str, classes: int, _size: int) -> nn.Module:
    create: Callable[..., nn.Module] = need("torchvision", "timm").models.get_model
    return create(name, weights=None, num_classes=classes)


def evaluate(run: Trained) -> Outcome:
    """Accuracy, also among the five likeliest classes, and how many files were left out."""
    outcome = accuracy(run, top=5)
    assert isinstance(run.data, FolderData)
    return replace(outcome, more={**outcome.more, "unreadable images": run.data.left_out})


def _of_options(values: Mapping[str, Any]) -> dict[str, Any]:
    size = values["image-size"]
    crops = Crops(size, values["smallest-crop"])
    workers = values["workers"]
    return {
        "load": partial(load, crops=crops, workers=workers, corrupt=values["corrupt"]),
        "build": partial(build, size=size),
        "prepare": _Inputs(values["mix"]),
        "by_class_logits": values["mix"] == "none",  # otherwise images have two labels
    }


TASK = Task.with_defaults(
    OPTIONS,
    _of_options,
    name="imagenet",
    description="images in class folders, ImageNet-1k or your own",
    epochs=30,
    batch_size=256,
    lr=0.5,
    optimizer="sgd",
    weight_decay=5e-5,
    label_smoothing=0.1,
    model="resnet50",
    models=(*_MODELS, "timm:NAME", "torchvision:NAME"),
    threads=0,
    loss=mixed_cross_entropy,
    evaluate=evaluate,
    batch_of_test=256,
    thumbnail=picture,
    paper={
        "model": "resnet50",
        "epochs": 90,
        "batch_size": 1024,
        "optimizer": "lars",
        "lr": 6.4,
        "schedule": "onecycle",
        "weight_decay": 1e-5,
        "label_smoothing": 0.1,
    },
)
