"""A budget is met to within half a batch, and the number of steps is known before the first."""

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.distributed.support import in_threads
from tests.policies.support import ask
from torch.utils.data import DataLoader, SubsetRandomSampler, WeightedRandomSampler

from infobatch import DataPruner, InfoBatch
from infobatch._core.budget import epoch_sizes, pruned_epochs
from infobatch.errors import IndistinctScoresWarning, SamplerError, StateError
from infobatch.policies import (
    PAPER_QUANTILES,
    UCB,
    BudgetThreshold,
    FullData,
    MeanThreshold,
    ProportionalSampling,
    RandomSubset,
    WithinGroups,
)

N, EPOCHS = 300, 16

# Most of these losses are far above 1, where the policy of a budget tells none apart.
pytestmark = pytest.mark.filterwarnings("ignore::infobatch.errors.IndistinctScoresWarning")


def losses_of(kind, indices, epoch):
    """Losses of very different shapes, that of each sample depending on the sample alone."""
    i = indices.float()
    if kind == "equal":
        return torch.full_like(i, 0.5)
    if kind == "zero":
        return torch.zeros_like(i)
    if kind == "nan":
        return torch.full_like(i, float("nan"))
    if kind == "one huge":  # nearly everything lies below the mean
        return torch.where(i == 7, 1e6, 0.1 + 1e-4 * i)
    if kind == "one tiny":  # hardly anything does
        return torch.where(i == 7, 0.0, 5.0 + 1e-4 * i)
    return ((i * 37.0) % 101.0) / (1.0 + epoch)


def train(pruner, kind="usual", *, batch_size=32, drop_last=False):
    """Train to the end; the number of steps."""
    loader = DataLoader(
        torch.arange(pruner.num_samples),
        batch_size=batch_size,
        sampler=pruner.sampler,
        drop_last=drop_last,
    )
    steps = 0
    for epoch in range(pruner.epoch, pruner.num_epochs):
        for indices in loader:
            pruner.update(losses_of(kind, indices, epoch))
            steps += 1
    return steps


def train_and_stop(pruner, stop, kind="usual", *, batch_size=32):
    """Train so many steps; the loader's iterator, which says that the loop was not left."""
    loader = DataLoader(
        torch.arange(pruner.num_samples), batch_size=batch_size, sampler=pruner.sampler
    )
    steps = 0
    while True:
        batches = iter(loader)
        for indices in batches:
            pruner.update(losses_of(kind, indices, pruner.epoch))
            steps += 1
            if steps == stop:
                return batches


def passes(pruner):
    return sum(record.kept for record in pruner.history)


def is_met(pruner, budget, batch=1):
    """Whether the run has cost its budget, to within half a batch of all ranks together."""
    wanted = round(budget * pruner.num_samples * pruner.num_epochs)
    return 2 * abs(passes(pruner) - wanted) <= (batch if batch > 1 else 0)


# ------------------------------------------------------------------ the promise


@pytest.mark.parametrize("kind", ["usual", "equal", "zero", "nan", "one huge", "one tiny"])
@pytest.mark.parametrize("budget", [0.45, 0.85, 1.0])
@pytest.mark.parametrize("build", [InfoBatch, DataPruner])
def test_a_run_costs_what_was_asked_for_whatever_the_losses_are(build, kind, budget):
    for batch in (32, 1):
        pruner = build(N, EPOCHS, budget=budget, batch_size=1 if batch == 1 else None)
        known = pruner.total_steps(32)
        with _nan_warnings(kind):
            assert train(pruner, kind) == known
        assert is_met(pruner, budget, batch)
        assert pruner.saved_fraction == pytest.approx(1 - passes(pruner) / (N * EPOCHS))


def test_what_infobatch_and_what_datapruner_do_with_a_budget():
    assert InfoBatch(N, EPOCHS, budget=0.6).policy == BudgetThreshold()
    assert DataPruner(N, EPOCHS, budget=0.6).policy == ProportionalSampling()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 32, 100])
