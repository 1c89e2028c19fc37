"""With pruning off a run is plain PyTorch bit for bit, and global random state is never touched."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from infobatch import DataPruner, InfoBatch
from infobatch.errors import NothingPrunedWarning
from infobatch.policies import PAPER_QUANTILES, FullData, MeanThreshold, RandomSubset

N, B, EPOCHS = 150, 16, 3


def all_warmup(**options):
    with pytest.warns(NothingPrunedWarning, match="nothing will be pruned"):
        return InfoBatch(N, EPOCHS, 0.9, delta=1.0, warmup_epochs=EPOCHS, **options)


PRUNING_OFF = {
    "prune_ratio=0": lambda **options: InfoBatch(N, EPOCHS, 0.0, **options),
    "delta=0": lambda **options: InfoBatch(N, EPOCHS, 0.9, delta=0.0, **options),
    "warm-up to the end": all_warmup,
    "FullData": lambda **options: DataPruner(N, EPOCHS, FullData(), delta=1.0, **options),
    "MeanThreshold(0)": lambda **options: DataPruner(
        N, EPOCHS, MeanThreshold(0.0), delta=1.0, **options
    ),
    "RandomSubset(0)": lambda **options: DataPruner(
        N, EPOCHS, RandomSubset(0.0), delta=1.0, **options
    ),
    "quantiles that keep all": lambda **options: InfoBatch(
        N, EPOCHS, delta=1.0, quantiles=[(0.5, 1.0), (1.0, 1.0)], **options
    ),
}


def data():
    draws = torch.Generator().manual_seed(5)
    return TensorDataset(
        torch.randn(N, 6, generator=draws), torch.randint(0, 3, (N,), generator=draws)
    )


def loader_over(sampler, workers, **options):
    if workers:
        options["multiprocessing_context"] = "fork"
    return DataLoader(data(), B, sampler=sampler, num_workers=workers, **options)


def trained(loader, loss_of, *, drop_last=False):
    """Train a model that draws from torch's global generator; return all that it has become."""
    torch.manual_seed(11)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    seen = []
    for _ in range(EPOCHS):
        for x, y in loader:
            loss = loss_of(F.cross_entropy(model(x), y, reduction="none"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += [x, loss.detach().clone()]
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    return [*seen, *model.state_dict().values(), *momenta, torch.get_rng_state()]


def assert_identical(left, right):
    assert len(left) == len(right)
    for ours, plain in zip(left, right, strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize(
    ("off", "workers"), [*((off, 0) for off in PRUNING_OFF), ("prune_ratio=0", 2)]
)
def test_with_pruning_off_training_is_a_plain_torch_loop_bit_for_bit(off, workers):
    def own_order():
        return RandomSampler(range(N), generator=torch.Generator().manual_seed(2))

    pruner = PRUNING_OFF[off](sampler=own_order())
    ours = trained(loader_over(pruner.sampler, workers), pruner.update)
    plain = trained(loader_over(own_order(), workers), torch.mean)
    assert_identical(ours, plain)
    assert pruner.saved_fraction == 0.0


class Replayed:
    """The epochs' orders, one after the other, for a plain loop."""

    def __init__(self, orders):
        self.orders = iter(orders)

    def __iter__(self):
        return iter(next(self.orders).tolist())

    def __len__(self):
        return N


@pytest.mark.parametrize("off", PRUNING_OFF)
@pytest.mark.parametrize("drop_last", [False, True])
def test_with_pruning_off_its_own_shuffling_is_that_of_a_plain_loop_over_the_same_order(
    off, drop_last
):
    pruner, orders = PRUNING_OFF[off](seed=9), []

    def note_the_plan(losses):
        if len(orders) == pruner.epoch:
            orders.append(pruner.plan.indices)
            assert sorted(orders[-1].tolist()) == list(range(N))
            assert torch.equal(pruner.plan.weights, torch.ones(N, dtype=torch.float64))
        return pruner.update(losses)

    ours = trained(loader_over(pruner.sampler, 0, drop_last=drop_last), note_the_plan)
    plain = trained(loader_over(Replayed(orders), 0, drop_last=drop_last), torch.mean)
    assert_identical(ours, plain)
    assert not torch.equal(orders[0], orders[1])


def test_what_the_policy_is_does_not_change_the_order_of_what_it_keeps():
    """Permute first, then filter: arms that share a seed share their order."""
    full = InfoBatch(N, 4, 0.0, seed=4)
    pruned = [
        InfoBatch(N, 4, 0.5, seed=4),
        InfoBatch(N, 4, quantiles=PAPER_QUANTILES, seed=4),
        DataPruner(N, 4, RandomSubset(0.5), seed=4),
    ]
    for epoch in range(3):
        whole = full.plan.indices.tolist()
        for pruner in pruned:
            kept = set(pruner.plan.indices.tolist())
            assert pruner.plan.indices.tolist() == [index for index in whole if index in kept]
            assert (len(kept) < N) == (epoch > 0)
        for pruner in (full, *pruned):
            for ids in BatchSampler(pruner.sampler, B, drop_last=False):
                pruner.update(torch.tensor(ids).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_in_full_epochs_of_a_pruned_run_the_loss_is_the_plain_mean_bit_for_bit(dtype):
    pruner = InfoBatch(N, 4, delta=0.5)
    for epoch in range(4):
        for ids in BatchSampler(pruner.sampler, B, drop_last=False):
            losses = torch.rand(len(ids), dtype=dtype, requires_grad=True)
            full = epoch != 1
            reduction = random.Random(ids[0]).choice(["mean", "sum", "none"])
            plain = {"mean": losses.mean, "sum": losses.sum, "none": losses.clone}[reduction]()
            ours = pruner.update(losses, reduction=reduction)
            if full:
                assert torch.equal(ours, plain)
                (left,) = torch.autograd.grad(ours.sum(), losses)
                (right,) = torch.autograd.grad(plain.sum(), losses)
                assert torch.equal(left, right)
        assert (pruner.history[epoch].kept == N) == full


# --- global random state --------------------------------------------------------------------------


def global_states():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return (
        random.getstate(),
        numpy_state[1].tolist(),
        numpy_state[2],
        torch.get_rng_state().tolist(),
    )


def everything(seed=1, quantiles=None):
    """Use all of a pruner; return the plans."""
    pruner = InfoBatch(N, 5, seed=seed, quantiles=quantiles)
    plans = []
    for epoch in range(4):
        pruner.sampler.set_epoch(epoch)
        plans.append((pruner.plan.indices.tolist(), pruner.plan.weights.tolist()))
        for step, ids in enumerate(BatchSampler(pruner.sampler, B, drop_last=False)):
            if step == 1:
                pruner.skip(len(ids))
            else:
                pruner.update(torch.tensor(ids).float() ** 2)
            if step == 2:
                pruner = restored(pruner, seed, quantiles)
                break
        rest = BatchSampler(pruner.sampler, B, drop_last=False)
        for ids in rest:
            pruner.update(torch.tensor(ids).float() ** 2)
    return plans


def restored(pruner, seed, quantiles):
    pruner = pickle.loads(pickle.dumps(copy.deepcopy(pruner)))
    other = InfoBatch(N, 5, seed=seed, quantiles=quantiles)
    other.load_state_dict(pruner.state_dict())
    return other


@pytest.mark.parametrize("quantiles", [None, PAPER_QUANTILES], ids=["mean", "quantiles"])
def test_global_random_generators_are_not_written(quantiles):
    before = global_states()
    everything(quantiles=quantiles)
    DataPruner(N, 5, RandomSubset(0.5), delta=1.0, warmup_epochs=0).plan.indices.tolist()
    assert global_states() == before


@pytest.mark.parametrize("quantiles", [None, PAPER_QUANTILES], ids=["mean", "quantiles"])
def test_global_random_generators_are_not_read(quantiles):
    plans = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        plans.append(everything(quantiles=quantiles))
    assert plans[0] == plans[1]
    assert len(plans[0][1][0]) < N


def test_the_pruners_own_seed_decides():
    assert everything(seed=1) == everything(seed=1)
    left, right = everything(seed=1), everything(seed=2)
    for (left_order, _), (right_order, _) in zip(left, right, strict=True):
        assert left_order != right_order
    assert set(left[1][0]) != set(right[1][0]), (
        "the seed decides what is pruned, not only its order"
    )


def test_the_thread_count_and_the_default_dtype_change_nothing():
    expected = everything()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        assert everything() == expected
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)


def test_the_data_set_and_the_losses_stay_as_they_are():
    dataset = data()
    before = [tensor.clone() for tensor in dataset.tensors]
    attributes = set(vars(dataset))
    pruner = InfoBatch(dataset, EPOCHS)
    loader = DataLoader(dataset, B, sampler=pruner.sampler)
    trained(loader, pruner.update)
    assert loader.dataset is dataset
    assert set(vars(dataset)) == attributes
    assert_identical(dataset.tensors, before)
