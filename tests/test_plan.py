"""The epoch plan: a pure function of (selection, seed, epoch), known before the epoch starts."""

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from infobatch import DataPruner, InfoBatch
from infobatch._core.plan import EpochPlan, selection_rng, shuffled
from infobatch.policies import (
    FullData,
    MeanThreshold,
    QuantileThresholds,
    RandomSubset,
    Selection,
)

seeds = st.integers(0, 2**63 - 1)
POLICIES = [FullData(), MeanThreshold(0.5), QuantileThresholds(), RandomSubset(0.7)]


def scored(policy, seed=0, num_samples=500):
    """A pruner whose first epoch is over: every sample has a score."""
    pruner = DataPruner(num_samples, 10, policy, seed=seed)
    table = torch.from_numpy(np.random.default_rng(1).exponential(size=num_samples))
    for sample in torch.utils.data.BatchSampler(pruner.sampler, 100, drop_last=False):
        pruner.update(table[sample])
    return pruner


# ---------------------------------------------------------------- the order


@given(num_samples=st.integers(1, 3000), seed=seeds, epoch=st.integers(0, 10_000))
@example(num_samples=1, seed=0, epoch=0)
@example(num_samples=7, seed=2**63 - 1, epoch=2**31)
def test_the_order_is_a_permutation(num_samples, seed, epoch):
    order = shuffled(num_samples, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(num_samples))


def test_every_permutation_is_equally_likely():
    # n = 4,800 epochs of 4 samples, 24 permutations. Threshold: the 99.99% quantile of chi-square
    # with 23 degrees of freedom, scipy.stats.chi2.isf(1e-4, 23).
    orders = [tuple(shuffled(4, 1, epoch).tolist()) for epoch in range(4800)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 24
    assert float(((counts - 200) ** 2 / 200).sum()) < 57.075


def test_the_same_seed_and_epoch_give_the_same_order():
    assert np.array_equal(shuffled(1000, 3, 5), shuffled(1000, 3, 5))


def test_the_order_of_a_seed_is_the_same_on_every_machine_and_in_every_version():
    # A change here breaks every checkpoint taken within an epoch.
    assert shuffled(10, 0, 0).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]
    assert shuffled(10, 1, 7).tolist() == [8, 3, 4, 2, 9, 1, 6, 0, 7, 5]
    assert selection_rng(1, 7).integers(0, 1000, size=5).tolist() == [791, 613, 676, 102, 672]


def test_seeds_and_epochs_have_streams_of_their_own():
    keys = [(seed, epoch) for seed in (0, 1, 2, 2**63 - 1) for epoch in range(6)]
    orders = {tuple(shuffled(50, seed, epoch).tolist()) for seed, epoch in keys}
    draws = {tuple(selection_rng(seed, epoch).random(8).tolist()) for seed, epoch in keys}
    assert len(orders) == len(draws) == len(keys)


def test_what_is_selected_and_in_which_order_are_drawn_from_different_streams():
    for epoch in range(6):
        order = shuffled(50, 3, epoch)
        for other in range(6):
            assert not np.array_equal(order, selection_rng(3, other).permutation(50))


def test_the_order_does_not_depend_on_the_policy():
    # "Permute first, then filter": what two policies both keep, they visit in the same order.
    plans = [scored(policy, seed=6).plan.indices.tolist() for policy in POLICIES]
    full = shuffled(500, 6, 1).tolist()
    assert plans[0] == full
    for plan in plans[1:]:
        kept = set(plan)
        assert len(kept) < 500
        assert plan == [sample for sample in full if sample in kept]


def test_global_generators_are_neither_read_nor_written():
    def states():
        of_numpy = np.random.get_state()  # noqa: NPY002 - the global generator is what this is about
        return str((random.getstate(), of_numpy, torch.get_rng_state().tolist()))

    def plans():
        return [scored(policy).plan.indices.tolist() for policy in POLICIES]

    before, first = states(), plans()
    assert states() == before
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - as above
    torch.manual_seed(1)
    assert plans() == first


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_thread_count_changes_no_plan(policy):
    threads = torch.get_num_threads()
    plans = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            plan = scored(policy, num_samples=30_000).plan
            plans.append((plan.indices, plan.weights, torch.tensor(plan.threshold)))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*plans, strict=True):
        assert torch.equal(one.nan_to_num(), two.nan_to_num())


# ---------------------------------------------------------------- the plan


