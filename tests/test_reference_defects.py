"""Sixteen ways in which the public InfoBatch code goes wrong on current PyTorch: none happens here.

Each was seen by running that code. The comment at each test says what happens there.
"""

import copy
import itertools
import math
import pickle
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from tests.policies.support import ask
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset

from infobatch import InfoBatch
from infobatch.errors import LossError, NonFiniteLossWarning, NothingPrunedWarning
from infobatch.policies import MeanThreshold


class Squares(Dataset):
    """Items by the batch, as hosts with fast storage give them."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return {"id": index, "square": index**2}

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def losses_of(ids):
    return (torch.as_tensor(ids).double() * 7919 % 1000 / 1000).float()


def train(pruner, loader, losses_of=losses_of):
    """One epoch over a loader whose batches are sample ids."""
    for ids in loader:
        pruner.update(losses_of(ids))


def batches(pruner, size=16):
    return BatchSampler(pruner.sampler, size, drop_last=False)


def test_01_an_epoch_ends():
    # There: iterating the sampler resets it and returns it, torch's BatchSampler asks for an
    # iterator again and again, and a single-process epoch never ends.
    pruner = InfoBatch(100, 3)
    indices = iter(pruner.sampler)
    assert iter(indices) is indices
    assert next(indices) != next(iter(indices))
    for epoch in range(3):
        steps = -(-len(pruner.plan) // 16)
        loader = DataLoader(range(100), 16, sampler=pruner.sampler)
        taken = 0
        for ids in itertools.islice(loader, 1000):
            pruner.update(losses_of(ids))
            taken += 1
        assert taken == steps == len(list(range(0, pruner.history[epoch].kept, 16)))


@pytest.mark.parametrize("num_epochs", [1, 2, 10, 30, 90, 100, 200, 300])
@pytest.mark.parametrize("delta", [0.825, 0.875, 0.9, 0.1])
def test_02_annealing_epochs_have_weight_1_for_every_number_of_epochs(num_epochs, delta):
    # There: weights are reset when `iterations == num_epochs * delta + 1`, as floats, so for 10,
    # 30, 90, 100 or 300 epochs the doubled weights stay on through all full-data epochs.
    exact = Fraction(str(delta)) * num_epochs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if exact <= 1 else "error", NothingPrunedWarning)
        pruner = InfoBatch(8, num_epochs, delta=delta, batch_size=1)
    for epoch in range(num_epochs):
        annealing = epoch >= exact
        assert bool((pruner.plan.weights == 1.0).all()) == (annealing or epoch == 0)
        assert (len(pruner.plan) == 8) == (annealing or epoch == 0)
        train(pruner, batches(pruner, 8))
    assert pruner.progress == 1.0


def test_03_scores_reach_their_samples_under_a_loader_that_looks_ahead():
    # There: one slot holds the current batch. Accelerate fetches the next before the loss of this
    # one is known, and 950 of 1000 scores go to the wrong samples.
    pruner = InfoBatch(1000, 3)
    pruner.sampler.batches_ahead = 1  # not said, it is refused; integrations say it
    loader = DataLoader(range(1000), 50, sampler=pruner.sampler)

    def accelerate(loader):
        iterator = iter(loader)
        current = next(iterator)
        for following in iterator:
            yield current
            current = following
        yield current

    train(pruner, accelerate(loader))
    assert torch.equal(pruner.scores, losses_of(range(1000)))
    train(pruner, accelerate(loader), lambda ids: losses_of(ids) + 1)
    expected = losses_of(range(1000))
    planned = pruner.scores != expected
    assert int(planned.sum()) == pruner.history[1].kept < 1000
    assert torch.equal(pruner.scores[planned], expected[planned] + 1)


def test_04_it_copies_and_pickles_and_hands_no_attribute_on():
    # There: `__getattr__` delegates to the data set, so pickle, deepcopy and spawned workers
    # recurse without end, and a wrapped Subset, whose `__getitems__` is handed on, yields garbage.
    subset = Subset(Squares(), range(50, 100))
    pruner = InfoBatch(subset, 3)
    train(pruner, batches(pruner))
    for copied in (copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner))):
        assert torch.equal(copied.scores, pruner.scores)
        assert torch.equal(copied.plan.indices, pruner.plan.indices)
        assert list(copied.sampler) == list(pruner.sampler)
    for name in ("__getitems__", "indices", "dataset"):
        assert hasattr(subset, name)
        assert not hasattr(pruner, name)
    seen = []
    for batch in DataLoader(subset, 16, sampler=pruner.sampler):
        seen += batch["id"].tolist()
        pruner.update(losses_of(batch["id"]))
    assert seen == [50 + index for index in pruner_indices_of_epoch(1, subset)]


def pruner_indices_of_epoch(epoch, dataset):
    """The plan of an epoch, by a pruner that was trained just like the one under test."""
    pruner = InfoBatch(dataset, 3)
    for _ in range(epoch):
        train(pruner, batches(pruner))
    return pruner.plan.indices.tolist()


PATCH_DETECTOR = """
import torch.utils.data
from torch.utils.data import dataloader, sampler

