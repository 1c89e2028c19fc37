"""A pruner does not keep process groups alive: at the interpreter's end they could abort it."""

import gc
import weakref

import numpy as np
import torch.distributed as dist

from infobatch.distributed import Ranks

DATA = np.arange(4, dtype=np.uint8)


def groups_of(ranks):
    """Start torch.distributed, exchange twice, and end it; weak references to all groups."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for _ in range(2):
            (gathered,) = ranks.all_gather(DATA, "a test")
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
