"""timm (`pip install "infobatch[timm]"`): its loader, its losses and its schedulers.

Source of what it sets right: docs/hosts.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import PrefetchLoader
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from infobatch.loaders import planned_loader
from infobatch.pruner import DataPruner

PerSample = Callable[[Tensor, Tensor], Tensor]


def prune_loader(loader: Any, pruner: DataPruner) -> Any:
    """Let a loader of `timm.data.create_loader` draw from the pruner.

    Args:
        loader: with or without prefetcher. A `PrefetchLoader` is changed and returned; another is
            left as it is.
        pruner: of the loader's data set.

    Returns:
        the loader to iterate.

    Raises:
        ValueError: repeated augmentation or scheduled input sizes, which choose samples
            themselves; an `IterableDataset`; a data set of another length.
    """
    if isinstance(loader.sampler, RepeatAugSampler):
        raise ValueError(
            "repeated augmentation (num_aug_repeats) draws every sample several times; leave it "
            "away, or give the pruner a sampler that repeats: InfoBatch(..., sampler=...)"
        )
    if isinstance(loader, PrefetchLoader):
        loader.loader = planned_loader(loader.loader, pruner)
        return loader
    return planned_loader(loader, pruner)


class PrunedLoss(nn.Module):
    """A criterion of timm or torch, per sample and rescaled: its value is what to call backward on.

    With Mixup or CutMix a sample's score is the loss that it is trained with, against the mixed
    target, and is credited to the sample in whose place the mixture stands.

    Args:
        criterion: `LabelSmoothingCrossEntropy`, `SoftTargetCrossEntropy`, `BinaryCrossEntropy` or
            `nn.CrossEntropyLoss`; or a function of output and target that gives one loss per
            sample, (B,).
        pruner: the run's pruner.

    Raises:
        TypeError: a criterion of another kind, which cannot be split into samples.
    """

    def __init__(self, criterion: nn.Module | PerSample, pruner: DataPruner) -> None:
        super().__init__()
        self.per_sample = per_sample_criterion(criterion)
        self.pruner = pruner

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """(B, classes) and targets to a scalar; once per batch, and in training only."""
        return self.pruner.update(self.per_sample(output, target))


def per_sample_criterion(criterion: nn.Module | PerSample) -> PerSample:
    """The function whose mean over the batch is this criterion; see `PrunedLoss`."""
    if isinstance(criterion, SoftTargetCrossEntropy):
        return lambda output, target: F.cross_entropy(output, target, reduction="none")
    if isinstance(criterion, LabelSmoothingCrossEntropy):
        smoothing: float = criterion.smoothing
        return lambda output, target: F.cross_entropy(
            output, target, reduction="none", label_smoothing=smoothing
        )
    if isinstance(criterion, (nn.CrossEntropyLoss, BinaryCrossEntropy)):
        each = copy.copy(criterion)
        each.reduction = "none"
        if isinstance(criterion, nn.CrossEntropyLoss):
            return each
        sums, each.sum_classes = criterion.sum_classes, False
        return lambda output, target: (
            each(output, target).sum(-1) if sums else each(output, target).mean(-1)
        )
    if isinstance(criterion, nn.Module):
        raise TypeError(
            f"{type(criterion).__name__} is not known to be a mean over samples; pass a function "
            "of output and target that returns one loss per sample, of shape (B,)"
        )
    return criterion


class ProgressUpdates:
    """A scheduler of `timm.scheduler`, built for full epochs, that follows a pruned run.

    Only `step_update`, which counts optimizer steps, is changed: whatever count it is given, the
    schedule stands where the progress of the run is. All else is the scheduler's own.

    Args:
        scheduler: of `create_scheduler_v2`.
        pruner: the run's pruner.
        num_updates_total: number of epochs times the updates of a full epoch.
    """

    def __init__(self, scheduler: Any, pruner: DataPruner, num_updates_total: int) -> None:
        self.scheduler = scheduler
        self._pruner, self._total = pruner, num_updates_total

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set the learning rate of the next update."""
        reached = math.floor(self._pruner.progress * self._total + 1e-6)
        self.scheduler.step_update(min(reached, self._total - 1), metric)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)
