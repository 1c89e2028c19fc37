"""A run that was saved by W ranks goes on with another number of ranks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.distributed.support import in_threads, results_of
from tests.distributed.test_equivalence import Points, model_of
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.policies import PAPER_QUANTILES

N, EPOCHS, GLOBAL_BATCH = 70, 6, 12


def train(pruner, batch, model, optimizer, stop=None):
    """Train to the end, or to a step (epoch, step) and stay within its epoch.

    Returns:
        the samples of each step, and the iterator of the loop that was not left, if any.
    """
    loader = DataLoader(Points(N), batch, sampler=pruner.sampler)
    steps = []
    for epoch in range(pruner.epoch, EPOCHS):
        batches = iter(loader)
        for step, (inputs, labels, indices) in enumerate(batches):
            if (epoch, step) == stop:
                return steps, batches
            losses = F.cross_entropy(model(inputs.double()), labels, reduction="none")
            loss = pruner.update(losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(indices.tolist())
    return steps, None


def stage(world_size, state, stop, wrap):
    """One stage of a run, in one process: from a checkpoint, or from the start, to a step."""
    state = copy.deepcopy(state)  # tensors that are sent to processes are in memory that they share
    pruner, model = InfoBatch(N, EPOCHS, seed=4), model_of()
    if state is not None:
        pruner.load_state_dict(state["pruner"])
        model.load_state_dict(state["model"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
    steps, batches = train(pruner, GLOBAL_BATCH // world_size, wrap(model), optimizer, stop)
    pruner.synchronize()
    state = pruner.state_dict()
    del batches
    return {
        "pruner": state,
        "model": copy.deepcopy(model.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "steps": steps,
        "history": pruner.history,
        "scores": pruner.scores,
    }


def one_rank(rank, world_size, state, stop):
    return stage(world_size, state, stop, DistributedDataParallel)


@pytest.mark.parametrize(
    ("sizes", "stop"),
    [
        ((2, 3, 1), (0, 2)),
        ((4, 1, 2), (2, 0)),
        pytest.param((3, 2, 4), (3, 2), marks=pytest.mark.slow),
    ],
)
def test_a_run_moves_between_numbers_of_ranks_and_trains_as_one_process(sizes, stop):
    expected = stage(1, None, None, lambda model: model)
    first, second, third = sizes
    saved = results_of(first, one_rank, first, None, stop)[0]
    saved = results_of(second, one_rank, second, saved, (4, 1))[0]
    ranks = results_of(third, one_rank, third, saved, None)
    for rank in ranks:
        torch.testing.assert_close(rank["scores"], expected["scores"])
        for mine, other in zip(rank["model"].values(), expected["model"].values(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
        for record, other in zip(rank["history"], expected["history"], strict=True):
            assert (record.kept, record.trained) == (other.kept, other.trained)
            assert record.mean_loss == pytest.approx(other.mean_loss)


@pytest.mark.parametrize(("step", "quantiles"), [(1, None), (3, PAPER_QUANTILES)])
@pytest.mark.parametrize(("saved", "loaded"), [(4, 3), (3, 4), (1, 5), (5, 1), (2, 2)])
def test_no_planned_sample_is_lost_or_repeated_beyond_padding(saved, loaded, step, quantiles):
    def make(group):
        return InfoBatch(211, EPOCHS, quantiles=quantiles, process_group=group)

    def losses(ids):
        return (ids * 37 % 101 + 1).double() / 101

    def before(group):
        pruner, done = make(group), []
        loader = DataLoader(torch.arange(211), 5, sampler=pruner.sampler)
        for ids in loader:
            pruner.update(losses(ids))
        batches = iter(loader)
        for number, ids in enumerate(batches):
            if number == step:
                break
            weighted = pruner.update(losses(ids), reduction="none")
            done += [i for i, w in zip(ids.tolist(), weighted.tolist(), strict=True) if w > 0]
        plan = pruner.plan.indices.tolist()
        pruner.synchronize()
        return pruner.state_dict(), done, plan, pruner.epoch

    parts = in_threads(saved, before)
    states = [state for state, *_ in parts]
    assert len({repr(state) for state in states}) == 1
    assert parts[0][3] == 1  # still within the epoch

    def after(group):
        pruner, done = make(group), []
        pruner.load_state_dict(states[0])
        for ids in DataLoader(torch.arange(211), 5, sampler=pruner.sampler):
            weighted = pruner.update(losses(ids), reduction="none")
            done += [i for i, w in zip(ids.tolist(), weighted.tolist(), strict=True) if w > 0]
        return done, pruner.history

    rest = in_threads(loaded, after)
    done = [i for _, ids, *_ in parts for i in ids] + [i for ids, _ in rest for i in ids]
    assert sorted(done) == sorted(parts[0][2])
    for _, history in rest:
        assert history[1].trained == history[1].kept == len(parts[0][2])
