"""Fresh scores from forward passes, between epochs."""

import numpy as np
import pytest
import torch
from tests.distributed.support import in_threads
from torch.utils.data import DataLoader

from infobatch import DataPruner, InfoBatch
from infobatch.errors import LossError, MisalignedUpdateError
from infobatch.policies import IES, RePB

N = 60


def run_epoch(pruner, loss=lambda indices: indices / 10.0, batch_size=10):
    loader = DataLoader(torch.arange(N), batch_size=batch_size, sampler=pruner.sampler)
    for indices in loader:
        pruner.update(loss(indices.float()))


def test_what_was_left_out_gets_fresh_scores_and_the_next_plan_uses_them():
    pruner = InfoBatch(N, 10, batch_size=5)
    run_epoch(pruner)
    left_out = pruner.plan.pruned
    assert len(left_out) == 15
    assert not set(left_out.tolist()) & set(pruner.plan.indices.tolist())
    run_epoch(pruner)
    planned = pruner.plan  # made before the fresh scores are known: it is made again
    pruner.rescore(left_out, torch.full((len(left_out),), 100.0))
    assert (pruner.scores[left_out] == 100.0).all()
    assert pruner.plan is not planned
    assert set(left_out.tolist()) <= set(pruner.plan.indices.tolist())  # far above the mean
    run_epoch(pruner)
    assert pruner.epoch == 3


@pytest.mark.parametrize("settings", [{}, {"budget": 0.6}], ids=repr)
def test_a_stream_leaves_out_what_the_plan_after_a_rescore_does(settings):
    pruner = InfoBatch(200, 8, **settings)
    keeps = pruner.stream_filter()
    for _ in range(5):
        left_out = pruner.plan.pruned
        ids = torch.tensor([i for i in range(200) if keeps(i)])
        pruner.update(0.1 + (ids % 7).float(), indices=ids)
        pruner.end_epoch()
        pruner.rescore(left_out, torch.full((len(left_out),), 9.0))
        assert [i for i in range(200) if keeps(i)] == sorted(pruner.plan.indices.tolist())


def test_nothing_to_rescore_is_no_error():
    pruner = InfoBatch(N, 10)
    run_epoch(pruner)
    before = pruner.scores
    pruner.rescore([], torch.empty(0))
    assert torch.equal(before, pruner.scores)


@pytest.mark.parametrize("drawn", [False, True])
def test_within_an_epoch_it_is_refused(drawn):
    pruner = InfoBatch(N, 10)
    loader = iter(DataLoader(torch.arange(N), batch_size=10, sampler=pruner.sampler))
    batch = next(loader)
    if not drawn:
        pruner.update(batch.float())
    with pytest.raises(MisalignedUpdateError, match="between two epochs"):
        pruner.rescore([1], torch.ones(1))


@pytest.mark.parametrize(
    ("indices", "scores"),
    [([1, 2], torch.ones(3)), ([N], torch.ones(1)), ([0], torch.ones(1, dtype=torch.int64))],
)
def test_scores_that_do_not_fit_are_refused(indices, scores):
    pruner = InfoBatch(N, 10)
    with pytest.raises(LossError):
        pruner.rescore(indices, scores)


def test_policies_are_told_that_it_was_no_training():
    pruner = DataPruner(N, 10, RePB())
    run_epoch(pruner)
    pruner.rescore(np.arange(5), torch.ones(5))
    memory = pruner.state_dict()["memory"]
    assert memory["times"].tolist() == [1.0] * N
    assert memory["above"][:5].tolist() == [0.0] * 5


def test_a_sample_that_moves_again_comes_back():
    pruner = DataPruner(N, 20, IES(1e-3), delta=1.0)
    for _ in range(5):
        run_epoch(pruner)  # losses that stand still
    left_out = pruner.plan.pruned
    assert len(left_out) == N - 1
    run_epoch(pruner, batch_size=1)
    moved = left_out[:7]
    pruner.rescore(moved, 5.0 + moved.float())
    assert set(moved.tolist()) <= set(pruner.plan.indices.tolist())


@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_rescore_together(sharded):
    def target(group):
        pruner = InfoBatch(N, 10, process_group=group, sharded=sharded)
        run_epoch(pruner, batch_size=5)
        left_out = pruner.plan.pruned
        run_epoch(pruner, batch_size=5)
        own = left_out if sharded else left_out[group.rank :: group.world_size]
        pruner.rescore(own, 100.0 + own.float())
        plan = set(pruner.plan.indices.tolist())
        assert set(left_out.tolist()) <= plan
        return left_out, pruner.scores, plan

    first, second = in_threads(2, target)
    if sharded:
        return
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[2] == second[2]
    assert torch.equal(first[1][first[0]], 100.0 + first[0].float())


def test_a_rank_cannot_rescore_what_another_owns():
    def target(group):
        pruner = InfoBatch(N, 10, process_group=group, sharded=True)
        with pytest.raises(MisalignedUpdateError, match="belong to other ranks"):
            pruner.rescore([1 - group.rank], torch.ones(1))

    in_threads(2, target)
