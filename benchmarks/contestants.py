"""What runs against each other: one epoch of infobatch, of torch's RandomSampler, of the reference.

Every contestant's timed part ends with the epoch; what it needs beforehand, such as the scores
that an earlier epoch would have left, is put in place outside the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reference import Reference, one_pass
from timing import cpu_clock
from torch.utils.data import BatchSampler, RandomSampler

from infobatch import InfoBatch
from infobatch.distributed import Communicator

PRUNE_RATIO = 0.5
WEIGHTS_AT_ONCE = 8192


def half_below_mean(size: int) -> NDArray[np.float32]:
    """Scores (N,) of which half lie below their mean, in random order."""
    return np.random.default_rng(0).normal(2.0, 0.5, size).astype(np.float32)


class Ours:
    """A pruner that can be put back, outside the clock, to just before an epoch.

    Args:
        size: N.
        pruned: whether that epoch prunes half of the samples below the mean, or nothing.
        ranks: the other ranks, if the pruner is to hold the shard of one of them, of `size`.
    """

    def __init__(self, size: int, *, pruned: bool, ranks: Communicator | None = None) -> None:
        world_size = 1 if ranks is None else ranks.world_size
        warmup = 1 if pruned else 3
        self.pruner = InfoBatch(
            size * world_size, 3, PRUNE_RATIO, delta=1.0, warmup_epochs=warmup,
            process_group=ranks, sharded=ranks is not None,
        )  # fmt: skip
        scores = torch.from_numpy(half_below_mean(size))
        for batch in BatchSampler(self.pruner.sampler, max(1, size // 64), drop_last=False):
            self.pruner.update(scores[torch.tensor(batch) // world_size])
        self._before = self.pruner.state_dict()

    def rewind(self, *, ahead: bool = False) -> InfoBatch:
        """The pruner before the epoch, which it has not planned yet.

        `ahead`: with the epoch's order, as the epoch before has had it made beforehand.
        """
        pruner = self.pruner
        pruner.load_state_dict(self._before)
        # A sharded pruner plans when the epoch before ends, and has its plan in its state.
        pruner._run.plan_anew()
        if ahead:
            pruner._run.planner.order_ahead(pruner.epoch)
            pruner._run.planner.ahead.wait()
        return pruner

    def plan(self, *, ahead: bool = False) -> float:
        """Plan the epoch and look up all weights, in stretches as `update` does."""
        pruner = self.rewind(ahead=ahead)
        start = cpu_clock()
        share = pruner._run.prepare().share
        for position in range(0, len(share), WEIGHTS_AT_ONCE):
            share.weights(position, min(position + WEIGHTS_AT_ONCE, len(share)))
        return cpu_clock() - start

    def hand_out(self, batch_size: int, *, planned: bool) -> float:
        """Draw the epoch's batches, without updates."""
        pruner = self.rewind(ahead=True)
        if planned:
            _ = pruner.plan
        return draw_all(lambda: BatchSampler(pruner.sampler, batch_size, drop_last=False))

    def epoch(self, batch_size: int, losses: torch.Tensor) -> float:
        """Plan the epoch, draw its batches, update with each."""
        pruner = self.rewind(ahead=True)  # its own order is that of the next epoch
        start = cpu_clock()
        for batch in BatchSampler(pruner.sampler, batch_size, drop_last=False):
            pruner.update(losses if len(batch) == batch_size else losses[: len(batch)])
        return cpu_clock() - start


class Plain:
    """Plain shuffled training: RandomSampler, and the same multiply and mean in every step."""

    def __init__(self, size: int) -> None:
        self.sampler = RandomSampler(range(size))

    def hand_out(self, batch_size: int) -> float:
        """Draw the epoch's batches, its permutation included."""
        return draw_all(lambda: BatchSampler(self.sampler, batch_size, drop_last=False))

    def epoch(self, batch_size: int, losses: torch.Tensor) -> float:
        """Draw the epoch's batches; multiply and mean for each."""
        weights = torch.ones_like(losses)
        start = cpu_clock()
        for batch in BatchSampler(self.sampler, batch_size, drop_last=False):
            if len(batch) == batch_size:
                (losses * weights).mean()
            else:
                (losses[: len(batch)] * weights[: len(batch)]).mean()
        return cpu_clock() - start


class Theirs:
    """The public reference, in one process, with the same scores before every epoch."""

    def __init__(self, reference: Reference, size: int) -> None:
        self._scores = torch.from_numpy(half_below_mean(size))
        self.pruner: Any = reference.pruner(self._scores)
        self.sampler: Any = self.pruner.sampler

    def rewind(self) -> None:
        """Put the scores back; its weights are part of its plan."""
        self.pruner.scores.copy_(self._scores)

    def plan(self) -> float:
        """Plan the epoch: a list of indices and a weight for every sample."""
        self.rewind()
        start = cpu_clock()
        iter(self.sampler)
        return cpu_clock() - start

    def hand_out(self, batch_size: int) -> float:
        """Plan the epoch and draw its batches, without updates."""
        self.rewind()
        return draw_all(lambda: BatchSampler(one_pass(self.sampler), batch_size, drop_last=False))

    def epoch(self, batch_size: int) -> float:
        """Plan the epoch, draw its batches, update with each.

        Its update scales the losses that it is given in place; zeros survive that. The indices
        come back to it with the data, as the tensor that collating a batch of (index, item)
        makes; making that tensor is part of its step.
        """
        self.rewind()
        losses = torch.zeros(batch_size)
        start = cpu_clock()
        for batch in BatchSampler(one_pass(self.sampler), batch_size, drop_last=False):
            self.pruner.set_active_indices(torch.tensor(batch))
            self.pruner.update(losses if len(batch) == batch_size else losses[: len(batch)])
        return cpu_clock() - start


def draw_all(loader: Callable[[], BatchSampler]) -> float:
    """Seconds to set up a BatchSampler and draw all its batches."""
    start = cpu_clock()
    for _ in loader():
        pass
    return cpu_clock() - start
