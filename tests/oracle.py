"""Runs whose truth is known: data sets of which each item is its own index.

So what a loader really delivered is known. The score that each sample should have is kept beside
the pruner's, and the weight that each loss is given is held against that of its sample in the plan.
"""

import contextlib

import pytest
import torch
from torch.utils.data import Dataset

from infobatch import InfoBatch
from infobatch.errors import InfoBatchError, MisalignedUpdateError

N, B = 200, 16  # 12 whole batches and one of 8


# --- data sets of which each item is its own index ------------------------------------------------


class Ids(Dataset):
    def __init__(self, size=N, offset=0):
        self.size, self.offset = size, offset

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.tensor(self.offset + index)


class IdsInDicts(Ids):
    def __getitem__(self, index):
        return {"image": torch.zeros(2), "meta": {"id": index}}


class IdsByTheBatch(Ids):
    """torch's fetcher asks such a data set for all items of a batch in one call."""

    def __getitem__(self, index):
        raise AssertionError("the batched form was there and was not used")

    def __getitems__(self, indices):
        return [torch.tensor(index) for index in indices]


class TextsOfUnequalLength(Ids):
    def __getitem__(self, index):
        return index, [index] * (1 + index % 5)


def collate_texts(items):
    longest = max(len(tokens) for _, tokens in items)
    padded = [tokens + [-1] * (longest - len(tokens)) for _, tokens in items]
    return {"tokens": torch.tensor(padded), "ids": [index for index, _ in items]}


# --- a training loop that keeps the truth beside it -----------------------------------------------


def losses_of(ids, epoch):
    """A loss that tells sample and epoch; about half of them lie below the mean."""
    return (ids.double() * 7919 % 1000 / 1000 + 0.01 * epoch).float()


def weights_of(plan, ids):
    """(B,) the weights that the plan has for these samples; NaN for those not in it."""
    weights = torch.full((len(plan.selection),), torch.nan, dtype=torch.float64)
    weights[plan.indices] = plan.weights
    return weights[ids]


class Run:
    """A pruner, and what the scores must be according to the items that the loader delivered."""

    def __init__(self, dataset=N, *, num_epochs=6, seed=3, **options):
        self.pruner = InfoBatch(dataset, num_epochs, seed=seed, **options)
        self.truth = torch.full((self.pruner.num_samples,), torch.nan)
        self.trained = []  # the samples of each accepted update

    def step(self, ids, **options):
        ids = torch.as_tensor(ids)
        losses = losses_of(ids, self.pruner.epoch).requires_grad_()
        plan = self.pruner.plan
        loss = self.pruner.update(losses, **options)
        (given,) = torch.autograd.grad(loss.sum(), losses)
        scale = 1 if options.get("reduction") in ("none", "sum") else len(ids)
        torch.testing.assert_close(given * scale, weights_of(plan, ids).float())
        self.truth[ids] = losses.detach()
        self.trained.append(ids.tolist())
        return loss

    def train(self, loader, epochs=1, *, ids_of=lambda batch: batch):
        for _ in range(epochs):
            for batch in loader:
                self.step(ids_of(batch))

    def assert_scores_are_true(self):
        assert torch.equal(self.pruner.scores.nan_to_num(-1.0), self.truth.nan_to_num(-1.0))

    @contextlib.contextmanager
    def refusal(self, *, remedy, error=MisalignedUpdateError):
        """The body is refused with that remedy, and the refused call has changed nothing."""
        where = self.pruner.epoch, self.pruner.progress, self.pruner.history
        truth = self.truth.clone()
        with pytest.raises(error, match=remedy) as caught:
            yield
        assert isinstance(caught.value, InfoBatchError)
        # The traceback refers to this frame. Left to the cycle collector, an iterator over workers
        # in a frame of it takes 5 seconds per worker to shut down.
        del caught
        assert (self.pruner.epoch, self.pruner.progress, self.pruner.history) == where
        self.truth = truth
        self.assert_scores_are_true()


def check_epochs(run, loader, *, ids_of=lambda batch: batch, drop_last=False, wrap=iter, epochs=3):
    """Train, and hold each epoch against the plan that was there before it began."""
    pruner = run.pruner
    for epoch in range(epochs):
        planned, steps, delivered = pruner.plan.indices, len(loader), []
        assert pruner.epoch == pruner.plan.epoch == epoch
        for batch in wrap(loader):
            ids = torch.as_tensor(ids_of(batch))
            delivered.append(ids)
            run.step(ids)
        trained = len(planned) - (len(planned) % B if drop_last else 0)
        assert len(delivered) == steps == -(-trained // B)
        assert torch.equal(torch.cat(delivered), planned[:trained])
        run.assert_scores_are_true()
        assert pruner.epoch == epoch + 1
        assert pruner.history[epoch].trained == trained
    assert pruner.history[0].kept == run.truth.numel()
    assert all(record.kept < record.total for record in pruner.history[1:]), "nothing was pruned"


def read_ahead(loader, batches=1):
    """Accelerate, Lightning and prefetchers hold the next batches while one is trained on."""
    held = []
    for batch in loader:
        held.append(batch)
        if len(held) > batches:
            yield held.pop(0)
    yield from held


def workers(count, **options):
    """Loader options for that many workers, few enough batches ahead to leave a middle."""
    if count:
        options |= {"num_workers": count, "prefetch_factor": 1, "multiprocessing_context": "fork"}
    return options


WORKERS = pytest.mark.parametrize("count", [0, 2], ids=["no workers", "2 workers"])
