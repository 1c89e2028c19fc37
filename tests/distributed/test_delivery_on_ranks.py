"""Losses belong to the batch that was delivered, on each of several real processes too."""

import io

import pytest
import torch
import torch.distributed as dist
from tests.distributed.support import in_threads, results_of
from tests.oracle import Ids
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.errors import StateError
from infobatch.schedule import ProgressScheduler

N, EPOCHS, BATCH = 150, 4, 8


def losses_of(ids, epoch):
    return ((ids * 7919 % 1000) / 1000 + 0.01 * epoch).float()


def train(rank, sharded, workers, left_out, on_all):
    """What the scores are and should be, the history, and the learning rate after each step."""
    pruner = InfoBatch(N, EPOCHS, seed=3, sharded=sharded)
    loader = DataLoader(Ids(N), BATCH, sampler=pruner.sampler, num_workers=workers)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    steps = EPOCHS * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    scheduler = ProgressScheduler(schedule, pruner)
    truth, when = torch.full((N,), torch.nan), torch.full((N,), -1)
    rates = []
    for epoch in range(EPOCHS):
        for number, ids in enumerate(loader):
            optimizer.step()
            if number in left_out and (on_all or rank == 0):
                rates.append(None)
                continue
            losses = losses_of(ids, epoch).requires_grad_()
            pruner.update(losses, reduction="sum").backward()
            scheduler.step()
            rates.append(scheduler.get_last_lr()[0])
            counted = losses.grad > 0  # padding weighs 0, and is not recorded
            truth[ids[counted]], when[ids[counted]] = losses.detach()[counted], epoch
        pruner.end_epoch()
    both = [None] * dist.get_world_size()
    dist.all_gather_object(both, (truth, when))
    truths, whens = (torch.stack(part) for part in zip(*both, strict=True))
    latest = truths.gather(0, whens.argmax(0)[None])[0]
    scores = pruner.scores
    mine = latest[rank :: dist.get_world_size()] if sharded else latest
    return scores, mine, repr(pruner.history), rates


LEFT_OUT = [(6, 7), (4, 9), (1, 2)]  # late ones, the last of some epochs, early ones


def train_all(rank, sharded, workers):
    """Every way of leaving batches out, in one process each: starting them is what takes time."""
    return {
        (left_out, on_all): train(rank, sharded, workers, left_out, on_all)
        for left_out in LEFT_OUT
        for on_all in (True, False)
    }


@pytest.mark.parametrize(
    ("sharded", "world_size", "workers"),
    [
        (False, 2, 0),
        pytest.param(False, 3, 2, marks=pytest.mark.slow),
        (True, 2, 2),
        pytest.param(True, 3, 0, marks=pytest.mark.slow),
    ],
    ids=["common", "common, workers", "sharded, workers", "sharded"],
)
def test_batches_left_out_are_seen_on_every_rank(sharded, world_size, workers):
    results = results_of(world_size, train_all, sharded, workers)
    for left_out, on_all in results[0]:
        of_ranks = [result[left_out, on_all] for result in results]
        assert len({history for _, _, history, _ in of_ranks}) == 1
        for scores, truth, _, _ in of_ranks:
            assert torch.equal(scores.nan_to_num(-1), truth.nan_to_num(-1))
        if on_all:
            rates = [rates for *_, rates in of_ranks]
            assert all(other == rates[0] for other in rates)  # after every step, on all ranks


def sharded_states(world_size, stop):
    """Each rank's state after so many batches of epoch 1."""

    def one(group):
        pruner = InfoBatch(40, 5, sharded=True, process_group=group)
        for epoch in range(2):
            loop = iter(DataLoader(Ids(40), 4, sampler=pruner.sampler))
            for number, ids in enumerate(loop):
                if (epoch, number) == (1, stop):
                    file = io.BytesIO()
                    torch.save(pruner.state_dict(), file)
                    file.seek(0)
                    return torch.load(file, weights_only=True)
                pruner.update(ids.float())
        raise AssertionError("the epoch has no such batch")

    return in_threads(world_size, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [((2, 1), (2, 0)), ((2, 1), (2, 2)), ((4, 0), (2, 0)), ((2, 0), (4, 0))],
    ids=["within and at a start", "two steps", "4 and 2 ranks", "2 and 4 ranks"],
)
def test_states_of_different_moments_are_refused_together(one, other):
    """As files lie on a disk after a job was killed between the writes of its ranks."""
    first, second = sharded_states(*one)[0], sharded_states(*other)[1]
    alone = InfoBatch(40, 5, sharded=True)
    with pytest.raises(StateError, match="different times or runs"):
        alone.load_state_dict([first, second])
    assert alone.scores.isnan().all()
    assert alone.epoch == 0


def load_and_count(rank):
    """len(loader) on one rank alone, after a state within an epoch was loaded."""

    def build():
        pruner = InfoBatch(200, 5, sharded=True)
        return pruner, DataLoader(Ids(200), 16, sampler=pruner.sampler)

    pruner, loader = build()
    for number, ids in enumerate(loop := iter(loader)):
        pruner.update(ids.float())
        if number == 2:
            state = pruner.state_dict()
            break
    del loop
    pruner, loader = build()
    pruner.load_state_dict(state)
    left = len(loader) if rank == 0 else None
    dist.barrier()
    return left


def test_len_on_one_rank_needs_no_other():
    assert results_of(2, load_and_count) == [-(-(100 - 48) // 16), None]


class Repeating:
    def __iter__(self):
        return iter([0, 0, 1, 2, 3])


@pytest.mark.parametrize("by_index", [False, True])
def test_a_sample_that_comes_again_counts_as_often_as_it_was_planned(by_index):
    def one(group):
        pruner = InfoBatch(4, 2, sampler=Repeating(), process_group=group)
        weights = {}
        for ids in DataLoader(Ids(4), 3, sampler=pruner.sampler):
            losses = (ids + 1.0).requires_grad_()
            given = {"indices": ids} if by_index else {}
            pruner.update(losses, reduction="sum", **given).backward()
            for index, weight in zip(ids.tolist(), losses.grad.tolist(), strict=True):
                weights.setdefault(index, []).append(weight)
        return pruner.history[0].trained, weights

    results = in_threads(2, one)
    assert [trained for trained, _ in results] == [5, 5]
    total = sum(sum(sum(given) for given in weights.values()) for _, weights in results)
    assert total == 5  # and one that is padding, with weight 0
