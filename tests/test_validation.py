"""Every constructor argument is checked at once, and the error names it, the rule and what came."""

import collections
import copy
import warnings
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, TensorDataset

from infobatch import BatchPruner, DataPruner, InfoBatch
from infobatch._core.validation import check_fraction, check_int
from infobatch.errors import NothingPrunedWarning, SamplerError
from infobatch.policies import MeanThreshold, ProportionalSampling, SelectiveBackprop

NAN, INF = float("nan"), float("inf")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))


def infobatch(**arguments):
    return InfoBatch(**{"dataset": 10, "num_epochs": 5, **arguments})


def data_pruner(**arguments):
    return DataPruner(**{"dataset": 10, "num_epochs": 5, "policy": MeanThreshold(), **arguments})


SHARED = [  # (argument, bad value, error): of both classes
    ("dataset", 0, ValueError),
    ("dataset", -3, ValueError),
    ("dataset", [], ValueError),
    ("dataset", TensorDataset(torch.empty(0)), ValueError),
    ("dataset", True, TypeError),
    ("dataset", 10.0, TypeError),
    ("dataset", None, TypeError),
    ("dataset", iter([1, 2]), TypeError),
    ("dataset", Stream(), TypeError),
    ("num_epochs", 0, ValueError),
    ("num_epochs", -1, ValueError),
    ("num_epochs", 2.0, TypeError),
    ("num_epochs", "5", TypeError),
    ("num_epochs", True, TypeError),
    ("num_epochs", None, TypeError),
    ("delta", -0.01, ValueError),
    ("delta", 1.01, ValueError),
    ("delta", 87.5, ValueError),
    ("delta", NAN, ValueError),
    ("delta", INF, ValueError),
    ("delta", "0.5", TypeError),
    ("seed", -1, ValueError),
    ("seed", 2**63, ValueError),
    ("seed", 1.0, TypeError),
    ("seed", None, TypeError),
    ("seed", "0", TypeError),
    ("seed", False, TypeError),
    ("warmup_epochs", -1, ValueError),
    ("warmup_epochs", 1.5, TypeError),
    ("warmup_epochs", None, TypeError),
    ("score_ema", -0.1, ValueError),
    ("score_ema", 1.0, ValueError),
    ("score_ema", NAN, ValueError),
    ("score_ema", "0.9", TypeError),
    ("score_ema", None, TypeError),
    ("batch_size", 0, ValueError),
    ("batch_size", -1, ValueError),
    ("batch_size", 8.0, TypeError),
    ("batch_size", "8", TypeError),
    ("batch_size", True, TypeError),
]
OF_INFOBATCH = [
    ("prune_ratio", -0.1, ValueError),
    ("prune_ratio", 1.0, ValueError),
    ("prune_ratio", 50, ValueError),
    ("prune_ratio", NAN, ValueError),
    ("prune_ratio", "0.5", TypeError),
    ("quantiles", (), ValueError),
    ("quantiles", 0.5, ValueError),
    ("quantiles", (0.2, 0.25), ValueError),
    ("quantiles", ((0.85, 0.5), (0.2, 0.25)), ValueError),
    ("quantiles", ((20, 0.5),), ValueError),
    ("quantiles", {0.2: 0.0}, ValueError),
]
OF_DATA_PRUNER = [
    ("policy", "mean", TypeError),
    ("policy", 0.5, TypeError),
    ("policy", MeanThreshold, TypeError),  # the class, not an object of it
    ("policy", lambda scores, epoch, rng: None, TypeError),
]


def refuses(build, argument, value, error):
    with pytest.raises(error) as caught:
        build(**{argument: value})
    assert str(caught.value).startswith(argument)


@pytest.mark.parametrize(("argument", "value", "error"), [*SHARED, *OF_INFOBATCH])
def test_infobatch_refuses_a_bad_argument_and_names_it(argument, value, error):
    refuses(infobatch, argument, value, error)


@pytest.mark.parametrize(("argument", "value", "error"), [*SHARED, *OF_DATA_PRUNER])
def test_datapruner_refuses_a_bad_argument_and_names_it(argument, value, error):
    refuses(data_pruner, argument, value, error)


@pytest.mark.parametrize("build", [infobatch, data_pruner])
@pytest.mark.parametrize("value", [5, 0.5])
def test_a_sampler_that_cannot_be_iterated_is_refused_and_named(build, value):
    refuses(build, "sampler", value, TypeError)


