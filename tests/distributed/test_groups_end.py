"""One group of exchanges serves all pruners of a process, and ends when it is of no more use.

A pruner does not keep it alive either: at the interpreter's end its threads could abort it.
"""

import gc
import time
import weakref

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.distributed.support import results_of
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch._ranks.world import Ranks
from infobatch.errors import DistributedError

DATA = np.arange(4, dtype=np.uint8)


def groups_of(ranks):
    """Start torch.distributed, exchange twice, and end it; weak references to all groups."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for _ in range(2):
            (gathered,) = ranks.all_gather(DATA, "a test", what="bytes")
            np.testing.assert_array_equal(gathered, DATA)
        groups = [weakref.ref(group) for group in dist.distributed_c10d._world.pg_map]
    finally:
        dist.destroy_process_group()
    gc.collect()
    return groups


def test_destroy_process_group_ends_the_group_of_exchanges_and_a_new_one_is_made():
    ranks = Ranks(None, None, None)
    for _ in range(2):
        groups = groups_of(ranks)
        assert len(groups) == 2  # the default one, and one for all exchanges
        assert [group() for group in groups] == [None, None]


def number_of_groups():
    return len(dist.distributed_c10d._world.pg_map)


def epoch_of(pruner, nap=0.0):
    for ids in DataLoader(range(pruner.num_samples), 4, sampler=pruner.sampler):
        time.sleep(nap)
        pruner.update((ids.float() + 1).sqrt())


def many_pruners(rank):
    groups = [number_of_groups()]
    for number in range(4):
        pruner = InfoBatch(16, 2, seed=number)
        epoch_of(pruner)
        groups.append(number_of_groups())
    other = dist.new_group([0, 1])
    for _ in range(3):
        epoch_of(InfoBatch(16, 2, process_group=other))
        groups.append(number_of_groups())
    return groups


def test_all_pruners_of_a_process_group_share_one_group_of_exchanges():
    for groups in results_of(2, many_pruners):
        assert groups == [1, 2, 2, 2, 2, 4, 4, 4]


def two_in_turn(rank, interleaved):
    pruners = [InfoBatch(64, 6, seed=3), InfoBatch(96, 6, 0.7, seed=8)]
    one_after_the_other = [pruner for pruner in pruners for _ in range(6)]
    for pruner in pruners * 6 if interleaved else one_after_the_other:
        epoch_of(pruner)
    return [(repr(pruner.history), pruner.scores) for pruner in pruners]


def test_two_pruners_that_train_in_turn_do_not_disturb_each_other():
    for alone, in_turn in zip(
        results_of(2, two_in_turn, False), results_of(2, two_in_turn, True), strict=True
    ):
        for (history, scores), (other_history, other_scores) in zip(alone, in_turn, strict=True):
            assert history == other_history
            assert torch.equal(scores, other_scores)


def late(rank):
    pruner = InfoBatch(16, 2)
    epoch_of(pruner)
    try:
        epoch_of(pruner, nap=3.0 if rank == 1 else 0.0)
        message = ""
    except DistributedError as error:
        message = str(error)
    again = InfoBatch(16, 2)
    for _ in range(2):
        epoch_of(again)
    return message, len(again.history)


def test_a_group_that_a_late_rank_has_broken_is_not_used_again():
    (message, epochs), (_, late_epochs) = results_of(2, late, timeout=3.0)
    assert "at the end of an epoch (epoch 1" in message
    assert "waited for the others' places in the run, and not all came" in message
    assert epochs == late_epochs == 2


def without_the_other(rank):
    pruner = InfoBatch(16, 2)
    if rank == 0:
        with pytest.raises(DistributedError) as caught:
            epoch_of(pruner)
        return str(caught.value)
    time.sleep(4.0)
    return None


def test_a_rank_that_never_comes_to_its_first_update_is_told_of_by_what_was_waited_for():
    message, _ = results_of(2, without_the_other, timeout=2.0)
    assert "at the first update (epoch 0, position 0) this rank could not form the gloo" in message
    assert "Every member of the process group must come to the first update" in message


class Broken:
    """A `Communicator` whose network is down; it has no weak references and no hash."""

    __slots__ = ("rank", "world_size")
    __hash__ = None

    def __init__(self):
        self.rank, self.world_size = 0, 2

    def all_gather(self, data):
        raise RuntimeError("the network is down")


def test_what_a_communicator_of_one_s_own_raises_is_in_the_error():
    with pytest.raises(DistributedError, match=r"others' places in the run, .*network is down"):
        epoch_of(InfoBatch(16, 2, process_group=Broken()))
