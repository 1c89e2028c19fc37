"""The imagenet task trains any model of timm and torchvision, by its name there."""

import numpy as np
import pytest
import torch
from PIL import Image
from tests.lab.support import training_run

from infobatch.lab.errors import LabError
from infobatch.lab.tasks import all_tasks

TASK, _ = all_tasks()["imagenet"].with_options({"image-size": "32", "workers": "0"})


@pytest.fixture
def data(tmp_path):
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("dark", "light"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 100, (40, 40, 3)) + 150 * (name == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return TASK.load(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["timm:test_vit", "timm:resnet10t", "torchvision:resnet18", "torchvision:shufflenet_v2_x0_5"],
)
def test_a_model_of_another_library_is_trained_on_images_of_the_tasks_size(name, data):
    TASK.check_model(name)
    run = training_run("infobatch", data, task=TASK, model=name, width=None, batch_size=6, epochs=2)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.run_epoch()
    assert run.outcome is None or 0 <= run.outcome.metric <= 100
    assert run.pruner.scores.isfinite().all()
    changed = [
        not torch.equal(p, old) for p, old in zip(run.model.parameters(), before, strict=True)
    ]
    assert all(changed[-2:])
    (outputs, _) = next(iter(run.test_outputs()))
    assert outputs.shape == (12, 2)


@pytest.mark.parametrize("name", ["timm:no_such_net", "torchvision:no_such_net"])
def test_a_name_that_the_library_does_not_know_is_said_plainly(name, data):
    with pytest.raises(LabError, match=f"--model {name} cannot be built"):
        TASK.build(name, None, data)
