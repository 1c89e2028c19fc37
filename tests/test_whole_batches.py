"""Pruned epochs are whole batches of all ranks together, unbiased, and within their budget."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.distributed.support import in_threads
from tests.policies.test_conformance import BIASED, UNBIASED
from torch import nn
from torch.utils.data import DataLoader

from infobatch import DataPruner, InfoBatch
from infobatch._core.whole_batches import Batches, to_whole_batches
from infobatch.policies import (
    AlignPrune,
    BudgetThreshold,
    FixedSubset,
    FullData,
    MeanThreshold,
    ProportionalSampling,
    RandomSubset,
    Selection,
)

pytestmark = pytest.mark.filterwarnings("ignore::infobatch.errors.IndistinctScoresWarning")

EPOCHS = 6
POLICIES = [*BIASED, *UNBIASED]  # all that the library has, in several settings


def losses_of(indices, epoch=0):
    return ((indices * 37) % 101 + 1).float() / (40.0 * (1 + epoch))


def train(pruner, batch_size, *, epochs=None, **options):
    """Train to the end; (number of batches, size of the last) of each epoch."""
    data = torch.arange(pruner.num_samples)
    loader = DataLoader(data, batch_size, sampler=pruner.sampler, **options)
    seen = []
    for epoch in range(pruner.epoch, pruner.num_epochs if epochs is None else epochs):
        sizes = []
        for indices in loader:
            pruner.update(losses_of(indices, epoch))
            sizes.append(len(indices))
        seen.append(sizes)
    return seen


def is_whole(record, batch):
    """Whether a pruned epoch is one of whole batches, or of all samples, or below one batch."""
    return record.kept == record.total or record.kept % batch == 0 or record.kept < batch


# ------------------------------------------------------------------ all policies


WAYS = [
    (policy, exact)
    for policy in POLICIES
    for exact, can in ((False, not policy.needs_budget), (True, policy.takes_budget))
    if can and not isinstance(policy, FixedSubset)  # which is a subset of its own
]


@pytest.mark.parametrize("batch", [7, 16, 50])
@pytest.mark.parametrize(
    ("policy", "exact"), WAYS, ids=[f"{p!r}-{'budget' if e else 'native'}" for p, e in WAYS]
)
def test_every_pruned_epoch_is_of_whole_batches(policy, exact, batch):
    least = policy.min_keep(120) if exact else 1
    budget = max(0.8, least / 120) if exact else None
    pruner = DataPruner(120, EPOCHS, policy, budget=budget, delta=1.0, seed=3)
    for sizes in train(pruner, batch):
        assert set(sizes[:-1]) <= {batch}
    for record in pruner.history:
        assert is_whole(record, batch) or record.kept < math.ceil(least / batch) * batch
    assert pruner.history[0].kept == 120
    # Losses do not move here, so that no sample goes its own way.
    if not isinstance(policy, (FullData, AlignPrune)) and batch < 50:
        assert min(record.kept for record in pruner.history) < 120


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("settings", [{}, {"budget": 0.7}, {"quantiles": ((0.5, 0.3), (0.9, 0.6))}])
def test_of_three_ranks_each_has_whole_batches_and_as_many(settings, sharded):
    def target(group):
        pruner = InfoBatch(403, EPOCHS, process_group=group, sharded=sharded, **settings)
        return train(pruner, 8), pruner.history

    ranks = in_threads(3, target)
    for sizes, history in ranks:
        assert sizes == ranks[0][0]
        for epoch, record in enumerate(history):
            if record.kept < record.total:
                assert record.kept % 24 == 0
                assert set(sizes[epoch]) == {8}
        assert min(record.kept for record in history) < 403


@given(
    size=st.integers(1, 200),
    batch=st.integers(1, 70),
    ratio=st.floats(0.05, 0.95),
    seed=st.integers(0, 100),
)
def test_at_any_size_the_batches_are_whole_and_the_weights_add_up(size, batch, ratio, seed):
    pruner = InfoBatch(size, 4, ratio, delta=1.0, seed=seed)
    loader = DataLoader(torch.arange(size), batch, sampler=pruner.sampler)
    for epoch in range(4):
        batches = iter(loader)
        plan = pruner.plan
        assert plan.weights.sum().item() == pytest.approx(size)
        if epoch == 0:
            assert len(plan) == size
        for indices in batches:
            pruner.update(losses_of(indices))
    for record in pruner.history:
        assert is_whole(record, batch)
        if size <= batch:  # not even one: as many as by the paper
            assert record.kept <= size


@pytest.mark.parametrize("size", [33, 34, 40])
def test_a_data_set_of_hardly_more_than_one_batch(size):
    """N = B + 1 is one batch when pruned, and never one and a batch of one sample."""
    pruner = InfoBatch(size, 8, 0.2, delta=1.0)
    for sizes, record in zip(train(pruner, 32), pruner.history, strict=True):
        assert len(sizes) == 1 or record.kept == size
    assert min(record.kept for record in pruner.history) < size


def test_epochs_that_are_not_pruned_stay_as_they_are():
    pruner = InfoBatch(101, 8, 0.5, warmup_epochs=2, delta=0.75)
    sizes = train(pruner, 16)
    for epoch in (0, 1, 6, 7):
        assert sizes[epoch] == [16] * 6 + [5]
    for epoch in range(2, 6):
        assert set(sizes[epoch]) == {16}


def test_what_is_kept_keeps_the_order_of_the_full_epoch():
    rounded, exact = InfoBatch(200, 4, seed=5), InfoBatch(200, 4, 0.0, seed=5)
    train(rounded, 32, epochs=1), train(exact, 32, epochs=1)
    kept = rounded.plan.indices.tolist()
    assert kept == [index for index in exact.plan.indices.tolist() if index in set(kept)]


class Repeating:
    """A sampler of one's own: more than the data set, some samples often."""

    def __init__(self, size, length, seed=0):
        self.size, self.length, self.draws = size, length, np.random.default_rng(seed)

    def __iter__(self):
        return iter(self.draws.integers(0, self.size, self.length).tolist())


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("batch", [5, 16, 29])
def test_a_sampler_of_ones_own_with_repeats_is_rounded_too(batch, ranks, ratio):
    def target(group):
        sampler = Repeating(90, 251)
        pruner = InfoBatch(90, 6, ratio, delta=1.0, sampler=sampler, process_group=group)
        sums = []
        loader = DataLoader(torch.arange(90), batch, sampler=pruner.sampler)
        for _ in range(6):
            batches = iter(loader)
            sums.append(pruner.plan.weights.sum().item())
            for indices in batches:
                pruner.update(losses_of(indices))
        return pruner.history, sums

    for history, sums in in_threads(ranks, target):
        assert history[0].kept == 251
        assert min(record.kept for record in history) < 251
        for record, total in zip(history, sums, strict=True):
            assert record.kept == 251 or record.kept % (batch * ranks) == 0
            assert record.mean_weight == pytest.approx(total / record.kept)


