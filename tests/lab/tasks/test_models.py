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


def test_the_first_layer_of_airbench_whitens_patches_and_stays_so():
    torch.manual_seed(0)
    model = build_model("airbench", Images(channels=3, classes=10, size=32), 8)
    images = torch.nn.functional.avg_pool2d(torch.randn(200, 3, 34, 34), 3, stride=1)
    model.whiten(images)
    layer = model[0]
    found = torch.nn.functional.conv2d(images, layer.weight).movedim(1, -1).flatten(0, 2)
    covariance = found[:, :12].T.cov()
    torch.testing.assert_close(covariance, torch.eye(12), rtol=0.05, atol=0.05)
    torch.testing.assert_close(found[:, 12:], -found[:, :12])
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad
