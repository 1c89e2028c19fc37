"""Passes over the data that are no training: while a host is paused, and behind the last epoch."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from infobatch import InfoBatch
from infobatch.errors import EpochError
from infobatch.integrations.hosts import coming_divisor

N, BATCH = 100, 8


def loader_of(pruner, workers=0):
    return DataLoader(range(N), BATCH, sampler=pruner.sampler, num_workers=workers)


def list_trained(pruner, loader):
    """Train an epoch; its batches."""
    batches = []
    for batch in loader:
        pruner.update(batch.float())
        batches.append(batch.tolist())
    return batches


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_tried_out_while_paused_leaves_no_trace(workers):
    """Also in mid-run, over several epochs, left early, with padding's weights asked for."""
    pruner, reference = (InfoBatch(N, 4, batch_size=BATCH) for _ in range(2))
    loader = loader_of(pruner, workers)
    for _ in range(2):
        assert list_trained(pruner, loader) == list_trained(reference, loader_of(reference))
    before = pruner.scores
    pruner.sampler.is_paused = True
    for stop in (20, 3):
        assert len(loader) == 13
        seen = []
        for batch in itertools.islice(loader, stop):
            losses = batch.float().requires_grad_()
            assert torch.equal(pruner.coming_weights(len(batch)), torch.ones(len(batch)).double())
            assert coming_divisor(pruner, len(batch)) == len(batch)
            loss = pruner.update(losses)
            torch.testing.assert_close(loss, losses.mean())
            pruner.skip(BATCH)
            seen += batch.tolist()
        assert len(set(seen)) == len(seen) == min(N, stop * BATCH)
        pruner.end_epoch()
    pruner.sampler.is_paused = False
    assert pruner.epoch == 2
    assert torch.equal(pruner.scores, before)
    for _ in range(2):
        batches, due = list_trained(pruner, loader), list_trained(reference, loader_of(reference))
        assert batches == due
    assert pruner.history == reference.history


def test_behind_the_last_epoch_a_loader_gives_all_samples_and_nothing_is_trained():
    """As torch.optim.swa_utils.update_bn goes over them."""
    pruner = InfoBatch(N, 4)
    loader = loader_of(pruner)
    for _ in range(4):
        list_trained(pruner, loader)
    for _ in range(2):
        assert len(loader) == 13
        assert sorted(torch.cat(list(loader)).tolist()) == list(range(N))
        pruner.end_epoch()
    assert len(pruner.history) == pruner.epoch == 4
    for batch in loader:
        with pytest.raises(EpochError, match="all num_epochs=4 epochs are over"):
            pruner.update(batch.float())
