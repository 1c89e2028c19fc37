"""Ranks that disagree all raise the same clear error, soon, where a plain run would hang."""

import os
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.distributed.support import launch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from infobatch import DataPruner, InfoBatch
from infobatch.errors import DistributedError, InfoBatchError, StateError
from infobatch.policies import Policy, RandomSubset, Selection

N, BATCH, EPOCHS = 64, 8, 4


def train(pruner, *, stop=lambda epoch, step: False, model=None, epochs=EPOCHS):
    loader = DataLoader(range(pruner.num_samples), BATCH, sampler=pruner.sampler)
    for epoch in range(epochs):
        for step, ids in enumerate(loader):
            if stop(epoch, step):
                break
            inputs = ids.float()[:, None]
            losses = inputs.square()[:, 0] if model is None else model(inputs).square()[:, 0]
            loss = pruner.update(losses)
            if model is not None:
                loss.backward()
    return pruner.history


def is_odd(rank):
    return rank == 1


DIFFERENT = {
    "seed": lambda odd: InfoBatch(N, EPOCHS, seed=5 + odd),
    "num_samples": lambda odd: InfoBatch(N + 16 * odd, EPOCHS),
    "num_epochs": lambda odd: InfoBatch(N, EPOCHS + odd),
    "policy": lambda odd: DataPruner(N, EPOCHS, RandomSubset()) if odd else InfoBatch(N, EPOCHS),
    "delta": lambda odd: InfoBatch(N, EPOCHS, delta=0.5 + 0.1 * odd),
    "sharded": lambda odd: InfoBatch(N, EPOCHS, sharded=odd),
}


def train_different(rank, name):
    train(DIFFERENT[name](is_odd(rank)))


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_rank_with_another_setting_is_an_error_on_every_rank(name):
    began = time.monotonic()
    outcomes = launch(3, train_different, name)
    assert time.monotonic() - began < 25  # the group's timeout is 30
    for kind, error in outcomes:
        assert kind == "error"
        assert isinstance(error, DistributedError)
        assert f"[1] have another {name} than rank 0" in str(error)
        assert "the same arguments on every rank" in str(error)


def train_with_own_samplers(rank):
    sampler = DistributedSampler(range(N), shuffle=True)
    train(InfoBatch(N, EPOCHS, sampler=sampler))


def train_from_different_states(rank):
    pruner = InfoBatch(N, EPOCHS)
    train(pruner, epochs=2)
    state = pruner.state_dict()
    if is_odd(rank):
        state = InfoBatch(N, EPOCHS).state_dict()
    resumed = InfoBatch(N, EPOCHS)
    resumed.load_state_dict(state)
    train(resumed)


def leave_early(rank):
    """With a batch in hand, which is then one that it has left out."""
    pruner = InfoBatch(4 * N, EPOCHS)
    train(pruner, stop=lambda epoch, step: is_odd(rank) and (epoch, step) == (1, 1))


def leave_early_together(rank):
    return train(InfoBatch(N, EPOCHS), stop=lambda epoch, step: step == 2)


def test_all_ranks_may_leave_an_epoch_early_together():
    outcomes = launch(2, leave_early_together)
    for kind, history in outcomes:
        assert kind == "ok"
        assert [record.trained for record in history] == [2 * 2 * BATCH] * (EPOCHS - 1)


def leave_early_under_ddp(rank):
    model = DistributedDataParallel(torch.nn.Linear(1, 1))
    began = time.monotonic()
    try:
        train(
            InfoBatch(4 * N, EPOCHS),
            model=model,
            stop=lambda epoch, step: is_odd(rank) and (epoch, step) == (1, 1),
        )
    except DistributedError as error:
        return str(error), time.monotonic() - began
    except RuntimeError as error:  # the other ranks wait for its gradients, which is DDP's own
        return f"DDP: {error}", time.monotonic() - began
    return None


def test_under_ddp_a_rank_that_leaves_early_is_told_within_the_timeout():
    outcomes = launch(2, leave_early_under_ddp, timeout=4.0)
    (kind, (message, seconds)) = outcomes[1]
    assert kind == "ok"
    assert "the others" in message
    assert "leaves an epoch early (break)" in message
    assert "the end of an epoch (epoch 1, position 16)" in message
    assert 2.0 < seconds < 20.0


def die(rank):
    def stop(epoch, step):
        if is_odd(rank) and epoch == 1:
            os._exit(9)
        return False

    train(InfoBatch(N, EPOCHS), stop=stop)


