"""`sharded=True`: every rank keeps the scores of its own samples, and prunes among those."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.distributed.support import in_threads, results_of
from torch.utils.data import DataLoader

from infobatch import DataPruner, InfoBatch
from infobatch._core.histogram import histogram, histogram_quantiles
from infobatch._core.scores import finite_quantiles
from infobatch.errors import DistributedError, PolicyError, StateError
from infobatch.policies import (
    PAPER_QUANTILES,
    BudgetThreshold,
    FullData,
    Policy,
    ProportionalSampling,
    RePB,
    Selection,
)

EPOCHS = 4
POLICY = ProportionalSampling(tolerance=0.03)


def difficulty(ids):
    """A loss for each sample, skewed as losses are."""
    return ((ids * 7919 % 1009).double() / 1009) ** 3 + 0.01


def train(pruner, batch=16, *, epochs=EPOCHS, stop=None, save=None):
    """Train, perhaps until (epoch, step) and within it append the state to `save`."""
    loader = DataLoader(torch.arange(pruner.num_samples), batch, sampler=pruner.sampler)
    seen = []
    for _ in range(epochs):
        drawn = []
        for step, ids in enumerate(loader):
            weighted = pruner.update(difficulty(ids), reduction="none")
            drawn.append((ids.tolist(), (weighted / difficulty(ids)).tolist()))
            if stop == (pruner.epoch, step):
                save.append(pruner.state_dict())
                return [*seen, drawn]
        seen.append(drawn)
    return seen


def test_a_rank_keeps_the_scores_of_its_own_samples_and_trains_on_no_others():
    def of_rank(group):
        pruner = InfoBatch(1003, EPOCHS, sharded=True, process_group=group)
        seen = train(pruner)
        own = torch.arange(group.rank, 1003, 4)
        assert torch.equal(pruner.scores, difficulty(own).float())
        ids = {i for epoch in seen for step_ids, _ in epoch for i in step_ids}
        assert ids == set(own.tolist())
        assert set(pruner.history[1:3][0].__dict__) == set(pruner.history[0].__dict__)
        return pruner.history

    histories = in_threads(4, of_rank)
    assert len({repr(history) for history in histories}) == 1
    for record in histories[0]:
        assert record.total == record.trained + (record.total - record.kept) == 1003
        assert record.mean_weight * record.kept == pytest.approx(1003)


@pytest.mark.parametrize("world_size", [2, 5])
def test_what_hardly_matters_is_found_over_all_ranks(world_size):
    """As in one process, up to whole batches; ranks need not have the same share of it."""

    def of_rank(group):
        pruner = DataPruner(3000, EPOCHS, POLICY, sharded=True, process_group=group)
        train(pruner, 8)
        return pruner.history

    alone = DataPruner(3000, EPOCHS, POLICY)
    train(alone, 8 * world_size)
    histories = in_threads(world_size, of_rank)
    alike = [[replace(r, threshold=0.0) for r in history] for history in histories]
    assert len({repr(history) for history in alike}) == 1  # each has a threshold of its own
    for ours, whole in zip(histories[0], alone.history, strict=True):
        assert abs(ours.kept - whole.kept) <= 8 * world_size
        assert ours.mass_left_out == pytest.approx(whole.mass_left_out, abs=0.005)
        assert ours.headroom == pytest.approx(whole.headroom, abs=1e-6)
    assert histories[0][2].kept < 0.8 * 3000


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_the_threshold_is_the_mean_over_all_ranks(world_size):
    def of_rank(group):
        pruner = InfoBatch(1000, EPOCHS, sharded=True, process_group=group)
        train(pruner)
        return pruner.history

    mean = float(difficulty(torch.arange(1000)).float().double().mean())
    for history in in_threads(world_size, of_rank):
        assert [record.threshold for record in history[1:3]] == pytest.approx([mean, mean])


def test_quantiles_come_from_a_histogram_with_the_stated_error():
    def of_rank(group):
        pruner = InfoBatch(
            *(3000, EPOCHS),
            sharded=True,
            process_group=group,
            quantiles=PAPER_QUANTILES,
            batch_size=1,
        )
        train(pruner)
        return pruner.history

    exact = float(np.quantile(difficulty(torch.arange(3000)).numpy(), 0.85))
    for history in in_threads(3, of_rank):
        assert history[1].threshold == pytest.approx(exact, rel=2**-7)
        assert history[1].kept == pytest.approx(0.525 * 3000, rel=0.02)


@pytest.mark.parametrize(
    "scores",
    [
        np.random.default_rng(0).lognormal(0, 2, 10_000),
        np.random.default_rng(1).normal(0, 1, 10_000),
        np.random.default_rng(2).exponential(1e-30, 1000),
        -np.random.default_rng(3).exponential(1e30, 1000),
        np.full(100, 0.3),
        np.array([3.4e38, 3.0e38, -3.4e38]),
        np.array([0.0, -0.0, 1e-45]),
        np.array([1.0, np.nan, np.inf, -np.inf, 2.0]),
    ],
    ids=["lognormal", "normal", "tiny", "huge", "equal", "extreme", "zeros", "not finite"],
)
def test_histogram_quantiles_are_within_one_bin_of_the_exact_ones(scores):
    scores = scores.astype(np.float32)
    fractions = [0.0, 0.2, 0.5, 0.85, 1.0]
    parts = [histogram(part) for part in np.array_split(scores, 3)]
    found = histogram_quantiles(np.sum(parts, axis=0), fractions)
    assert found == histogram_quantiles(histogram(scores), fractions)
    finite = np.sort(scores[np.isfinite(scores)])
    for fraction, value in zip(fractions, found, strict=True):
        # an exact quantile lies between two order statistics; the bin is that of one of them
        place = fraction * (len(finite) - 1)
        lower, upper = float(finite[int(np.floor(place))]), float(finite[int(np.ceil(place))])
        tolerance = 2**-7 * max(abs(lower), abs(upper)) + 2e-40
        assert lower - tolerance <= value <= upper + tolerance
    exact = finite_quantiles(scores, fractions)
    if len(scores) == 10_000:
        np.testing.assert_allclose(found[1:4], exact[1:4], rtol=0.02, atol=2e-3)
    assert all(np.isnan(histogram_quantiles(np.zeros(1 << 16), [0.5])))


def test_sharded_pruning_is_unbiased():
    """The mean weight of each sample over many seeds is 1, to within its sampling error."""
    num_samples, runs, world_size = 60, 400, 3
    total = np.zeros(num_samples)
    below = difficulty(torch.arange(num_samples)).float()
    below = (below < below.double().mean()).numpy()

    def of_rank(group):
        sums = np.zeros(num_samples)
        for seed in range(runs):
            pruner = InfoBatch(
                num_samples, 2, 0.5, delta=1.0, seed=seed, sharded=True, process_group=group
            )
            for ids, weights in train(pruner, 7, epochs=2)[1]:
                np.add.at(sums, ids, weights)
        return sums

    for sums in in_threads(world_size, of_rank):
        total += sums
    mean = total / runs
    assert np.allclose(mean[~below], 1.0)
    # A kept one weighs about 2 and is kept half of the time: standard deviation 1 / sqrt(runs).
    assert np.abs(mean[below] - 1.0).max() < 4.5 / np.sqrt(runs)
    assert abs(mean[below].mean() - 1.0) < 1e-9  # exact in total


def test_ranks_draw_independently_of_each_other():
    def of_rank(group):
        pruner = InfoBatch(4000, 2, delta=1.0, sharded=True, process_group=group)
        seen = train(pruner, epochs=2)
        return [[i // 2 for ids, _ in epoch for i in ids] for epoch in seen]

    (order, kept), (other_order, other_kept) = in_threads(2, of_rank)
    assert order != other_order
    both, mine = set(kept) & set(other_kept), set(kept)
    assert len(both) < 0.95 * len(mine)


def test_memory_of_a_rank_is_that_of_its_own_samples():
    def of_rank(group):
        pruner = InfoBatch(80_000, 2, sharded=True, process_group=group)
        state = pruner.state_dict()
        return len(pruner.scores), len(pruner.plan), state["scores"].numel(), state["level"].numel()

    assert in_threads(8, of_rank) == [(10_000,) * 4] * 8


def alone_in_the_end(rank):
    pruner = InfoBatch(103, EPOCHS, sharded=True)
    early = pruner.scores.shape, len(pruner.plan)
    train(pruner, epochs=2)
    expected = pruner.scores
    dist.destroy_process_group()
    assert torch.equal(pruner.scores, expected)
    pruner.state_dict()
    with pytest.raises(DistributedError, match="initialise the process group before training"):
        train(pruner, epochs=1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return early


def test_scores_can_be_read_after_the_group_has_gone_but_training_cannot_go_on():
    assert results_of(2, alone_in_the_end) == [((52,), 52), ((51,), 51)]


def one_rank(rank):
    pruner = InfoBatch(1003, EPOCHS, sharded=True)
    seen = train(pruner)
    return seen, pruner.history, pruner.scores


def test_real_processes_do_what_threads_do():
    def of_thread(group):
        pruner = InfoBatch(1003, EPOCHS, sharded=True, process_group=group)
        return train(pruner), pruner.history, pruner.scores

    for real, thread in zip(results_of(3, one_rank), in_threads(3, of_thread), strict=True):
        assert real[0] == thread[0]
        assert repr(real[1]) == repr(thread[1])
        assert torch.equal(real[2], thread[2])


@pytest.mark.parametrize("stop", [(0, 3), (1, 0), (1, 4), None])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("quantiles", [None, PAPER_QUANTILES])
def test_a_rank_goes_on_from_its_own_state_bit_for_bit(stop, world_size, quantiles):
    def make(group):
        return InfoBatch(603, EPOCHS, sharded=True, process_group=group, quantiles=quantiles)

    def of_rank(group):
        whole = make(group)
        expected = [step for epoch in train(whole) for step in epoch]
        pruner = make(group)
        states = []
        done = [step for epoch in train(pruner, stop=stop, epochs=2, save=states) for step in epoch]
        resumed = make(group)
        resumed.load_state_dict(states[0] if states else pruner.state_dict())
        assert resumed.is_within_epoch == (stop is not None)
        rest = train(resumed, epochs=EPOCHS - resumed.epoch)
        assert done + [step for epoch in rest for step in epoch] == expected
        assert repr(resumed.history) == repr(whole.history)
        assert torch.equal(resumed.scores, whole.scores)

    in_threads(world_size, of_rank)


@pytest.mark.parametrize(("saved", "loaded"), [(4, 2), (2, 5), (3, 1), (1, 3)])
@pytest.mark.parametrize("stop", [(1, 4), (2, 0), None], ids=["within", "at a start", "between"])
def test_the_states_of_all_ranks_load_into_another_number_of_ranks(saved, loaded, stop):
    num_samples = 701

    def make(group):
        return InfoBatch(num_samples, EPOCHS, sharded=True, process_group=group)

    def save(group):
        pruner = make(group)
        states = []
        seen = train(pruner, 8, stop=stop, epochs=2 if stop is None else EPOCHS, save=states)
        if stop is None:
            return pruner.state_dict(), pruner.plan.indices.tolist(), []
        return states[0], pruner.plan.indices.tolist(), seen[-1]

    before = in_threads(saved, save)
    states = [state for state, _, _ in before]

    def load(group):
        pruner = make(group)
        pruner.load_state_dict(state for state in reversed(states))
        epoch = pruner.epoch
        state = pruner.state_dict()
        again = make(group)
        again.load_state_dict(state)
        seen = train(again, 8, epochs=EPOCHS - epoch)
        return seen, again.history, again.scores

    after = in_threads(loaded, load)
    planned = [i for _, kept, _ in before for i in kept]
    counted = [
        i
        for steps in [*(last for _, _, last in before), *(seen[0] for seen, _, _ in after)]
        for ids, weights in steps
        for i, weight in zip(ids, weights, strict=True)
        if weight > 0
    ]
    if stop is not None:
        assert sorted(counted) == sorted(planned)  # none lost, none repeated
        steps = [*(last for _, _, last in before), *(seen[0] for seen, _, _ in after)]
        weight = sum(sum(weights) for part in steps for _, weights in part)
        assert weight == pytest.approx(num_samples)
    for _, history, _ in after:
        assert repr(history) == repr(after[0][1])
        assert [record.total for record in history] == [num_samples] * EPOCHS
        assert [record.trained for record in history] == [record.kept for record in history]
    for rank, (_, _, scores) in enumerate(after):
        own = torch.arange(rank, num_samples, loaded)
        assert torch.equal(scores, difficulty(own).float())


@pytest.mark.parametrize("policy", [BudgetThreshold(), RePB()], ids=["", "with memory"])
def test_a_budget_goes_on_with_another_number_of_ranks(policy):
    """Each rank has had thresholds of its own, as it selects among its own samples."""
    num_samples, epochs = 701, 8

    def make(group):
        return DataPruner(
            num_samples, epochs, policy, budget=0.7, sharded=True, process_group=group
        )

    def save(group):
        pruner = make(group)
        train(pruner, 8, epochs=3)
        return pruner.state_dict(), pruner.history[-1].threshold

    before = in_threads(3, save)
    if not policy.columns:
        assert len({threshold for _, threshold in before if np.isfinite(threshold)}) > 1

    def load(group):
        pruner = make(group)
        pruner.load_state_dict(state for state, _ in before)
        memory = pruner.state_dict()["memory"]
        train(pruner, 8, epochs=epochs - 3)
        return memory, pruner.history

    after = in_threads(2, load)
    for _, history in after:
        cost = sum(record.kept for record in history)
        assert abs(cost - 0.7 * num_samples * epochs) <= 2 * 8 / 2  # half a batch of two ranks
    for name in after[0][0]:
        of_sample = np.full((2, num_samples), -1.0)
        for ranks, states in enumerate([[s["memory"] for s, _ in before], [m for m, _ in after]]):
            for rank, memory in enumerate(states):
                of_sample[ranks, rank :: len(states)] = memory[name]
        np.testing.assert_array_equal(*of_sample)
        assert len(np.unique(of_sample)) > 1


@pytest.mark.parametrize(
    ("num_samples", "budget", "quantiles"), [(4, 0.4, None), (8, 0.6, PAPER_QUANTILES)]
)
def test_a_budget_too_small_for_one_rank_is_refused_on_all(num_samples, budget, quantiles):
    def run(group):
        pruner = InfoBatch(
            *(num_samples, 10),
            budget=budget,
            quantiles=quantiles,
            sharded=True,
            process_group=group,
        )
        with pytest.raises(PolicyError, match="use a larger budget") as error:
            train(pruner, 2, epochs=10)
        return str(error.value)

    assert len(set(in_threads(2, run))) == 1


@pytest.mark.parametrize("policy", [ProportionalSampling(), BudgetThreshold()])
def test_a_budget_may_leave_out_samples_of_one_rank_and_none_of_another(policy):
    def run(group):
        settings = {"sharded": True, "process_group": group}
        pruner = DataPruner(5, 10, policy, budget=0.94, **settings)
        sizes = []
        for _ in range(10):
            train(pruner, 1, epochs=1)
            sizes.append(len(pruner.plan))
        return sizes, sum(record.kept for record in pruner.history)

    (first, kept), (second, _) = in_threads(2, run)
    assert kept == 47
    assert set(first) == {2, 3}
    assert set(second) == {2}


class AboveOne(Policy):
    """Leaves out what is below 1, and says `full` where there is nothing."""

    def summarise(self, scores):
        return np.empty(0)

    def select(self, request):
        kept = ~(request.scores < 1.0)
        return Selection.full(len(request)) if kept.all() else Selection(kept.astype(float))


def test_a_policy_may_leave_out_samples_of_one_rank_and_none_of_another():
    def run(group):
        pruner = DataPruner(20, 4, AboveOne(), delta=1.0, sharded=True, process_group=group)
        for _ in range(4):
            for ids in DataLoader(torch.arange(20), 4, sampler=pruner.sampler):
                pruner.update((ids % 2).float() + (ids < 6))
        return [(record.kept, record.trained) for record in pruner.history]

    assert in_threads(2, run) == [[(20, 20), (13, 13), (13, 13), (13, 13)]] * 2


def test_states_that_are_not_one_of_each_rank_are_refused():
    def save(group):
        pruner = InfoBatch(100, EPOCHS, sharded=True, process_group=group)
        train(pruner, epochs=1 + group.rank // 2)
        return pruner.state_dict()

    states = in_threads(2, save)
    pruner = InfoBatch(100, EPOCHS, sharded=True)
    before = pruner.state_dict()
    for given, reason in [
        (states[0], "rank 0 of 2, this is rank 0 of 1; pass the states of all ranks"),
        (states[:1], r"\[1\] is missing"),
        ([states[0], states[0]], "rank 0 twice"),
        ([], "all is missing"),
        ([states[0], 7], "a state is a dict"),
    ]:
        with pytest.raises(StateError, match=reason):
            pruner.load_state_dict(given)
        assert repr(pruner.state_dict()) == repr(before)
    pruner.load_state_dict(states)


HEADER, TALLY, COUNTS = 160, 112, 8


@pytest.mark.parametrize(
    ("settings", "calls", "sent"),
    [
        ({}, 6, 3 * HEADER + TALLY + 16 + COUNTS),
        ({"quantiles": PAPER_QUANTILES}, 6, 3 * HEADER + TALLY + 2**19 + COUNTS),
        ({"budget": 0.7}, 2, HEADER + TALLY),
    ],
    ids=["mean", "quantiles", "budget"],
)
def test_what_a_rank_sends_at_the_end_of_an_epoch_is_what_the_docs_say(settings, calls, sent):
    def of_rank(group):
        pruner = InfoBatch(1000, 5, delta=0.8, sharded=True, process_group=group, **settings)
        noted = []
        for _ in range(5):
            before = group.calls, group.bytes_sent
            train(pruner, epochs=1)
            noted.append((group.calls - before[0], group.bytes_sent - before[1]))
        return noted

    for noted in in_threads(3, of_rank):
        first, full_data_next = (calls + 1, sent + HEADER), (2, HEADER + TALLY)
        assert noted == [first, (calls, sent), (calls, sent), full_data_next, full_data_next]


class OnlySelect(Policy):
    def select(self, request):
        return Selection.full(len(request))


def test_what_cannot_be_sharded_is_refused():
    with pytest.raises(TypeError, match="a policy with summarise"):
        DataPruner(10, 2, OnlySelect(), sharded=True)
    with pytest.raises(TypeError, match="cannot keep groups"):
        InfoBatch(10, 4, budget=0.8, groups=np.arange(10) % 2, sharded=True)
    with pytest.raises(ValueError, match=r"sampler= cannot be used; use\s+sharded=False"):
        InfoBatch(10, 2, sampler=range(10), sharded=True)
    with pytest.raises(ValueError, match="stream_filter needs the plan of the whole data set"):
        InfoBatch(10, 2, sharded=True).stream_filter()

    def too_few(group):
        with pytest.raises(DistributedError, match="at least one sample for each rank"):
            len(InfoBatch(2, 2, sharded=True, process_group=group).sampler)

    in_threads(3, too_few)


def test_full_data_can_be_sharded():
    def of_rank(group):
        pruner = DataPruner(50, 3, FullData(), sharded=True, process_group=group)
        train(pruner, epochs=3)
        return pruner.saved_fraction

    assert in_threads(3, of_rank) == [0.0] * 3
