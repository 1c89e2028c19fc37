"""The loss buffer: what it costs on an accelerator, and that gaps and scores keep their place.

Torch's `meta` device has shapes and no values: whatever would bring a value to the host fails
there, and all else is treated as on any accelerator.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from infobatch import InfoBatch

N, B = 640, 16


class Operations(TorchDispatchMode):
    """Counts what reaches the device; views do not."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names[func.name().removeprefix("aten::").partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def in_a_pruned_epoch():
    """A pruner at the start of its second epoch, and its loader."""
    pruner = InfoBatch(N, 4, seed=3)
    pruner.sampler.batches_ahead = 0  # so that a batch may be left out at the very beginning
    loader = DataLoader(torch.arange(N), B, sampler=pruner.sampler)
    for rows in loader:
        pruner.update((rows % 37).float())
    return pruner, loader


@pytest.mark.parametrize("way", ["plain", "left out", "skip", "scores", "reduction"])
def test_on_an_accelerator_no_step_but_the_first_sends_or_brings_anything(way):
    pruner, loader = in_a_pruned_epoch()
    for number, _ in enumerate(loader):
        if number == len(loader) - 1:
            return  # the end of an epoch brings the losses to the host
        losses, other = torch.rand(B, device="meta"), number % 2 == 0
        scores = torch.rand(B, device="meta") if other and way == "scores" else None
        reduction = ("none", "sum")[other] if way == "reduction" else "mean"
        if other and way == "left out":
            continue
        with Operations() as seen:
            if other and way == "skip":
                pruner.skip(B)
            else:
                pruner.update(losses, scores=scores, reduction=reduction)
        if number > 1:
            assert set(seen.names) <= {"mul", "mean", "sum", "copy_"}, seen.names
            assert seen.names.total() <= 4


@pytest.mark.parametrize("batch", [B, 7])
@pytest.mark.parametrize("read", [False, True], ids=["", "scores are read in between"])
def test_with_gaps_and_scores_every_number_comes_to_its_sample(batch, read):
    pruner, _ = in_a_pruned_epoch()
    loader = DataLoader(torch.arange(N), batch, sampler=pruner.sampler)
    expected, trained = pruner.scores, 0
    for number, rows in enumerate(loader):
        losses, scores = 100.0 + rows.float(), -1.0 - rows.float()
        if number % 5 == 1:
            continue
        if number % 5 == 3:
            pruner.skip(len(rows))
            continue
        trained += len(rows)
        if number % 5 == 4:
            pruner.update(losses, scores=scores)
            expected[rows] = scores
        else:
            pruner.update(losses)
            expected[rows] = losses
        if read:
            assert torch.equal(pruner.scores, expected)
    pruner.end_epoch()
    assert torch.equal(pruner.scores, expected)
    record = pruner.history[-1]
    assert record.trained == trained
    assert record.left_out == record.kept - trained


@pytest.mark.parametrize("size", [B, 7])
def test_a_step_is_the_mean_of_rescaled_losses_whatever_batches_come(size):
    pruner, _ = in_a_pruned_epoch()
    for rows in DataLoader(torch.arange(N), size, sampler=pruner.sampler):
        plan = pruner.plan
        weights = dict(zip(plan.indices.tolist(), plan.weights.tolist(), strict=True))
        losses = torch.rand(len(rows), dtype=torch.float64)
        due = np.mean([weights[i] * loss for i, loss in zip(rows.tolist(), losses, strict=True)])
        assert pruner.update(losses).item() == pytest.approx(due, rel=1e-12)
