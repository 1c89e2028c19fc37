"""The shares of all ranks are the plan: every sample once, total weight N, equally many batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.distributed.support import in_threads
from torch.utils.data import DataLoader

from infobatch import DataPruner, InfoBatch
from infobatch.policies import MeanThreshold, RandomSubset

EPOCHS = 4


def run(make, num_samples, batch, drop_last=False, with_indices=False, epochs=EPOCHS):
    """Train in one process; per epoch what was drawn, with what weight, in which steps."""

    def of_rank(group):
        pruner = make(group)
        loader = DataLoader(
            torch.arange(num_samples), batch, sampler=pruner.sampler, drop_last=drop_last
        )
        seen = []
        for _ in range(epochs):
            length, steps = len(loader), []
            for ids in loader:
                difficulty = (ids % 7 + 1).double() / 7
                given = {"indices": ids} if with_indices else {}
                weighted = pruner.update(difficulty, reduction="none", **given)
                steps.append((ids.tolist(), (weighted / difficulty).tolist()))
            assert len(steps) == length
            seen.append(steps)
        return pruner, seen

    return of_rank


sizes = {
    "num_samples": st.integers(1, 70),
    "world_size": st.integers(1, 5),
    "batch": st.integers(1, 9),
    "prune_ratio": st.sampled_from([0.0, 0.3, 0.5, 0.9]),
}


@given(**sizes, sharded=st.booleans(), with_indices=st.booleans())
def test_every_planned_sample_is_trained_once_and_the_weights_sum_to_n(
    num_samples, world_size, batch, prune_ratio, sharded, with_indices
):
    if sharded:
        num_samples += world_size

    def make(group):
        return InfoBatch(
            num_samples, EPOCHS, prune_ratio, seed=1, process_group=group, sharded=sharded
        )

    ranks = in_threads(world_size, run(make, num_samples, batch, with_indices=with_indices))
    for epoch in range(EPOCHS):
        shares = [seen[epoch] for _, seen in ranks]
        assert len({len(steps) for steps in shares}) == 1
        ids = [i for steps in shares for batch_ids, _ in steps for i in batch_ids]
        weights = [w for steps in shares for _, step_weights in steps for w in step_weights]
        assert sum(weights) == pytest.approx(num_samples)
        counted = [i for i, weight in zip(ids, weights, strict=True) if weight > 0]
        assert len(set(counted)) == len(counted) == ranks[0][0].history[epoch].kept
        for step in zip(*shares, strict=True):
            assert len({len(batch_ids) for batch_ids, _ in step}) == 1
    for pruner, _ in ranks:
        assert repr(pruner.history) == repr(ranks[0][0].history)
        assert [record.trained for record in pruner.history] == [
            record.kept for record in pruner.history
        ]
        assert pruner.progress == 1.0


@given(**sizes)
def test_under_drop_last_every_rank_drops_alike(num_samples, world_size, batch, prune_ratio):
    def make(group):
        return InfoBatch(num_samples, EPOCHS, prune_ratio, seed=1, process_group=group)

    if num_samples * (1 - prune_ratio) < 2 * world_size * batch:
        num_samples += int(2 * world_size * batch / (1 - prune_ratio))
    ranks = in_threads(world_size, run(make, num_samples, batch, drop_last=True))
    lengths = [[len(steps) for steps in seen] for _, seen in ranks]
    assert all(length == lengths[0] for length in lengths)
    for pruner, _ in ranks:
        assert repr(pruner.history) == repr(ranks[0][0].history)
        assert len(pruner.history) == EPOCHS


@given(**sizes)
def test_scores_and_history_are_bitwise_those_of_one_process(
    num_samples, world_size, batch, prune_ratio
):
    def make(group):
        return InfoBatch(num_samples, EPOCHS, prune_ratio, seed=1, process_group=group)

    ranks = in_threads(world_size, run(make, num_samples, batch))
    ((alone, _),) = in_threads(1, run(make, num_samples, batch * world_size))
    for pruner, _ in ranks:
        assert torch.equal(pruner.scores, alone.scores)
        assert repr(pruner.history) == repr(alone.history)


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("num_samples", [3, 10, 37])
def test_a_step_is_the_mean_over_the_samples_that_count(world_size, num_samples):
    """The mean over ranks of what `update` returns is what one process returns."""

    def steps(make, batch):
        def of_rank(group):
            pruner = make(group)
            loader = DataLoader(torch.arange(num_samples), batch, sampler=pruner.sampler)
            return [
                [float(pruner.update((ids % 5 + 1).double())) for ids in loader]
                for _ in range(EPOCHS)
            ]

        return of_rank

    def make(group):
        return InfoBatch(num_samples, EPOCHS, seed=2, process_group=group)

    ranks = in_threads(world_size, steps(make, 2))
    (alone,) = in_threads(1, steps(make, 2 * world_size))
    for epoch in range(EPOCHS):
        means = np.mean([rank[epoch] for rank in ranks], axis=0)
        np.testing.assert_allclose(means, alone[epoch], rtol=1e-12)


@pytest.mark.parametrize("skipped_step", [0, 1, 3])
def test_scores_of_ones_own_and_skipped_batches_reach_all_ranks(skipped_step):
    def of_rank(group):
        pruner = InfoBatch(40, 2, process_group=group)
        loader = DataLoader(torch.arange(40), 5, sampler=pruner.sampler)
        for step, ids in enumerate(loader):
            if step == skipped_step and group.rank == 1:
                skipped = ids.tolist()
                pruner.skip(len(ids))
            else:
                pruner.update(torch.ones(len(ids)), scores=ids.float())
        return pruner.scores, skipped if group.rank == 1 else None, pruner.history

    (scores, _, history), (others, skipped, _) = in_threads(2, of_rank)
    expected = torch.arange(40.0)
    expected[skipped] = float("nan")
    torch.testing.assert_close(scores, expected, equal_nan=True)
    torch.testing.assert_close(others, expected, equal_nan=True)
    assert history[0].trained == 35
    assert history[0].mean_loss == 1.0


def test_a_nan_loss_on_one_rank_is_counted_on_all():
    def of_rank(group):
        pruner = InfoBatch(40, 3, process_group=group)
        loader = DataLoader(torch.arange(40), 5, sampler=pruner.sampler)
        for ids in loader:
            losses = ids.float()
            if group.rank == 1:
                losses[ids == ids[0]] = float("nan")
            pruner.update(losses)
        return pruner.history[0].non_finite, int(pruner.scores.isnan().sum())

    with pytest.warns(UserWarning, match="4 of 40 samples had a NaN"):
        assert in_threads(2, of_rank) == [(4, 4), (4, 4)]


@pytest.mark.parametrize("policy", [MeanThreshold(0.5), RandomSubset(0.5)])
def test_one_large_collective_an_epoch_and_one_small(policy):
    num_samples, world_size = 4000, 4

    def of_rank(group):
        pruner = DataPruner(num_samples, 3, policy, process_group=group)
        loader = DataLoader(torch.arange(num_samples), 10, sampler=pruner.sampler)
        sent = []
        for _ in range(3):
            before = group.calls, group.bytes_sent
            kept = len(pruner.plan)
            for ids in loader:
                pruner.update((ids % 9).float())
            share = -(-kept // world_size)
            sent.append((group.calls - before[0], group.bytes_sent - before[1] - 4 * share))
        return sent

    for sent in in_threads(world_size, of_rank):
        assert [calls for calls, _ in sent] == [3, 2, 2]  # and once that the ranks agree
        assert all(small < 500 for _, small in sent)
