"""The models are what their names say: shapes, sizes, and a gradient for every parameter."""

import pytest
import torch

from infobatch.lab.errors import LabError
from infobatch.lab.models import MODELS, build_model

# The ResNets' are those of the published CIFAR versions with 10 classes.
PARAMETERS = {
    "digits-cnn": 8_254,
    "cifar-cnn": 61_338,
    "resnet18": 11_173_962,
    "resnet50": 23_520_842,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_size_of_its_kind(name):
    channels = 1 if name == "digits-cnn" else 3
    model = build_model(name, channels=channels, classes=10, width=None)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", MODELS)
def test_a_narrow_model_trains_every_parameter(name):
    model = build_model(name, channels=3, classes=7, width=4)
    outputs = model(torch.randn(2, 3, 32, 32))
    assert outputs.shape == (2, 7)
    outputs.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_an_unknown_model_is_refused_with_the_choices():
    with pytest.raises(LabError, match=r"unknown model 'vgg'.*digits-cnn, cifar-cnn, resnet18"):
        build_model("vgg", channels=3, classes=10, width=None)
