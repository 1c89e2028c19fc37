"""timm (`pip install "infobatch[timm]"`): its loader, its losses and its schedulers.

Source of what it sets right: docs/hosts.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.distributed_sampler import RepeatAugSampler
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from infobatch.integrations.hosts import planned_loader
from infobatch.losses import soft_target_score
from infobatch.pruner import DataPruner

PerSample = Callable[[Tensor, Tensor], Tensor]


def prune_loader(loader: Any, pruner: DataPruner) -> Any:
    """Let a loader of `timm.data.create_loader` draw from the pruner.

    Args:
        loader: with or without prefetcher, distributed or not. It is left as it is.
        pruner: of the loader's data set.

    Returns:
        the loader to iterate.

    Raises:
        ValueError: repeated augmentation or scheduled input sizes, which choose samples
            themselves; an `IterableDataset`, as NaFlex loaders have; a data set of another length.
    """
    inner = getattr(loader, "loader", loader)  # of a prefetcher
    if isinstance(inner.sampler, RepeatAugSampler):
        raise ValueError(
            "repeated augmentation (num_aug_repeats) draws every sample several times; leave it "
            "away, or give the pruner a sampler that repeats: InfoBatch(..., sampler=...)"
        )
    planned = planned_loader(inner, pruner)
    if inner is loader:
        return planned
    prefetched = copy.copy(loader)
    prefetched.loader = planned
    pruner.sampler.batches_ahead = 1  # it loads the next batch before it gives one out
    return prefetched


class PrunedLoss(nn.Module):
    """A criterion of timm or torch, per sample and rescaled: its value is what to call backward on.

    With Mixup or CutMix a sample's score is the loss that it is trained with, against the mixed
    target, and is credited to the sample in whose place the mixture stands. Policies that read
    probabilities from scores, that of `DataPruner` without one among them, are given
    `soft_target_score`, which is 0 where the model gives just the smoothed and mixed target; of a
    function, what it returns.

    Args:
        criterion: `LabelSmoothingCrossEntropy`, `SoftTargetCrossEntropy`, `BinaryCrossEntropy` or
            `nn.CrossEntropyLoss` without class weights and ignored labels; or a function of
            output and target that gives one loss per sample, (B,).
        pruner: the run's pruner.

    Raises:
        TypeError: a criterion that is no mean over samples, or not known to be one.
    """

    def __init__(self, criterion: nn.Module | PerSample, pruner: DataPruner) -> None:
        super().__init__()
        self.criterion = criterion  # so that .to(device) moves its buffers
        self.per_sample = per_sample_criterion(criterion)
        self.pruner = pruner

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """(B, classes) and targets to a scalar; once per batch, and in training only."""
        losses = self.per_sample(output, target)
        scores = None
        if self.pruner.policy.reads_probability and isinstance(self.criterion, nn.Module):
            scores = _scores(self.criterion, output.detach(), target)
        return self.pruner.update(losses, scores=scores)


def per_sample_criterion(criterion: nn.Module | PerSample) -> PerSample:
    """The function whose mean over the batch is this criterion; see `PrunedLoss`."""
    if isinstance(criterion, SoftTargetCrossEntropy):
        return lambda output, target: F.cross_entropy(output, target, reduction="none")
    if isinstance(criterion, LabelSmoothingCrossEntropy):
        smoothing: float = criterion.smoothing
        return lambda output, target: F.cross_entropy(
            output, target, reduction="none", label_smoothing=smoothing
        )
    if isinstance(criterion, BinaryCrossEntropy) and (
        criterion.sum_classes or criterion.reduction == "mean"
    ):
        each = copy.copy(criterion)
        each.reduction, each.sum_classes = "none", False
        over_classes = torch.sum if criterion.sum_classes else torch.mean
        return lambda output, target: over_classes(each(output, target), -1)
    if isinstance(criterion, nn.CrossEntropyLoss) and (
        criterion.weight is None
        and criterion.reduction == "mean"
        and criterion.ignore_index == nn.CrossEntropyLoss().ignore_index  # the mean is over others
    ):
        each = copy.copy(criterion)
        each.reduction = "none"
        return each
    if isinstance(criterion, nn.Module):
        raise TypeError(
            f"{criterion!r} is not known to be a mean over samples (class weights, ignored labels "
            "and another reduction make it none); pass a function of output and target that "
            "returns one loss per sample, of shape (B,)"
        )
    return criterion


def _scores(criterion: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    """(B,) scores that are 0 where the model gives just the target, smoothed and mixed as it is.

    So exp(-score) is the probability that the model gives a class, or, under binary cross-entropy,
    all classes together.
    """
    if isinstance(criterion, BinaryCrossEntropy):
        is_soft = target.shape == output.shape
        soft = (target if is_soft else F.one_hot(target, output.shape[-1])).float()
        least = -torch.xlogy(soft, soft) - torch.xlogy(1 - soft, 1 - soft)
        losses = F.binary_cross_entropy_with_logits(output.float(), soft, reduction="none")
        return (losses - least).sum(-1)
    smoothing = getattr(criterion, "smoothing", getattr(criterion, "label_smoothing", 0.0))
    return soft_target_score(output, target, label_smoothing=smoothing)


class ProgressUpdates:
    """A scheduler of `timm.scheduler`, built for full epochs, that follows a pruned run.

    Only `step_update`, which counts optimizer steps, is changed: whatever count it is given, the
    schedule stands where the progress of the run is. All else, such as `step`, which counts
    epochs, is the scheduler's own.

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
        self.scheduler.step_update(reached, metric)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)