def test_total_steps_is_the_number_of_batches(batch_size, drop_last):
    pruner = InfoBatch(N, EPOCHS, budget=0.55)
    known = pruner.total_steps(batch_size, drop_last=drop_last)
    assert train(pruner, batch_size=batch_size, drop_last=drop_last) == known
    assert pruner.total_steps(batch_size, drop_last=drop_last) == known  # also afterwards


def test_progress_rises_by_as_much_in_every_step():
    """So that a schedule is the same whether it follows progress or counts `total_steps`."""
    pruner = InfoBatch(N, EPOCHS, budget=0.5)
    total, seen = N * EPOCHS // 2, 0
    for epoch in range(EPOCHS):
        for index in pruner.sampler:
            pruner.update(losses_of("one huge", torch.tensor([index]), epoch))
            seen += 1
            assert pruner.progress == pytest.approx(seen / total, rel=1e-12)
    assert pruner.progress == 1.0


@pytest.mark.parametrize("kind", ["usual", "equal", "nan", "one huge", "one tiny"])
def test_the_weights_stay_unbiased_and_below_their_cap(kind):
    pruner = DataPruner(N, EPOCHS, BudgetThreshold(), budget=0.4)
    with _nan_warnings(kind):
        while pruner.epoch < EPOCHS:
            weights = pruner.plan.weights
            assert weights.sum().item() == pytest.approx(N)
            assert weights.max() <= 4.0 * (1 + 1e-9)
            epoch = pruner.epoch
            loader = DataLoader(torch.arange(N), batch_size=50, sampler=pruner.sampler)
            for indices in loader:
                pruner.update(losses_of(kind, indices, epoch))


def test_with_a_large_pool_the_threshold_is_the_mean():
    pruner = DataPruner(N, EPOCHS, BudgetThreshold(), budget=0.8)
    train_and_stop(pruner, 10)
    scores = pruner.scores.double()
    assert pruner.epoch == 1
    assert pruner.plan.threshold == pytest.approx(scores.mean().item())
    low = scores < scores.mean()
    assert set(pruner.plan.pruned.tolist()) <= set(low.nonzero().flatten().tolist())


def test_with_a_small_pool_the_threshold_moves_up():
    pruner = DataPruner(N, EPOCHS, BudgetThreshold(), budget=0.45)
    train_and_stop(pruner, 10, "one tiny")
    assert pruner.plan.threshold > pruner.scores.double().mean()
    assert len(pruner.plan.pruned) > 0.5 * N


@pytest.mark.parametrize("quantiles", [PAPER_QUANTILES, ((0.5, 0.5),)])
def test_quantiles_can_have_a_budget(quantiles):
    pruner = InfoBatch(N, EPOCHS, quantiles=quantiles, budget=0.7)
    known = pruner.total_steps(32)
    assert train(pruner) == known
    assert is_met(pruner, 0.7, 32)


def test_groups_are_each_thinned_alike():
    groups = np.arange(N) % 3
    pruner = InfoBatch(N, EPOCHS, budget=0.6, groups=groups)
    loader = DataLoader(torch.arange(N), batch_size=50, sampler=pruner.sampler)
    for epoch in range(EPOCHS):
        counts = np.bincount(groups[pruner.plan.indices.numpy()], minlength=3)
        assert counts.max() - counts.min() <= 1
        for indices in loader:
            pruner.update(losses_of("usual", indices, epoch) + 10.0 * (indices % 3))
    assert is_met(pruner, 0.6, 50)


def test_without_groups_a_class_of_low_losses_is_thinned_most():
    pruner = InfoBatch(N, EPOCHS, budget=0.6)
    loader = DataLoader(torch.arange(N), batch_size=50, sampler=pruner.sampler)
    for indices in loader:
        pruner.update(0.1 + 1e-4 * indices + indices % 3)
    counts = np.bincount((pruner.plan.indices % 3).numpy(), minlength=3)
    assert counts[0] < 0.5 * counts[2]


