"""Digits and CIFAR under the optimizers and kinds of models that the paper names."""

import pytest
from tests.lab.support import run_command

from infobatch.lab.presets import PRESETS
from infobatch.lab.results import read_results
from infobatch.lab.settings import OPTIMIZERS, Settings
from infobatch.lab.tasks import all_tasks

TASKS = all_tasks()
SMALL = ("--limit-train", "120", "--batch-size", "40", "--epochs", "3", "--seeds", "1")


@pytest.mark.parametrize(
    ("preset", "names", "setting"),
    [
        ("optimizers", OPTIMIZERS, "optimizer"),
        ("architectures", ("digits-cnn", "resnet18", "vit-tiny", "convnext-tiny"), "model"),
    ],
)
def test_a_preset_compares_arms_under_each_of_its_settings(preset, names, setting, tmp_path):
    result = run_command(
        *("compare", "--preset", preset, *SMALL, "--arms", "full,infobatch", "--width", "4"),
        *("--out", str(tmp_path)),
    )
    assert result.exit_code == 0, result.output
    for name in names:
        runs = read_results(tmp_path / name)
        assert [run.arm for run in runs] == ["full", "infobatch"]
        assert {getattr(run.settings, setting) for run in runs} == {name}
        assert all(0 < run.metric <= 100 for run in runs)
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_papers_settings_are_those_of_its_resnet_18(name):
    changes = PRESETS["paper"].settings(TASKS[name])
    settings = Settings.of_task(TASKS[name], {**changes, "device": "cpu", "data": ""})
    assert (settings.model, settings.epochs, settings.batch_size) == ("resnet18", 200, 128)
    assert (settings.optimizer, settings.schedule) == ("sgd", "onecycle")
    assert (settings.weight_decay, settings.label_smoothing) == (5e-4, 0.1)
    assert (settings.prune_ratio, settings.delta) == (0.5, 0.875)


def test_a_task_that_is_not_in_the_paper_says_so():
    result = run_command("compare", "--task", "digits", "--preset", "paper")
    assert result.exit_code == 2
    assert "the InfoBatch paper has no digits; leave --preset paper away" in result.stderr