def test_a_fixed_subset_is_that_and_no_other():
    chosen = np.arange(3, 80, 2)
    weights = np.where(np.arange(len(chosen)) < 5, 3.0, 1.0)
    pruner = DataPruner(100, 4, FixedSubset(chosen, weights), warmup_epochs=0, delta=1.0)
    train(pruner, 8, epochs=3)
    assert sorted(pruner.plan.indices.tolist()) == chosen.tolist()
    assert [record.kept for record in pruner.history] == [len(chosen)] * 3


# ------------------------------------------------------------------ the rounding itself


def all_subsets(members, kept, rounded_to, size, batch):
    """E[weight * kept] of each sample by going through all that a thinning could have kept.

    A pool is the first `members` of `size` samples; `kept` of it weigh members / kept. What the
    rounding draws is drawn often, as it can keep any `rounded_to` of them.
    """
    total, draws = np.zeros(size), 0
    for subset in itertools.combinations(range(members), kept):
        weights = np.ones(size)
        weights[:members] = 0.0
        weights[list(subset)] = members / kept
        for seed in range(40):
            out = to_whole_batches(Selection(weights), batch, np.random.default_rng((draws, seed)))
            found = out.weights_of(np.arange(size))
            assert out.num_kept % batch == 0
            assert np.count_nonzero(found[:members]) == rounded_to
            assert found.sum() == pytest.approx(size)
            assert found[members:].tolist() == [1.0] * (size - members)
            total += found
        draws += 1
    return total / (draws * 40), draws * 40