def test_what_is_left_out_is_what_is_learned():
    """In a run that learns two thirds, little of the gradient is left out, and no word said."""
    pruner = DataPruner(N, EPOCHS, budget=0.6)
    loader = DataLoader(torch.arange(N), batch_size=50, sampler=pruner.sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("error", IndistinctScoresWarning)
        for epoch in range(EPOCHS):
            if pruner.epoch == EPOCHS // 2:
                assert pruner.plan.selection.mass_left_out < 0.1
                assert len(pruner.plan.pruned) > 0.4 * N
            for indices in loader:
                learned = torch.where(indices % 3 > 0, 1.0 / (1 + epoch) ** 2, 1.0)
                pruner.update(learned * (1.0 + 1e-3 * indices))


@pytest.mark.parametrize("groups", [None, np.arange(N) % 3], ids=["", "groups"])
def test_a_run_that_learns_no_sample_says_so_once_and_is_random(groups):
    pruner = DataPruner(N, EPOCHS, budget=0.6, groups=groups, batch_size=1)
    with pytest.warns(IndistinctScoresWarning, match="the full data for fewer epochs") as seen:
        train(pruner, "one tiny")
    assert len(seen) == 1
    assert seen[0].filename == __file__  # the line that called update
    text = str(seen[0].message)
    half = "49% of the samples were left out of each pruned epoch so far, and 49% of the total"
    assert half in text
    times = np.zeros(N)
    again = DataPruner(N, EPOCHS, budget=0.6, groups=groups, batch_size=1)
    loader = DataLoader(torch.arange(N), batch_size=50, sampler=again.sampler)
    for epoch in range(EPOCHS - 2):
        times[again.plan.indices.numpy()] += 1
        assert set(again.plan.weights.tolist()) == {1.0}
        for indices in loader:
            again.update(losses_of("one tiny", indices, epoch))
    low, high = np.array_split(times[np.arange(N) != 7], 2)  # losses rise with the index
    assert low.mean() == pytest.approx(high.mean(), rel=0.05)


def indistinct(losses, *, rescored=False, **changes):
    """The epochs after which a run says that its scores tell nothing apart.

    Losses are a function of (indices, epoch).
    """
    pruner = DataPruner(N, EPOCHS, **{"budget": 0.6, **changes})
    loader = DataLoader(torch.arange(N), batch_size=50, sampler=pruner.sampler)
    said = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for epoch in range(EPOCHS):
            for indices in loader:
                pruner.update(losses(indices.float(), epoch))
            said += [epoch] * (len(seen) - len(said))
            if rescored and pruner.epoch < EPOCHS:
                left_out = pruner.plan.pruned
                pruner.rescore(left_out, losses(left_out.float(), epoch))
    assert all(warning.category is IndistinctScoresWarning for warning in seen)
    return said


def test_what_the_first_two_pruned_epochs_have_left_out_decides():
    """In time for something to be done about it."""

    def half(i, _epoch):
        """One half is learned at once."""
        return torch.where(i < N / 2, 0.01, 2.0)

    def unlearned(i, _epoch):
        return 3.0 + 1e-3 * i

    def negative(i, _epoch):
        return -3.0 - 1e-3 * i

    assert indistinct(half) == []
    assert indistinct(unlearned) == [2]
    assert indistinct(negative) == [2]  # logarithms of densities: no bound on anything
    assert indistinct(unlearned, rescored=True) == [2]  # planned anew after each epoch
    late = {"ratio_schedule": lambda place: float(place > 0.5), "budget": 0.8}
    assert indistinct(unlearned, **late) == [9]  # its first epochs leave nothing out
    unknown = {"warmup_epochs": 0, "delta": 2 / EPOCHS, "budget": 0.95}
    assert indistinct(unlearned, **unknown) == [1]  # the first of two pruned epochs has no scores
    single = {"delta": 2 / EPOCHS, "budget": 0.97}
    assert indistinct(unlearned, **single) == [1]  # there will be no second
    assert indistinct(unlearned, budget=1.0) == []
    assert indistinct(unlearned, delta=0.0, budget=1.0) == []
    assert indistinct(unlearned, policy=BudgetThreshold()) == [2]  # it says so by the headroom
    assert indistinct(half, policy=BudgetThreshold()) == []


def test_the_mass_left_out_is_in_the_history_and_in_a_state_within_an_epoch():
    whole = DataPruner(N, EPOCHS, budget=0.6)
    train(whole)
    masses = [record.mass_left_out for record in whole.history]
    assert masses[0] == masses[-1] == 0.0
    assert all(0 < mass < 1 for mass in masses[1:14])
    first, second = (DataPruner(N, EPOCHS, budget=0.6) for _ in range(2))
    batches = train_and_stop(first, 47)
    assert first.is_within_epoch
    second.load_state_dict(first.state_dict())
    assert second.is_within_epoch
    assert second.plan.selection.mass_left_out == masses[second.epoch]
    del batches


@pytest.mark.parametrize("seed", range(2))
def test_groups_of_any_size_take_any_budget(seed):
    rng = np.random.default_rng(seed)
    sizes = np.concatenate([[1, 1, 2], rng.integers(1, 60, 10), [200]])
    groups = np.repeat(np.arange(len(sizes)), sizes)
    least = [ProportionalSampling().min_keep(int(size)) for size in sizes]
    policy = WithinGroups(ProportionalSampling(), groups)
    assert policy.min_keep(len(groups)) == sum(least)
    scores = rng.gamma(1.0, size=len(groups)).astype(np.float32)
    for keep in [*range(sum(least), len(groups), 10), len(groups)]:
        kept = ask(policy, scores, 1, rng, keep=keep).weights > 0
        counts = np.bincount(groups[kept], minlength=len(sizes))
        assert counts.sum() == keep
        assert (least <= counts).all()
        assert (counts <= sizes).all()
        exact = np.clip(keep * sizes / sizes.sum(), least, sizes)
        if keep == sum(least) + 100:  # what the smallest get more, the largest gives
            assert (np.abs(counts - exact)[:-1] < 1 + 1e-9).all()
    rare = np.zeros(1000, int)
    rare[0] = 1
    assert InfoBatch(1000, 20, budget=0.6, groups=rare).budget == 0.6


@pytest.mark.parametrize("policy", [RandomSubset(), UCB(every=3)], ids=repr)
def test_any_policy_that_can_be_told_meets_a_budget(policy):
    pruner = DataPruner(N, EPOCHS, policy, budget=0.5, delta=1.0)
    known = pruner.total_steps(10)
    assert train(pruner, batch_size=10) == known
    assert is_met(pruner, 0.5, 10)


# ------------------------------------------------------------------ how it is spread


@given(
    num_samples=st.integers(1, 400),
    num_epochs=st.integers(1, 40),
    delta=st.floats(0, 1),
    warmup=st.integers(0, 5),
    budget=st.floats(0.01, 1.0),
    shape=st.sampled_from(["constant", "rising", "falling", "cosine"]),
    part=st.floats(0, 1),
)
@settings(max_examples=300)
def test_epoch_sizes_add_up_or_the_budget_is_refused(
    num_samples, num_epochs, delta, warmup, budget, shape, part
):
    pruned = pruned_epochs(num_epochs, delta, warmup)
    min_keep = max(1, int(part * num_samples))
    full = num_samples * num_epochs
    wanted = int(budget * full + 0.5)
    least = full - len(pruned) * (num_samples - min_keep)
    try:
        sizes = epoch_sizes(
            num_samples, num_epochs, pruned, budget, min_keep=min_keep, ratio_schedule=shape
        )
    except ValueError:
        assert wanted < least
        return
    assert wanted >= least
    assert sum(sizes) == wanted
    assert len(sizes) == num_epochs
    for epoch, size in enumerate(sizes):
        assert min_keep <= size <= num_samples if epoch in pruned else size == num_samples


def test_a_constant_schedule_is_as_even_as_whole_samples_allow():
    sizes = epoch_sizes(100, 10, range(1, 8), 0.633)
    assert {*sizes[1:8]} <= {47, 48}
    assert sizes[:1] + sizes[8:] == [100] * 3


@pytest.mark.parametrize(("shape", "sign"), [("rising", -1), ("falling", 1), ("cosine", 1)])
def test_a_schedule_gives_the_saving_its_shape(shape, sign):
    sizes = epoch_sizes(1000, 20, range(20), 0.7, ratio_schedule=shape)
    steps = [sign * (after - before) for before, after in itertools.pairwise(sizes)]
    assert min(steps) > 0
    assert sum(sizes) == 14_000


def test_a_schedule_of_ones_own_in_proportion():
    sizes = epoch_sizes(1000, 4, range(4), 0.75, ratio_schedule=lambda u: 3.0 if u > 0.5 else 1.0)
    assert sizes == [875, 875, 625, 625]


def test_epochs_at_their_limit_leave_the_rest_to_the_others():
    sizes = epoch_sizes(100, 4, range(4), 0.5, min_keep=20, ratio_schedule=lambda u: u**8)
    assert min(sizes) == 20
    assert sum(sizes) == 200


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("budget", [0.2, 0.3])
def test_a_budget_out_of_reach_is_refused_with_the_range(budget):
    with pytest.raises(ValueError, match=r"budget must be 0\.3907 to 1 here, got 0\.[23]"):
        DataPruner(N, EPOCHS, BudgetThreshold(), budget=budget)
    least = _least_of(budget)
    assert passes_of(least) == round(least * N * EPOCHS)


def _least_of(budget):
    try:
        DataPruner(N, EPOCHS, BudgetThreshold(), budget=budget)
    except ValueError as error:
        return float(str(error).split("budget must be ")[1].split()[0])


def passes_of(budget):
    pruner = DataPruner(N, EPOCHS, BudgetThreshold(), budget=budget)
    train(pruner)
    return passes(pruner)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: InfoBatch(N, 10, budget=0), ValueError, "budget must be"),
        (lambda: InfoBatch(N, 10, budget=1.2), ValueError, "budget must be in"),
        (lambda: InfoBatch(N, 10, budget=60), ValueError, "not a percentage"),
        (lambda: InfoBatch(N, 10, 0.3, budget=0.7), ValueError, "give one of the two"),
        (lambda: InfoBatch(N, 10, budget="0.6"), TypeError, "budget must be a number"),
        (lambda: InfoBatch(N, 10, budget=0.9, delta=0.0), ValueError, "budget must be 1 to 1"),
        (
            lambda: DataPruner(N, 10, MeanThreshold(), budget=0.7),
            TypeError,
            "budget= needs a policy that can be told",
        ),
        (lambda: DataPruner(N, 10, BudgetThreshold()), TypeError, "pass budget="),
        (lambda: InfoBatch(N, 10, ratio_schedule="rising"), ValueError, "pass budget="),
        (
            lambda: InfoBatch(N, 10, budget=0.7, ratio_schedule="up"),
            ValueError,
            "ratio_schedule must be",
        ),
        (
            lambda: InfoBatch(N, 10, budget=0.7, ratio_schedule=lambda u: -1.0),
            ValueError,
            "non-negative",
        ),
        (lambda: InfoBatch(N, 10, groups=np.zeros(5, int)), ValueError, "groups must be"),
        (lambda: InfoBatch(N, 10, groups=np.zeros(N)), ValueError, "one integer per sample"),
        (
            lambda: InfoBatch(N, 10, budget=0.7, ratio_schedule=["rising"]),
            ValueError,
            "ratio_schedule must be",
        ),
        (
            lambda: InfoBatch(N, 10, budget=0.7, ratio_schedule=lambda _: None),
            ValueError,
            "ratio_schedule must be .* it gave",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_total_steps_without_a_budget():
    assert DataPruner(N, 10, FullData()).total_steps(32) == 10 * 10
    assert InfoBatch(N, 10, delta=0.0).total_steps(32) == 100
    with pytest.raises(ValueError, match=r"pass budget="):
        InfoBatch(N, 10).total_steps(32)
    with pytest.raises(ValueError, match="your own sampler="):
        InfoBatch(N, 10, sampler=range(N)).total_steps(32)


def test_a_sampler_of_ones_own_may_order_the_samples_under_a_budget():
    pruner = InfoBatch(N, EPOCHS, budget=0.6, sampler=range(N - 1, -1, -1))
    known = pruner.total_steps(32)
    assert train(pruner) == known
    assert is_met(pruner, 0.6, 32)


@pytest.mark.parametrize(
    "sampler",
    [WeightedRandomSampler([1.0] * N, N), SubsetRandomSampler(range(100))],
    ids=["repeats", "leaves out"],
)
@pytest.mark.parametrize("budget", [0.6, 1.0])
def test_a_sampler_that_repeats_or_leaves_out_is_refused_before_the_first_step(sampler, budget):
    pruner = InfoBatch(N, EPOCHS, budget=budget, sampler=sampler)
    with pytest.raises(SamplerError, match="each of the 300 samples once"):
        _ = pruner.plan


# ------------------------------------------------------------------ state


def test_a_shallow_copy_is_a_pruner_of_its_own():
    pruner = InfoBatch(N, EPOCHS, budget=0.6)
    batches = train_and_stop(pruner, 47)
    state, twin = repr(pruner.state_dict()), copy.copy(pruner)
    assert repr(twin.state_dict()) == state
    train(twin)
    assert repr(pruner.state_dict()) == state
    assert twin.epoch == EPOCHS
    del batches


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": 0.7},
        {"budget": None},
        {"ratio_schedule": "rising"},
        {"groups": np.arange(N) % 2},
        {"groups": None},
    ],
    ids=repr,
)
def test_a_state_of_another_budget_or_other_groups_is_refused(changes):
    given = {"budget": 0.6, "groups": np.arange(N) % 3}
    state = InfoBatch(N, EPOCHS, **given).state_dict()
    other = InfoBatch(N, EPOCHS, **{**given, **changes})
    with pytest.raises(StateError, match="policy"):
        other.load_state_dict(state)


