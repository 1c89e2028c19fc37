"""Every kind of arm trains every kind of model on CamVid, and what is trained learns."""

import numpy as np
import pytest
import torch
from PIL import Image
from tests.hosts.support import run_example
from tests.lab.support import run_command

from infobatch.lab.errors import LabError
from infobatch.lab.run.results import read_results
from infobatch.lab.run.settings import Settings
from infobatch.lab.run.train import initial_model
from infobatch.lab.tasks import all_tasks
from infobatch.lab.tasks.camvid.models import MODELS, build_segmenter

CAMVID = all_tasks()["camvid"]
ARMS = "full,infobatch,infobatch-quantile,random,kakurenbo,es,selective-backprop,bls"


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Sky above a road of changing height, a car of changing colour on it, and a strip of void."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, (36, 36, 48, 3), dtype=np.uint8)
    maps = np.zeros((36, 36, 48), dtype=np.uint8)
    images[..., 2] += 180
    for image, labels in zip(images, maps, strict=True):
        horizon, left = rng.integers(12, 22), rng.integers(0, 36)
        labels[horizon:] = 3
        image[horizon:] //= 3
        labels[horizon : horizon + 10, left : left + 12] = 8
        image[horizon : horizon + 10, left : left + 12, rng.integers(0, 2)] += 200
        labels[-2:] = 11
    path = tmp_path_factory.mktemp("streets") / "camvid.npz"
    np.savez(path, x_train=images[:24], y_train=maps[:24], x_test=images[24:], y_test=maps[24:])
    return path


def compare(streets, out, *arguments):
    given = ("--data-dir", str(streets), "--out", str(out), "--option", "crop=0.9")
    return run_command("compare", "--task", "camvid", *given, "--seeds", "1", *arguments)


def test_every_kind_of_arm_runs(streets, tmp_path):
    small = ("--epochs", "3", "--width", "4", "--batch-size", "6")
    result = compare(streets, tmp_path, "--arms", ARMS, *small)
    assert result.exit_code == 0, result.output
    found = {run.arm: run for run in read_results(tmp_path)}
    assert set(found) == set(ARMS.split(","))
    for run in found.values():
        assert 0 <= run.worst_class <= run.metric <= 100
        assert run.more["pixel accuracy"] > 0
    assert found["infobatch"].cost_fraction < 1
    assert "mIoU" in result.output


@pytest.mark.parametrize("model", ["upernet", "segformer"])
def test_it_learns(model, streets, tmp_path):
    small = ("--epochs", "8", "--width", "8", "--batch-size", "6", "--lr", "0.01")
    result = compare(streets, tmp_path, "--arms", "full", "--model", model, *small)
    assert result.exit_code == 0, result.output
    (run,) = read_results(tmp_path)
    assert run.metric > 50  # sky everywhere: 17
    assert run.curves.mean_loss[-1] < run.curves.mean_loss[0] / 2


@pytest.mark.parametrize("name", list(MODELS))
def test_models_take_any_size_and_are_the_same_for_a_seed(name, streets):
    data = CAMVID.load(streets)
    settings = Settings.of_task(CAMVID, {"model": name, "width": 4, "device": "cpu", "data": ""})
    one, same = (initial_model(CAMVID, settings, data, 3).train() for _ in range(2))
    images = torch.rand(2, 3, 45, 70)
    torch.manual_seed(0)
    found = one(images)
    torch.manual_seed(1)  # nothing is drawn in the forward pass
    for logits, again in zip(found, same(images), strict=True):
        assert logits.shape[:2] == (2, 11)
        assert torch.equal(logits, again)


def test_paper_scale_is_that_of_resnet_50():
    settings = Settings.of_task(CAMVID, {**CAMVID.paper, "device": "cpu", "data": ""})
    model = build_segmenter(settings.model, classes=11, width=None)
    assert model.inner.config.backbone_config.layer_type == "bottleneck"
    assert model.inner.backbone.channels == [256, 512, 1024, 2048]


def test_a_batch_of_one_image_is_refused_in_words():
    model = build_segmenter("upernet", classes=11, width=4).train()
    with pytest.raises(LabError, match="needs two images"):
        model(torch.rand(1, 3, 24, 32))
    model.eval()(torch.rand(1, 3, 24, 32))


def test_images_that_are_too_small_are_refused_in_words():
    model = build_segmenter("segformer", classes=11, width=4)
    with pytest.raises(LabError, match="at least 32x32 pixels, got 28x40"):
        model(torch.rand(2, 3, 28, 40))
    model(torch.rand(2, 3, 32, 32))


@pytest.mark.slow
def test_the_example_saves_and_learns(tmp_path):
    end = run_example("segmentation.py", tmp_path, "--epochs", 8, "--images", 160)
    assert end.passes == 8 * 160
    assert end.saved > 0.1
    assert end.metric > 0.3  # the ground everywhere: 0.2


@pytest.mark.slow
def test_the_example_reads_camvid(streets, tmp_path):
    with np.load(streets) as arrays:
        for part in ("train", "test"):
            for kind, name in (("x", part), ("y", f"{part}annot")):
                (tmp_path / name).mkdir()
                for number, pixels in enumerate(arrays[f"{kind}_{part}"][:6]):
                    Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    end = run_example("segmentation.py", tmp_path, "--epochs", 3, "--data-dir", tmp_path)
    assert end.passes == 3 * 6
