"""The next epoch's order is made while this one is trained, the same as would be made now."""

import copy
import os
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler

from infobatch import InfoBatch
from infobatch._core.ahead import FEWEST, MOST, Ahead
from infobatch._core.plan import Rows, shuffled

SAMPLES = Rows(0, 1, FEWEST)


def test_the_order_is_that_of_seed_and_epoch():
    ahead = Ahead()
    for epoch in range(3):
        ahead.start(SAMPLES, 7, epoch)
        ahead.start(SAMPLES, 7, epoch)  # once more changes nothing
        order = ahead.order(SAMPLES, 7, epoch)
        assert order.dtype == np.int32
        assert np.array_equal(order, shuffled(FEWEST, 7, epoch))


@pytest.mark.parametrize("other", [(SAMPLES, 8, 1), (SAMPLES, 7, 2), (Rows(1, 2, FEWEST), 7, 1)])
def test_another_order_than_the_one_begun_is_made_now(other):
    ahead = Ahead()
    ahead.start(SAMPLES, 7, 1)
    samples, seed, epoch = other
    expected = shuffled(len(samples), seed, epoch, samples.first)
    assert np.array_equal(ahead.order(*other), expected)
    assert np.array_equal(ahead.order(SAMPLES, 7, 1), shuffled(FEWEST, 7, 1))


@pytest.mark.parametrize("size", [FEWEST - 1, MOST + 1])
def test_neither_small_nor_huge_data_sets_get_a_thread(size):
    before, ahead = threading.active_count(), Ahead()
    ahead.start(Rows(0, 1, size), 0, 1)
    assert threading.active_count() == before


def test_a_copy_and_a_forked_process_make_their_own():
    ahead = Ahead()
    ahead.start(SAMPLES, 7, 1)
    assert np.array_equal(copy.deepcopy(ahead).order(SAMPLES, 7, 1), shuffled(FEWEST, 7, 1))
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(
            writer, bytes([np.array_equal(ahead.order(SAMPLES, 7, 1), shuffled(FEWEST, 7, 1))])
        )
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1) == b"\x01"


def test_a_run_has_the_plans_that_it_would_have_without(monkeypatch):
    def plans():
        pruner, found = InfoBatch(FEWEST, 3, seed=5), []
        for _ in range(3):
            for rows in BatchSampler(pruner.sampler, FEWEST // 4, drop_last=False):
                pruner.update((torch.tensor(rows) % 101).float())
            found.append(pruner.history[-1])
        return found, pruner.state_dict()["checksum"]

    with_thread = plans()
    monkeypatch.setattr("infobatch._core.ahead.MOST", 0)
    assert repr(plans()) == repr(with_thread)