def test_the_policy_within_groups_is_part_of_the_state():
    state = DataPruner(N, 5, WithinGroups(MeanThreshold(0.5), np.arange(N) % 3)).state_dict()
    other = DataPruner(N, 5, WithinGroups(MeanThreshold(0.4), np.arange(N) % 3))
    with pytest.raises(StateError, match="policy"):
        other.load_state_dict(state)


def test_a_memory_is_saved_and_a_damaged_one_refused():
    policy = UCB(every=2)
    pruner = DataPruner(N, 6, policy)
    batches = train_and_stop(pruner, 25)
    state = pruner.state_dict()
    fresh = DataPruner(N, 6, policy)
    fresh.load_state_dict(copy.deepcopy(state))
    assert torch.equal(fresh.plan.indices, pruner.plan.indices)
    for damage in (
        lambda memory: memory.pop("mean"),
        lambda memory: memory.update(mean=memory["mean"][:-1]),
        lambda memory: memory.update(mean=memory["mean"].double()),
        lambda memory: memory["mean"].add_(1.0),
    ):
        damaged = copy.deepcopy(state)
        damage(damaged["memory"])
        with pytest.raises(StateError):
            fresh.load_state_dict(damaged)
    del batches


# ------------------------------------------------------------------ several ranks


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_meet_a_budget(world_size, sharded):
    def target(group):
        pruner = InfoBatch(N, EPOCHS, budget=0.61, process_group=group, sharded=sharded)
        known = pruner.total_steps(9)
        steps = train(pruner, batch_size=9)
        return known, steps, pruner

    for known, steps, pruner in in_threads(world_size, target):
        assert steps == known
        assert is_met(pruner, 0.61, 9 * world_size)


def test_ranks_with_different_budgets_find_out():
    def target(group):
        pruner = InfoBatch(N, EPOCHS, budget=0.6 + 0.1 * group.rank, process_group=group)
        with pytest.raises(RuntimeError, match="another policy"):
            train(pruner)

    in_threads(2, target)


def test_ranks_remember_alike():
    def target(group):
        pruner = DataPruner(N, 6, UCB(every=1), budget=0.6, process_group=group, delta=1.0)
        train(pruner, batch_size=16)
        return pruner

    alone = DataPruner(N, 6, UCB(every=1), budget=0.6, delta=1.0)
    train(alone, batch_size=32)
    for pruner in in_threads(2, target):
        assert torch.equal(pruner.scores, alone.scores)
        for name, values in alone.state_dict()["memory"].items():
            assert torch.equal(values, pruner.state_dict()["memory"][name]), name


def _nan_warnings(kind):
    if kind != "nan":
        return pytest.MonkeyPatch.context()
    return pytest.warns(UserWarning, match="NaN or infinite")
