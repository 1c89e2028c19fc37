"""A task or an arm is added by adding one file, and nothing else."""

import sys

import pytest

from infobatch.lab.arms import COST, DEFAULT, all_arms, choose_arms, expand, families
from infobatch.lab.arms.base import Arm, ArmContext
from infobatch.lab.command.presets import PRESETS
from infobatch.lab.coresets import METHODS
from infobatch.lab.errors import LabError
from infobatch.lab.registry import discover
from infobatch.lab.run.compare import planned_runs
from infobatch.lab.tasks import all_tasks
from infobatch.policies import ProportionalSampling


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
        "from infobatch.lab.arms.base import Arm\n"
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
    assert {"cifar10", "cifar100", "digits"} <= set(all_tasks())
    arms = all_arms()
    assert next(iter(arms)) == "full"
    assert set(DEFAULT) <= set(arms)
    assert set(families()) == {
        "ablation",
        "all",
        "controls",
        "dynamic",
        "extras",
        "in-batch",
        "static",
    }
    assert families()["static"] == sorted(f"static-{method}" for method in METHODS)
    assert len(families()["ablation"]) == 7  # the eighth corner is infobatch-budget
    assert COST in expand(["all"])
    assert expand(["static", "full"]) == [*families()["static"], "full"]
    assert all(choose_arms(preset.arms) for preset in PRESETS.values() if preset.arms)


def test_a_file_may_hold_a_family(package):
    (package / "several.py").write_text(
        "from infobatch.lab.arms.base import Arm\n"
        "ARM = tuple(Arm(name=n, description='', start=lambda context: None) for n in 'ba')\n"
    )
    import some_arms

    assert list(discover(some_arms, "ARM", Arm)) == ["a", "b"]


def test_a_family_stands_for_its_arms():
    names = [arm.name for arm in choose_arms(["full", "in-batch"], costs=[0.5])]
    assert names == ["full", "es", "importance-sampling", "selective-backprop"]


def test_arms_that_spend_their_own_run_once_and_the_others_at_each_cost():
    arms = choose_arms(["full", "infobatch", "infobatch-quantile", "random"], costs=[0.5, 0.6])
    planned = [(arm.name, cost) for arm, cost in planned_runs(arms, [0.5, 0.6])]
    assert planned[:2] == [("full", None), ("infobatch", None)]
    assert sorted(planned[2:]) == [
        (name, cost) for name in ("infobatch-quantile", "random") for cost in (0.5, 0.6)
    ]
    assert all(cost is None for _, cost in planned_runs(arms, []))


def test_equal_cost_arms_run_last_and_bring_the_run_that_they_depend_on():
    assert [arm.name for arm in choose_arms(["random"])] == ["infobatch", "random"]
    assert [arm.name for arm in choose_arms(["random", "fewer-epochs", "full"])] == [
        "full",
        "infobatch",
        "fewer-epochs",
        "random",
    ]


def test_an_arm_s_settings_stand_behind_its_name():
    arms = choose_arms(["proportional+exponent=0+bound=root", "full"], costs=[0.5])
    assert [arm.name for arm in arms] == ["full", "proportional+exponent=0+bound=root"]
    context = ArmContext(
        dataset_size=100, epochs=10, prune_ratio=0.5, delta=0.9, seed=0, labels=None, cost=0.6
    )
    policy = arms[1].start(context).pruner.policy
    assert policy == ProportionalSampling("root", exponent=0.0)
    for name, message in {
        "proportional+size=1": "has no setting 'size'; it has: bound, power",
        "proportional+power=much": "power of proportional must be a number, got 'much'",
        "random+rescale=1": "random has no setting 'rescale'; it has: none",
    }.items():
        with pytest.raises(LabError, match=message):
            choose_arms([name])
    with pytest.raises(LabError, match=r"proportional: floor must be in \[0, 1\]"):
        choose_arms(["proportional+floor=2"], costs=[0.5])[0].start(context)


def test_an_unknown_arm_is_refused_with_the_choices():
    with pytest.raises(
        LabError,
        match=r"unknown arm 'best'; choose from: full, adaptive, align.* families ablation",
    ):
        choose_arms(["full", "best"])