@given(
    weights=st.lists(
        st.one_of(st.just(0.0), st.floats(0.01, 100.0)), min_size=1, max_size=200
    ).filter(any),
    seed=seeds,
)
def test_a_plan_is_the_order_without_the_pruned_samples_and_with_their_weights(weights, seed):
    selection = Selection(np.array(weights), threshold=0.7)
    unpruned = shuffled(len(weights), seed, 4)
    plan = EpochPlan.build(4, selection, unpruned)
    expected = [sample for sample in unpruned.tolist() if weights[sample] > 0]
    assert plan.epoch == 4
    assert plan.threshold == 0.7
    assert plan.total == len(weights)
    assert len(plan) == len(expected)
    assert plan.indices.tolist() == expected
    assert plan.weights.tolist() == [weights[sample] for sample in expected]
    assert plan.mean_weight == pytest.approx(sum(weights) / len(expected), rel=1e-12)


def test_a_plan_of_the_full_data_has_every_sample_with_weight_one():
    plan = EpochPlan.build(0, Selection.full(300), shuffled(300, 2, 0))
    assert plan.indices.tolist() == shuffled(300, 2, 0).tolist()
    assert plan.weights.tolist() == [1.0] * 300
    assert plan.mean_weight == 1.0


@pytest.mark.parametrize("num_samples", [(1 << 16) - 1, 1 << 16, (1 << 16) + 1, 200_000])
def test_large_plans_are_built_like_small_ones(num_samples):
    level = (np.arange(num_samples) % 3).astype(np.uint8)
    selection = Selection(np.array([1.0, 2.5, 0.0]), level)
    unpruned = shuffled(num_samples, 0, 1)
    plan = EpochPlan.build(1, selection, unpruned)
    expected = unpruned[unpruned % 3 != 2]
    assert np.array_equal(plan.indices.numpy(), expected)
    assert np.array_equal(plan.weights.numpy(), np.where(expected % 3 == 0, 1.0, 2.5))
    assert plan.mean_weight == pytest.approx(plan.weights.mean().item(), rel=1e-12)


def test_repeats_in_the_order_stay_and_count():
    selection = Selection(np.array([1.0, 0.0, 3.0]))
    plan = EpochPlan.build(2, selection, np.array([2, 1, 2, 0, 1, 2]))
    assert plan.indices.tolist() == [2, 2, 0, 2]
    assert plan.weights.tolist() == [3.0, 3.0, 1.0, 3.0]
    assert plan.total == 6
    assert plan.mean_weight == 2.5


def test_indices_are_int64_outside_and_as_small_as_possible_inside():
    plan = EpochPlan.build(0, Selection.full(100), shuffled(100, 0, 0))
    assert plan.indices.dtype == torch.int64
    assert plan.weights.dtype == torch.float64
    assert plan.order.dtype == np.int32
    pruned = EpochPlan.build(0, Selection(np.ones(100)), shuffled(100, 0, 0))
    assert pruned.order.dtype == np.int32


def test_a_data_set_beyond_2_to_the_31_is_indexed_in_int64():
    huge = Selection.full(2**31 + 5)  # takes no memory
    last = np.array([2**31 + 4, 0, 2**31])
    plan = EpochPlan.build(0, huge, last)
    assert plan.order.dtype == np.int64
    assert plan.indices.tolist() == last.tolist()
    assert EpochPlan.build(0, Selection.full(2**31 - 1), last[1:2]).order.dtype == np.int32


def test_what_a_plan_gives_out_is_a_copy():
    pruner = scored(MeanThreshold(0.5))
    plan = pruner.plan
    indices, weights = plan.indices.clone(), plan.weights.clone()
    plan.indices.zero_()
    plan.weights.zero_()
    assert torch.equal(plan.indices, indices)
    assert torch.equal(plan.weights, weights)
    assert list(pruner.sampler) == indices.tolist()


def test_looking_at_the_plan_changes_nothing():
    looked, other = scored(MeanThreshold(0.5)), scored(MeanThreshold(0.5))
    for _ in range(3):
        len(looked.plan)
        len(looked.sampler)
    assert list(looked.sampler) == list(other.sampler)


def test_planning_does_not_change_the_order_that_it_is_given():
    unpruned = shuffled(100, 0, 0)
    before = unpruned.copy()
    plan = EpochPlan.build(0, Selection.full(100), unpruned)
    EpochPlan.build(0, Selection(np.array([0.0, 1.0] * 50)), unpruned)
    assert np.array_equal(unpruned, before)
    assert plan.indices.tolist() == before.tolist()


def test_two_runs_with_one_seed_have_the_same_plans_and_with_another_seed_others():
    def plan(seed):
        return scored(MeanThreshold(0.5), seed=seed).plan

    one, same, other = plan(1), plan(1), plan(2)
    assert torch.equal(one.indices, same.indices)
    assert torch.equal(one.weights, same.weights)
    assert set(one.indices.tolist()) != set(other.indices.tolist())


def test_the_first_plan_is_there_before_anything_is_iterated():
    pruner = InfoBatch(20, 3, seed=5)
    assert pruner.plan.epoch == 0
    assert pruner.plan.indices.tolist() == list(pruner.sampler)