def members():
    return {
        (space.__name__, name, attribute): value
        for space in (torch.utils.data, dataloader, sampler, torch.optim.lr_scheduler)
        for name, kind in vars(space).items() if isinstance(kind, type)
        for attribute, value in vars(kind).items() if callable(value)
    }

before = members()
import infobatch
pruner = infobatch.InfoBatch(8, 2)
loader = dataloader.DataLoader(range(8), 4, sampler=pruner.sampler)
for batch in loader:
    pruner.update(torch.rand(4))

def changed():
    after = members()
    return [key for key in before | after if before.get(key) is not after.get(key)]

assert not changed(), changed()
dataloader._BaseDataLoaderIter.__next__ = lambda self: None
assert len(changed()) == 1, "this check sees nothing"
"""


def test_05_no_class_of_torch_is_patched():
    # There: the import replaces `_BaseDataLoaderIter.__next__` for every loader in the process.
    subprocess.run([sys.executable, "-c", PATCH_DETECTOR], check=True)


def test_06_items_and_batches_come_as_the_user_made_them():
    # There: a sample becomes `(index, item)`: collate functions, dicts, detection, text break.
    dataset = Squares()
    items = []

    def collate(batch):
        items.extend(batch)
        return {"ids": [item["id"] for item in batch]}

    pruner = InfoBatch(dataset, 3)
    loader = DataLoader(dataset, 16, sampler=pruner.sampler, collate_fn=collate)
    for batch in loader:
        pruner.update(losses_of(batch["ids"]))
    assert loader.dataset is dataset
    assert sorted(items, key=lambda item: item["id"]) == [dataset[index] for index in range(100)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_07_every_float_dtype_works_and_every_other_shape_is_told_what_to_do(dtype):
    # There: fp16, bf16 and fp64 losses raise from within, as do (B, 1), (B, T) and a scalar.
    pruner = InfoBatch(32, 3)
    for ids in batches(pruner):
        losses = losses_of(ids).to(dtype).requires_grad_()
        for wrong in (losses.mean(), losses[:, None], losses[:, None].expand(-1, 7)):
            with pytest.raises(LossError, match=r"batch_mean|flatten\(\)|per_sample"):
                pruner.update(wrong)
        loss = pruner.update(losses)
        loss.backward()
        assert loss.dtype == losses.grad.dtype == dtype
    assert torch.equal(pruner.scores, losses_of(range(32)).to(dtype).float())


@pytest.mark.parametrize("last_operation", [torch.sqrt, torch.exp])
def test_08_autograd_and_the_users_tensor_are_left_alone(last_operation):
    # There: `mul_` on the loss breaks autograd where backward needs the loss's value, and changes
    # the tensor that the user logs.
    pruner = InfoBatch(100, 3)
    train(pruner, batches(pruner))
    weights = pruner.plan.weights.float()
    for ids, weight in zip(batches(pruner), weights.split(16), strict=True):
        point = losses_of(ids).add(0.5).requires_grad_()
        losses = last_operation(point)
        logged = losses.detach().clone()
        pruner.update(losses).backward()
        assert torch.equal(losses, logged)
        (slope,) = torch.autograd.grad(last_operation(point).sum(), point)
        torch.testing.assert_close(point.grad, slope * weight / len(ids))


def test_09_indices_above_two_to_the_24_are_exact():
    # There: DDP packs indices among float losses, so indices above 2**24 (fp32), 2048 (fp16) or
    # 256 (bf16) come back as others. Here they never meet: losses go by their place in the plan.
    size = 2**24 + 100
    pruner = InfoBatch(size, 3)

    def exact_losses(ids):
        return (ids % 4093).float()

    order, position = pruner.plan.indices, 0
    assert order.dtype == torch.int64
    for batch in batches(pruner, 1 << 22):
        ids = torch.tensor(batch)
        assert torch.equal(ids, order[position : position + len(ids)])
        pruner.update(exact_losses(ids))
        position += len(ids)
    expected = exact_losses(torch.arange(size))
    assert torch.equal(pruner.scores, expected)
    plan = pruner.plan.indices
    kept = torch.zeros(size, dtype=torch.bool)
    kept[plan] = True
    assert int(kept.sum()) == len(plan) < size
    assert bool(kept[expected >= expected.double().mean()].all())
    assert 2 < int((plan > 2**24).sum()) < 99


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_10_one_bad_loss_neither_stops_pruning_nor_causes_it(bad):
    # There: one NaN ends all pruning, one inf prunes half of all data.
    def losses(sick):
        return lambda ids: torch.where(torch.tensor(ids) == sick, bad, losses_of(ids))

    healthy, sick = InfoBatch(1000, 5), InfoBatch(1000, 5)
    train(healthy, batches(healthy))
    with pytest.warns(NonFiniteLossWarning):
        train(sick, batches(sick), losses(500))
    assert sick.plan.threshold == pytest.approx(healthy.plan.threshold, abs=1e-3)
    assert len(sick.plan) == pytest.approx(len(healthy.plan), abs=2)
    assert 500 in sick.plan.indices


def test_11_unseen_samples_are_kept_whatever_the_scale_of_the_losses():
    # There: unseen samples start at score 3: with losses near 7 they count as easy.
    pruner = InfoBatch(1000, 5)
    seen = set()
    for ids in itertools.islice(batches(pruner, 50), 10):
        pruner.update(losses_of(ids) + 7)
        seen |= set(ids)
    pruner.sampler.set_epoch(1)
    kept = dict(zip(pruner.plan.indices.tolist(), pruner.plan.weights.tolist(), strict=True))
    unseen = set(range(1000)) - seen
    assert len(unseen) == 500
    assert unseen <= set(kept)
    assert {kept[index] for index in unseen} == {1.0}
    assert pruner.plan.threshold > 7
    assert len(kept) < 1000


def test_12_the_global_generator_is_the_users_and_the_pruners_seed_is_obeyed():
    # There: `np.random.seed(epoch)` reseeds the user's generator every epoch, and the user's own
    # seed has no effect on what is pruned.
    def plan(seed):
        pruner = InfoBatch(100, 3, seed=seed)
        train(pruner, batches(pruner))
        return set(pruner.plan.indices.tolist())

    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    first = plan(seed=1)
    assert np.array_equal(np.random.random(3), expected)  # noqa: NPY002
    assert plan(seed=1) == first
    assert plan(seed=2) != first


def test_13_looking_at_the_sampler_prunes_nothing():
    # There: each access to `dataset.sampler` builds a new sampler and prunes once more.
    pruner = InfoBatch(100, 3)
    train(pruner, batches(pruner))
    sampler, plan, scores = pruner.sampler, pruner.plan.indices, pruner.scores
    for _ in range(10):
        assert pruner.sampler is sampler
        assert len(pruner.sampler) == len(plan)
        assert list(pruner.sampler) == plan.tolist()
    assert torch.equal(pruner.scores, scores)
    assert len(pruner.history) == 1


def test_14_the_length_of_the_loader_is_that_of_the_epoch_to_come():
    # There: `len(loader)` is that of the epoch before, so progress bars and schedules are wrong.
    pruner = InfoBatch(100, 6, 0.8)
    loader = DataLoader(range(100), 4, sampler=pruner.sampler)
    lengths = []
    for epoch in range(6):
        lengths.append(len(loader))
        draws = torch.Generator().manual_seed(epoch)
        train(pruner, loader, lambda ids, draws=draws: torch.rand(len(ids), generator=draws) ** 3)
        assert lengths[-1] == -(-pruner.history[epoch].kept // 4)
    assert len(set(lengths[:5])) > 2, "the epochs must differ for this to say anything"


def test_15_a_run_can_stop_and_go_on():
    # There: no state_dict. A resumed run has no scores and restarts the annealing clock.
    def run(stop_after):
        pruner = InfoBatch(100, 8, delta=0.5)
        plans = []
        while pruner.epoch < 8:
            plans.append((pruner.plan.indices.tolist(), pruner.plan.weights.tolist()))
            train(pruner, batches(pruner))
            if pruner.epoch == stop_after:
                state = pickle.loads(pickle.dumps(pruner.state_dict()))
                pruner = InfoBatch(100, 8, delta=0.5)
                pruner.load_state_dict(state)
                assert torch.equal(pruner.scores, losses_of(range(100)))
        return plans

    straight = run(stop_after=None)
    assert [len(order) < 100 for order, _ in straight] == [False] + [True] * 3 + [False] * 4
    assert run(stop_after=2) == straight
    assert run(stop_after=6) == straight


@pytest.mark.parametrize("below_mean", range(1, 12))
@pytest.mark.parametrize("prune_ratio", [0.1, 0.5, 0.7, 0.9])
def test_16_a_small_pool_keeps_its_weight(below_mean, prune_ratio):
    # There: `int()` truncation. Of a pool of 3 below the mean, one is kept, with weight 2, so that
    # E[weight * included] is 0.67 and not 1.
    policy = MeanThreshold(prune_ratio)
    scores = np.array([0.0] * below_mean + [1.0] * 5, dtype=np.float32)
    everyone = np.arange(len(scores))
    total = np.zeros(len(scores))
    draws = 400
    for seed in range(draws):
        weights = ask(policy, scores, 1, np.random.default_rng(seed)).weights_of(everyone)
        assert weights[:below_mean].sum() == pytest.approx(below_mean, rel=1e-12)
        assert bool((weights[below_mean:] == 1.0).all())
        total += weights
    # The sum is exact in every draw, so only equal treatment is left to chance: a member is kept
    # with probability p and weight 1/p, variance 1/p - 1; 5 standard errors of the mean.
    keep = max(1, math.floor((1 - prune_ratio) * below_mean + 0.5)) / below_mean
    tolerance = 5 * math.sqrt((1 / keep - 1) / draws) + 1e-12
    assert np.abs(total / draws - 1.0).max() <= tolerance