@pytest.mark.parametrize(
    ("members", "kept", "rounded_to", "size", "batch"),
    [(6, 3, 4, 10, 4), (6, 4, 3, 11, 4), (7, 3, 4, 12, 3), (8, 4, 6, 10, 4)],
)
def test_going_through_all_thinnings_every_sample_weighs_one_on_average(
    members, kept, rounded_to, size, batch
):
    mean, draws = all_subsets(members, kept, rounded_to, size, batch)
    deviation = math.sqrt(members / rounded_to - 1)  # of weight * kept
    assert np.abs(mean - 1.0)[:members].max() < 4.5 * deviation / math.sqrt(draws)
    assert mean[:members].mean() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    "policy",
    [
        MeanThreshold(0.5),
        MeanThreshold(0.8),
        RandomSubset(0.4),
        BudgetThreshold(),
        ProportionalSampling(exponent=1.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("size", [50, 83])
def test_planned_in_whole_batches_every_sample_weighs_one_on_average(policy, size):
    """2,000 seeds; a false alarm in less than one of 1,000 runs (83 samples at 4.5 sigma)."""
    scores = torch.from_numpy(np.random.default_rng(1).gamma(0.7, size=size)).float()
    draws = 2000
    found = np.zeros((draws, size))
    for seed in range(draws):
        budget = 0.8 if policy.needs_budget else None
        pruner = DataPruner(size, 2, policy, delta=1.0, seed=seed, budget=budget, batch_size=8)
        pruner.update(scores, indices=range(size))
        plan = pruner.plan
        assert pruner.epoch == 1
        assert len(plan) % 8 == 0 or len(plan) == size
        found[seed, plan.indices.numpy()] = plan.weights.numpy()
    error = np.maximum(found.std(axis=0) / math.sqrt(draws), 1e-9)
    assert (np.abs(found.mean(axis=0) - 1.0) / error).max() < 4.5


@given(
    size=st.integers(1, 400),
    ratio=st.floats(0.01, 0.99),
    batch=st.integers(1, 100),
    seed=st.integers(0, 1000),
    heavy=st.sampled_from(["one pool", "two pools", "few", "none", "levels"]),
)
def test_any_selection_is_rounded_to_whole_batches_and_keeps_its_total_weight(
    size, ratio, batch, seed, heavy
):
    rng = np.random.default_rng(seed)
    weights = np.ones(size)
    if heavy in ("one pool", "levels"):
        pool = rng.permutation(size)[: max(1, size // 2)]
        left = max(1, int(ratio * len(pool)))
        weights[pool] = 0.0
        weights[pool[:left]] = len(pool) / left
    else:
        weights[rng.random(size) < ratio] = 0.0
        if heavy == "two pools":
            weights[(rng.random(size) < 0.5) & (weights > 0)] = 2.5
            weights[(rng.random(size) < 0.5) & (weights > 0)] = 4.0
        if heavy == "few":
            weights[np.flatnonzero(weights)[:3]] = 3.0
    selection = Selection(weights)
    if heavy == "levels":
        table, level = np.unique(weights, return_inverse=True)
        selection = Selection(table, level.astype(np.uint8))
    out = to_whole_batches(selection, batch, rng)
    found, kept = out.weights_of(np.arange(size)), selection.num_kept
    assert len(out) == size
    assert out.num_kept % batch == 0 or out.num_kept == size or out is selection
    if out is selection:
        assert kept < batch or kept % batch == 0 or kept == size
    elif not out.is_full:
        if heavy not in ("two pools", "few"):  # of which it is the mean that is kept
            assert found.sum() == pytest.approx(weights.sum())
        assert out.num_kept <= kept + batch
        assert abs(out.num_kept - kept) < max(2 * batch, 1)
        assert found.max() <= 2 * weights.max() + 1e-9
    if out.is_full and out is not selection:
        assert weights.sum() == pytest.approx(size)  # one pool: all are kept, with weight 1


def test_a_selection_of_few_rescaled_samples_does_not_become_the_full_data():
    weights = np.zeros(1000)
    weights[:500], weights[:5] = 1.0, 3.0
    out = to_whole_batches(Selection(weights), 32, np.random.default_rng(0))
    assert out.num_kept == 480
    assert out.weights_of(np.arange(1000)).sum() == pytest.approx(510, rel=0.02)


def test_candidates_are_whole_batches_or_all():
    assert Batches(32).candidates(100, 1000) == [96, 128, 1000]
    assert Batches(32).nearest(990, 1000) == 992
    assert Batches(32).nearest(997, 1000) == 1000
    assert Batches(32).nearest(20, 1000) == 20  # less than one
    assert Batches(32).nearest(20, 25) == 20
    assert Batches(32, least=70).nearest(80, 1000) == 80  # below the smallest that may be
    assert Batches(32, least=70).nearest(97, 1000) == 96
    assert Batches(1).nearest(77, 100) == 77


# ------------------------------------------------------------------ what it is for


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("settings", [{}, {"budget": 0.7}], ids=repr)
def test_batch_norm_never_meets_a_batch_of_one(settings, seed):
    """Without rounding one of 32 sizes leaves a last batch of one sample, and batch norm fails."""
    torch.manual_seed(seed)
    inputs, labels = torch.randn(400, 6), torch.randint(0, 3, (400,))
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = InfoBatch(400, 30, seed=seed, **settings)
    loader = DataLoader(torch.arange(400), 32, sampler=pruner.sampler)
    for _ in range(30):
        for ids in loader:
            losses = nn.functional.cross_entropy(model(inputs[ids]), labels[ids], reduction="none")
            optimizer.zero_grad()
            pruner.update(losses).backward()
            optimizer.step()
    assert {record.kept % 32 for record in pruner.history[1:26]} == {0}
    assert pruner.saved_fraction > 0.15


# ------------------------------------------------------------------ budgets and steps


@given(
    size=st.integers(20, 300),
    batch=st.integers(1, 40),
    budget=st.floats(0.5, 1.0),
    shape=st.sampled_from(["constant", "rising", "falling", "cosine"]),
)
def test_a_budget_is_met_to_within_half_a_batch_in_as_many_steps_as_told(
    size, batch, budget, shape
):
    batch = min(batch, size // 4)
    pruner = InfoBatch(size, 16, budget=budget, ratio_schedule=shape)
    known = pruner.total_steps(batch)
    steps = sum(len(sizes) for sizes in train(pruner, batch))
    assert steps == known == pruner.total_steps(batch)
    cost = sum(record.kept for record in pruner.history)
    wanted = int(budget * size * 16 + 0.5)
    assert 2 * abs(cost - wanted) <= batch


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(("first", "then"), [(32, 20), (8, 64), (16, 1), (10, 30)])
def test_a_budget_survives_another_batch_size_in_mid_run(first, then, ranks):
    def target(group):
        pruner = InfoBatch(700, 16, budget=0.6, process_group=group)
        before = sum(len(sizes) for sizes in train(pruner, first, epochs=5))
        done = pruner.history
        after = sum(len(sizes) for sizes in train(pruner, then))
        assert pruner.history[:5] == done or repr(pruner.history[:5]) == repr(done)
        return sum(record.kept for record in pruner.history), pruner.history, before, after

    for cost, history, _, after in in_threads(ranks, target):
        assert 2 * abs(cost - 0.6 * 700 * 16) <= then * ranks
        for epoch, record in enumerate(history):
            size = (first if epoch < 5 else then) * ranks
            assert record.kept == 700 or record.kept % size == 0
        assert after == sum(-(-r.kept // (then * ranks)) for r in history[5:])


@pytest.mark.parametrize(("first", "then"), [(32, 20), (8, 64), (16, 1)])
@pytest.mark.parametrize("stop", [0, 3], ids=["between", "within"])
def test_a_budget_survives_another_batch_size_on_resume(first, then, stop):
    pruner = InfoBatch(700, 16, budget=0.6)
    made = sum(len(sizes) for sizes in train(pruner, first, epochs=5))
    batches = iter(DataLoader(torch.arange(700), first, sampler=pruner.sampler))
    for _ in range(stop):
        pruner.update(losses_of(next(batches)))
    resumed = InfoBatch(700, 16, budget=0.6)
    resumed.load_state_dict(pruner.state_dict())
    assert resumed.is_within_epoch == (stop > 0)
    in_epoch = len(pruner.plan)
    made = sum(len(sizes) for sizes in train(resumed, then))
    cost = sum(record.kept for record in resumed.history)
    assert 2 * abs(cost - 0.6 * 700 * 16) <= then
    assert resumed.epoch == 16
    if stop:
        assert resumed.history[5].kept == in_epoch  # as it was planned
    rest = [record.kept for record in resumed.history[5:]]
    rest[0] -= stop * first
    assert made == sum(-(-kept // then) for kept in rest)


# ------------------------------------------------------------------ where the size comes from


@pytest.mark.parametrize("settings", [{}, {"budget": 0.7}], ids=repr)
def test_the_given_batch_size_wins_over_the_loaders(settings):
    pruner = InfoBatch(300, 8, batch_size=40, **settings)
    train(pruner, 32)
    pruned = [record.kept for record in pruner.history if record.kept < 300]
    assert len(pruned) == 6
    assert {kept % 40 for kept in pruned} == {0}
    assert any(kept % 32 for kept in pruned)


def test_batch_size_one_switches_rounding_off():
    rounded, exact = InfoBatch(300, 8), InfoBatch(300, 8, batch_size=1)
    for pruner in (rounded, exact):
        train(pruner, 32)
    scores = losses_of(torch.arange(300)).double()
    below = int((scores < scores.mean()).sum())
    assert exact.history[1].kept == 300 - below + math.floor(below / 2 + 0.5)
    assert exact.history[1].kept % 32
    assert rounded.history[1].kept % 32 == 0


def test_as_long_as_no_batch_size_is_known_ranks_plan_as_one_process_does():
    """For hosts whose loader cannot be seen, such as loops of their own over the sampler."""

    def target(group):
        pruner = InfoBatch(301, 8, budget=0.7, process_group=group)
        for epoch in range(8):
            pruner.update(losses_of(torch.tensor(list(pruner.sampler)), epoch))
        return [record.kept for record in pruner.history]

    (alone,), several = in_threads(1, target), in_threads(3, target)
    assert several == [alone] * 3
    assert sum(alone) == round(0.7 * 301 * 8)
    assert any(kept % 3 for kept in alone[1:-1])


def test_a_plan_that_was_looked_at_before_the_loader_is_seen_is_made_again():
    pruner, told = InfoBatch(300, 8), InfoBatch(300, 8, batch_size=32)
    for one in (pruner, told):
        one.update(losses_of(torch.arange(300)), indices=range(300))
    early = len(pruner.plan)
    assert early % 32
    batches = iter(DataLoader(torch.arange(300), 32, sampler=pruner.sampler))
    next(batches)
    assert torch.equal(pruner.plan.indices, told.plan.indices)
    assert len(pruner.plan) % 32 == 0
    del batches


def test_the_length_of_a_loader_is_that_of_the_epoch_that_it_will_draw():
    pruner = InfoBatch(300, 8)
    loader = DataLoader(torch.arange(300), 32, sampler=pruner.sampler)
    for epoch in range(8):
        announced = len(loader)
        batches = [pruner.update(losses_of(ids, epoch)) for ids in loader]
        assert len(batches) == announced
    assert pruner.epoch == 8