def test_a_rank_that_dies_is_an_error_on_the_others_and_not_a_hang():
    outcomes = launch(2, die, timeout=4.0)
    assert outcomes[1] == ("died", 9)
    kind, error = outcomes[0]
    assert kind == "error"
    assert isinstance(error, DistributedError)
    assert "dies leaves the others waiting" in str(error)


def save_within_an_epoch(rank):
    pruner = InfoBatch(N, EPOCHS)
    loader = DataLoader(range(N), BATCH, sampler=pruner.sampler)
    for step, ids in enumerate(loader):
        pruner.update(ids.float())
        if step == 1:
            break
    with pytest.raises(StateError, match=r"pruner.synchronize\(\) on every rank"):
        pruner.state_dict()
    before = pruner.scores
    pruner.synchronize()
    pruner.synchronize()  # once more does no harm
    assert torch.isnan(before).all()
    return pruner.state_dict() if rank == 0 else None, pruner.scores


def test_within_an_epoch_the_state_wants_the_losses_of_all_ranks():
    (state, scores), (_, others) = (value for _, value in launch(2, save_within_an_epoch))
    assert torch.equal(scores.nan_to_num(-1), others.nan_to_num(-1))
    assert int((~scores.isnan()).sum()) == 4 * BATCH
    assert state["position"] == 4 * BATCH


def synchronize_alone(rank):
    pruner = InfoBatch(N, EPOCHS)
    loader = DataLoader(range(N), BATCH, sampler=pruner.sampler)
    for step, ids in enumerate(loader):
        pruner.update(ids.float())
        if is_odd(rank) and step == 1:
            pruner.synchronize()
    next(iter(loader))


def peek_on_one_rank(rank):
    pruner = InfoBatch(N, EPOCHS)
    loader = DataLoader(range(N), BATCH, sampler=pruner.sampler)
    for _ in range(EPOCHS):
        if rank == 0:
            next(iter(loader))
            len(loader), pruner.plan, pruner.scores, pruner.state_dict()
        for ids in loader:
            pruner.update(ids.float())
        if rank == 0:
            len(loader), pruner.plan, pruner.scores, pruner.state_dict()
    return pruner.history


class SummaryOfAnySize(Policy):
    """Sends one number for each sample with a high loss, and so another number on each rank."""

    def summarise(self, scores):
        return scores[scores > 50].astype(np.float64)

    def select(self, request):
        return Selection.full(len(request))


def train_with_summaries_of_any_size(rank):
    train(DataPruner(N - 1, EPOCHS, SummaryOfAnySize(), sharded=True))


def resume_on_one_rank_alone(rank):
    pruner = InfoBatch(N, EPOCHS, warmup_epochs=0, sharded=True)
    train(pruner, epochs=1, stop=lambda epoch, step: step == 2)
    resumed = InfoBatch(N, EPOCHS, warmup_epochs=0, sharded=True)
    if is_odd(rank):
        resumed.load_state_dict(pruner.state_dict())
    train(resumed)


MISTAKES = {  # and what every rank is told
    train_with_own_samplers: ["no DistributedSampler: the pruner shards it"],
    train_from_different_states: ["do not stand at the same place", "epoch 2", "epoch 0"],
    leave_early: [
        "different numbers of samples",
        "leaves an epoch early (break) must do so with all others",
    ],
    synchronize_alone: ["do not stand at the same place", "synchronize()"],
    train_with_summaries_of_any_size: [
        "planning of an epoch 1 rank 0 has ",
        "bytes to send and rank 1 ",  # before it is sent
        "Let summarise return equally many numbers on every rank",
    ],
    resume_on_one_rank_alone: [
        "rank 0 is at the planning of an epoch, epoch 0",
        "rank 1 is at the sharing out of an epoch, epoch 0",
        "load_state_dict alike",
    ],
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_ranks_that_part_company_are_all_told_how(mistake):
    for kind, error in launch(2, mistake):
        assert kind == "error"
        assert isinstance(error, InfoBatchError)
        for part in MISTAKES[mistake]:
            assert part in str(error)


def test_one_rank_may_look_at_everything_between_epochs():
    (_, history), (_, other) = launch(2, peek_on_one_rank)
    assert repr(history) == repr(other)
    assert len(history) == EPOCHS


def train_before_and_after_the_group(rank):
    dist.destroy_process_group()
    pruner = InfoBatch(N, EPOCHS)
    loader = DataLoader(range(N), BATCH, sampler=pruner.sampler)
    lengths = [len(loader)]
    for ids in loader:
        pruner.update(ids.float())
    return lengths, pruner.history


def test_without_a_group_a_process_is_alone():
    for _, (lengths, history) in launch(2, train_before_and_after_the_group):
        assert lengths == [N // BATCH]
        assert history[0].trained == N
