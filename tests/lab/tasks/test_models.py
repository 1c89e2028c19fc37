"""The models are what their names say: shapes, sizes, and a gradient for every parameter."""

import pytest
import torch

from infobatch.lab.errors import LabError
from infobatch.lab.tasks.base.images import Images
from infobatch.lab.tasks.base.models import MODELS, build_model

# The ResNets' are those of the published CIFAR versions with 10 classes.
PARAMETERS = {
    "digits-cnn": 8_254,
    "cifar-cnn": 61_338,
    "vit-tiny": 108_426,
    "convnext-tiny": 99_178,
    "airbench": 498_114,
    "resnet18": 11_173_962,
    "resnet50": 23_520_842,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_size_of_its_kind(name):
    images = Images(1, 10, 8) if name == "digits-cnn" else Images(3, 10, 32)
    model = build_model(name, images, None)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("name", MODELS)
def test_a_narrow_model_takes_any_size_and_trains_every_parameter(name, size):
    model = build_model(name, Images(3, 7, size), 4)
    outputs = model(torch.randn(2, 3, size, size))
    assert outputs.shape == (2, 7)
    outputs.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_an_unknown_model_is_refused_with_the_choices():
    with pytest.raises(LabError, match=r"unknown model 'vgg'.*digits-cnn, cifar-cnn, vit-tiny"):
        build_model("vgg", Images(3, 10, 32), None)