@pytest.mark.parametrize("batches", [[[0, 1], [2, 3]], [torch.tensor([0, 1])], [(0,), (1,)]])
def test_a_sampler_that_yields_batches_is_refused_with_the_remedy(batches):
    with pytest.raises(SamplerError, match=r"one after the other.*batch_sampler=MyBatches\(pruner"):
        _ = infobatch(sampler=batches).plan


def test_what_came_is_in_the_message():
    for argument, value in [("num_epochs", -7), ("delta", 1.25), ("seed", -9), ("prune_ratio", 3)]:
        with pytest.raises(ValueError, match=f"{argument} must .*{value}"):
            infobatch(**{argument: value})


def test_a_percentage_is_recognised_and_the_remedy_named():
    with pytest.raises(ValueError, match=r"in \[0, 1\), a fraction and not a percentage, got 50"):
        infobatch(prune_ratio=50)


def test_a_data_set_without_a_length_is_told_why():
    with pytest.raises(TypeError, match="Stream; samples of a stream without a length cannot be"):
        infobatch(dataset=Stream())


class Prefetcher:
    """A loader that is none of torch's, as frameworks have them around one."""

    def __init__(self, loader):
        self.loader, self.dataset, self.sampler = loader, loader.dataset, loader.sampler

    def __len__(self):
        return len(self.loader)


LOADER = DataLoader(TensorDataset(torch.zeros(640, 3)), batch_size=32)
PAIR = (torch.zeros(640, 3), torch.zeros(640))
SPLITS = {"train": range(640), "validation": range(64)}
NOT_THE_DATA = [  # (what has a length, what to pass instead)
    (LOADER, r"got DataLoader, which counts batches; pass loader\.dataset"),
    (Prefetcher(LOADER), r"got Prefetcher, which counts batches; pass loader\.dataset"),
    (SPLITS, r"dict of 'train', 'validation'; pass .* such as splits\[\"train\"\]"),
    (collections.UserDict(a=1, b=2, c=3, d=4), "UserDict of 'a', 'b', 'c', ...; pass one of its v"),
    ({}, "dict of nothing"),
    ({0: "first", 1: "second"}, "dict of 0, 1; pass one of its values, or the number of samples"),
    (PAIR, r"tuple of 2; .* pass TensorDataset\(x, y\), for samples list\(samples\)"),
    (torch.zeros(640, 3).shape, "Size of 2"),
    ("data/train", "got str 'data/train'; pass the data set that is read from there"),
    (b"data/train", "got bytes b'data/train'"),
    (PurePosixPath("data/train"), "got PurePosixPath 'data/train'; pass the data set"),
]


@pytest.mark.parametrize("build", [infobatch, data_pruner])
@pytest.mark.parametrize(("given", "remedy"), NOT_THE_DATA)
def test_what_has_a_length_and_is_not_the_data_set_is_refused_with_the_remedy(build, given, remedy):
    with pytest.raises(TypeError, match=f"dataset must be the data set, whose length .*{remedy}"):
        build(dataset=given)


def test_a_batch_pruner_refuses_it_too():
    with pytest.raises(TypeError, match="dataset must be the data set"):
        BatchPruner(LOADER, SelectiveBackprop())


class Episodes(Dataset):
    """A data set that draws from another one, by a sampler of its own."""

    dataset, sampler = range(100), BatchSampler(range(100), 5, drop_last=False)

    def __len__(self):
        return 20


def test_a_data_set_that_has_a_data_set_and_a_sampler_inside_is_no_loader():
    assert infobatch(dataset=Episodes()).num_samples == 20


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("dataset", torch.zeros(5, 2)),
        ("dataset", 1),
        ("dataset", [3, 4]),
        ("dataset", range(7)),
        ("dataset", TensorDataset(torch.zeros(4, 2))),
        ("dataset", np.zeros((5, 2))),
        ("num_epochs", 1),
        ("num_epochs", np.int64(3)),
        ("num_epochs", torch.tensor(3)),
        ("delta", 0),
        ("delta", 1),
        ("delta", np.float32(0.5)),
        ("seed", 0),
        ("seed", 2**63 - 1),
        ("seed", np.uint64(2**63 - 1)),
        ("warmup_epochs", 0),
        ("score_ema", 0),
        ("score_ema", 0.999),
        ("prune_ratio", 0),
        ("prune_ratio", 0.999),
        ("prune_ratio", np.float64(0.5)),
        ("prune_ratio", None),
        ("quantiles", None),
        ("quantiles", {0.5: 0.5}),
        ("sampler", [2, 0, 1]),
        ("sampler", None),
        ("batch_size", 1),
        ("batch_size", 1000),
        ("batch_size", np.int64(4)),
        ("batch_size", None),
    ],
)
def test_the_ends_of_every_range_are_good(argument, value):
    plan = infobatch(**{argument: value}).plan
    assert len(plan) == plan.total > 0


