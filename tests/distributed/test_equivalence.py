"""W processes with batch B train as one process does with batch W * B."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tests.distributed.support import results_of
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from infobatch import DataPruner, InfoBatch
from infobatch.policies import PAPER_QUANTILES, Policy, Selection

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # not public before torch 2.6
    fully_shard = None

EPOCHS = 5


class Points(Dataset):
    """Items are (input, label, index)."""

    def __init__(self, size):
        generator = torch.Generator().manual_seed(size)
        self.inputs = torch.randn(size, 6, generator=generator)
        self.labels = (self.inputs[:, 0] > 0.2).long()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index], index


class TwoHardest(Policy):
    """Keeps two samples of an epoch, however many ranks there are."""

    def select(self, request):
        scores = request.scores
        weights = np.zeros(len(scores))
        weights[np.argsort(scores, kind="stable")[-2:]] = len(scores) / 2
        return Selection(weights)


PRUNERS = {
    "mean": lambda size: InfoBatch(size, EPOCHS, seed=3),
    "quantiles, EMA": lambda size: InfoBatch(
        size, EPOCHS, seed=3, quantiles=PAPER_QUANTILES, score_ema=0.3
    ),
    "two kept": lambda size: DataPruner(size, EPOCHS, TwoHardest(), seed=3),
    "own order": lambda size: InfoBatch(size, EPOCHS, seed=3, sampler=range(size - 1, -1, -1)),
}
CASES = [
    ("mean", 61, 12),
    ("mean", 48, 12),
    ("mean", 3, 12),
    ("mean", 1, 12),
    ("mean", 50, 24),
    ("quantiles, EMA", 61, 24),
    ("two kept", 23, 12),
    ("own order", 37, 12),
]


def model_of(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 2)
    ).double()


def train(pruner, dataset, batch, wrap, num_workers=0):
    model = wrap(model_of())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    loader = DataLoader(dataset, batch, sampler=pruner.sampler, num_workers=num_workers)
    steps, plans = [], []
    for _ in range(EPOCHS):
        plans.append((pruner.plan.indices.tolist(), pruner.plan.weights.tolist()))
        length, seen = len(loader), 0
        for inputs, labels, indices in loader:
            losses = F.cross_entropy(model(inputs.double()), labels, reduction="none")
            loss = pruner.update(losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(indices.tolist())
            seen += 1
        assert seen == length
    parameters = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return {
        "steps": steps,
        "plans": plans,
        "scores": pruner.scores,
        "history": pruner.history,
        "parameters": [p.detach().clone() for p in parameters],
        "progress": pruner.progress,
    }


def wrap_fsdp(model):
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


WRAPPERS = {"DDP": DistributedDataParallel}
if fully_shard is not None:
    WRAPPERS["FSDP2"] = wrap_fsdp


def one_rank(rank, cases):
    results = {}
    world_size = dist.get_world_size()
    for wrapper, kind, size, global_batch in cases:
        pruner = PRUNERS[kind](size)
        results[wrapper, kind, size] = train(
            pruner, Points(size), global_batch // world_size, WRAPPERS[wrapper]
        )
    return results


@functools.cache
def all_results(world_size):
    cases = [(wrapper, *case) for wrapper in WRAPPERS for case in CASES]
    return results_of(world_size, one_rank, cases)


@functools.cache
def alone(kind, size, batch):
    return train(PRUNERS[kind](size), Points(size), batch, copy.deepcopy)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("kind", "size", "batch"), CASES)
def test_ranks_train_as_one_process_with_their_batches_together(
    world_size, wrapper, kind, size, batch
):
    expected = alone(kind, size, batch)
    ranks = [result[wrapper, kind, size] for result in all_results(world_size)]
    assert len({len(rank["steps"]) for rank in ranks}) == 1
    for rank in ranks:
        assert rank["plans"] == expected["plans"]
        assert repr(rank["history"]) == repr(ranks[0]["history"])
        assert torch.equal(rank["scores"].nan_to_num(-1), ranks[0]["scores"].nan_to_num(-1))
        torch.testing.assert_close(rank["scores"], expected["scores"], equal_nan=True)
        assert rank["progress"] == 1.0
        for mine, other in zip(rank["parameters"], expected["parameters"], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
    for record, other in zip(ranks[0]["history"], expected["history"], strict=True):
        assert (record.kept, record.total, record.trained) == (
            other.kept,
            other.total,
            other.trained,
        )
        assert record.threshold == pytest.approx(other.threshold, nan_ok=True)
        assert record.mean_loss == pytest.approx(other.mean_loss)
    together = [
        [index for pair in zip(*parts, strict=True) for index in pair]
        for parts in zip(*(rank["steps"] for rank in ranks), strict=True)
    ]
    for step, other in zip(together, expected["steps"], strict=True):
        assert step[: len(other)] == other  # what follows is padding
        assert len(step) - len(other) < world_size
