"""Digits and CIFAR under the optimizers and kinds of models that the paper names."""

import pytest
from tests.lab.support import run_command

from infobatch.lab.command.presets import PRESETS
from infobatch.lab.run.results import read_results
from infobatch.lab.run.settings import Settings
from infobatch.lab.tasks import all_tasks

TASKS = all_tasks()
MODELS = ("digits-cnn", "resnet18", "vit-tiny", "convnext-tiny")


def test_a_preset_compares_arms_under_each_of_its_settings(tmp_path):
    result = run_command(
        *("compare", "--preset", "architectures", "--arms", "full", "--width", "4"),
        *("--limit-train", "80", "--batch-size", "40", "--epochs", "2", "--seeds", "1"),
        *("--out", str(tmp_path)),
    )
    assert result.exit_code == 0, result.output
    for name in MODELS:
        (run,) = read_results(tmp_path / name)
        assert run.settings.model == name
        assert run.settings.optimizer == ("adamw" if "tiny" in name else "sgd")
        assert 0 < run.metric <= 100
    assert (tmp_path / "report.html").is_file()


def test_each_optimizer_has_a_learning_rate_of_its_own():
    variants = PRESETS["optimizers"].variants(TASKS["digits"])
    assert list(variants) == ["sgd", "adamw", "lars", "lamb"]
    for name, changes in variants.items():
        settings = Settings.of_task(TASKS["digits"], {**changes, "device": "cpu", "data": ""})
        assert settings.optimizer == name
    assert len({changes["lr"] for changes in variants.values()}) == 4


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_papers_settings_are_those_of_its_resnet_18(name):
    changes = PRESETS["paper"].variants(TASKS[name])[""]
    settings = Settings.of_task(TASKS[name], {**changes, "device": "cpu", "data": ""})
    assert (settings.model, settings.epochs, settings.batch_size) == ("resnet18", 200, 128)
    assert (settings.optimizer, settings.schedule) == ("sgd", "onecycle")
    assert (settings.weight_decay, settings.label_smoothing) == (5e-4, 0.1)
    assert (settings.prune_ratio, settings.delta) == (0.5, 0.875)