def test_without_a_budget_the_default_policy_looks_at_samples_more_often():
    assert DataPruner(10, 5).policy == ProportionalSampling(floor=0.2)
    assert DataPruner(10, 5, budget=0.8).policy == ProportionalSampling()


def test_only_a_run_that_leaves_out_what_hardly_matters_is_pruned_to_its_end():
    groups = np.arange(100) % 2
    for pruner in (DataPruner(100, 8), DataPruner(100, 8, groups=groups)):
        assert pruner.delta == 1.0
    for pruner in (
        DataPruner(100, 8, budget=0.8),
        DataPruner(100, 8, MeanThreshold()),
        InfoBatch(100, 8),
    ):
        assert pruner.delta == 0.875
    assert DataPruner(100, 8, delta=0.5).delta == 0.5


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"warmup_epochs": 1000}, True),
        ({"num_epochs": 2, "delta": 0.3}, True),
        ({"warmup_epochs": 5, "delta": 1.0}, True),
        ({"warmup_epochs": 4, "delta": 1.0}, False),
        ({"prune_ratio": 0.0, "warmup_epochs": 1000}, False),  # asked for
        ({"delta": 0.0}, False),
        ({"num_epochs": 1}, False),
    ],
    ids=repr,
)
def test_settings_that_leave_no_epoch_to_prune_are_said_at_once(settings, warns):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pruner = infobatch(**settings)
    assert [warning.category for warning in seen] == [NothingPrunedWarning] * warns
    assert all(warning.filename == __file__ for warning in seen)
    assert len(pruner.plan) == 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_samples", 5),
        ("num_epochs", 6),
        ("policy", MeanThreshold(0.3)),
        ("delta", 0.5),
        ("seed", 1),
        ("warmup_epochs", 0),
        ("score_ema", 0.5),
        ("budget", 0.5),
        ("batch_size", 4),
        ("sharded", True),
        ("sampler", [0, 1]),
    ],
)
def test_a_setting_cannot_be_changed_once_the_pruner_is_built(name, value):
    pruner = infobatch()
    before = getattr(pruner, name)
    with pytest.raises(AttributeError, match=f"{name} is a setting of the run"):
        setattr(pruner, name, value)
    assert getattr(pruner, name) is before
    assert copy.deepcopy(pruner).num_epochs == 5  # a copy is built as well
    with pytest.raises(AttributeError, match="setting"):
        copy.deepcopy(pruner).seed = 3


def test_a_numpy_integer_is_a_length():
    assert infobatch(dataset=np.int64(10)).num_samples == 10


def test_options_are_keywords_so_that_they_cannot_be_mixed_up():
    with pytest.raises(TypeError, match="positional"):
        InfoBatch(10, 5, 0.5, 0.875)
    with pytest.raises(TypeError, match="positional"):
        DataPruner(10, 5, MeanThreshold(), 0.875)


def test_an_unknown_option_is_an_error():
    with pytest.raises(TypeError, match="ratio"):
        infobatch(ratio=0.5)


# ---------------------------------------------------------------- the checks themselves


@pytest.mark.parametrize("value", [0, 1, 0.25, True, np.float32(0.25), torch.tensor(0.25)])
def test_a_fraction_comes_back_as_a_plain_float(value):
    checked = check_fraction("share", value)
    assert type(checked) is float
    assert checked == float(value)


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3), torch.tensor(3)])
def test_an_integer_comes_back_as_a_plain_int(value):
    checked = check_int("count", value, at_least=3, at_most=3)
    assert type(checked) is int
    assert checked == 3


def test_the_bounds_of_an_integer_are_in_the_message():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        check_int("count", 0, at_least=1)
    with pytest.raises(ValueError, match="count must be at least 1 and at most 5, got 6"):
        check_int("count", 6, at_least=1, at_most=5)
