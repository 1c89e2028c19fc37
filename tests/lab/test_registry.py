"""A task or an arm is added by adding one file, and nothing else."""

import sys

import pytest

from infobatch.lab.arm import Arm
from infobatch.lab.arms import all_arms, choose_arms
from infobatch.lab.errors import LabError
from infobatch.lab.registry import discover
from infobatch.lab.tasks import all_tasks


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "some_arms"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("some_arms")]:
        del sys.modules[name]


def test_a_file_is_all_that_it_takes(package):
    (package / "mine.py").write_text(
        "from infobatch.lab.arm import Arm\n"
        "ARM = Arm(name='mine', description='', start=lambda context: None)\n"
    )
    import some_arms

    assert list(discover(some_arms, "ARM", Arm)) == ["mine"]


def test_a_file_without_its_entry_is_named(package):
    (package / "forgotten.py").write_text("NOTHING = 1\n")
    import some_arms

    with pytest.raises(TypeError, match=r"some_arms\.forgotten must define ARM, a Arm|an Arm"):
        discover(some_arms, "ARM", Arm)


def test_what_exists_now():
    assert list(all_tasks()) == ["cifar10", "cifar100", "digits"]
    assert list(all_arms()) == ["full", "fewer-epochs", "infobatch", "infobatch-quantile", "random"]


def test_equal_cost_arms_run_last_and_bring_the_run_that_they_depend_on():
    assert [arm.name for arm in choose_arms(["random"])] == ["infobatch", "random"]
    assert [arm.name for arm in choose_arms(["random", "fewer-epochs", "full"])] == [
        "full",
        "infobatch",
        "fewer-epochs",
        "random",
    ]


def test_an_unknown_arm_is_refused_with_the_choices():
    with pytest.raises(LabError, match="unknown arm 'ucb'; choose from: full, fewer-epochs"):
        choose_arms(["full", "ucb"])
