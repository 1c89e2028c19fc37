"""A whole epoch of indices and losses, without a model: planning, handing out, updates."""

from __future__ import annotations

import torch
from contestants import Ours, Plain, Theirs
from reference import Reference
from timing import Effort, Samples, interleave, wall_clock
from torch.utils.data import BatchSampler


def epochs(size: int, batch_size: int, reference: Reference | None, effort: Effort) -> Samples:
    """Seconds for an epoch of planning, BatchSampler, and an update or multiply-and-mean a batch.

    Args:
        size: N, the samples of a full epoch; a pruned one has a quarter fewer.
        batch_size: samples a batch.
        reference: measured too if given.
        effort: how long to measure.
    """
    losses = torch.rand(batch_size)
    pruned, full, plain = Ours(size, pruned=True), Ours(size, pruned=False), Plain(size)
    contestants = {
        "RandomSampler": lambda: plain.epoch(batch_size, losses),
        "infobatch": lambda: pruned.epoch(batch_size, losses),
        "infobatch, full epoch": lambda: full.epoch(batch_size, losses),
    }
    if reference is not None:
        theirs = Theirs(reference, size)
        contestants["reference"] = lambda: theirs.epoch(batch_size)
    return interleave(contestants, effort)


def handing_out(size: int, batch_size: int, reference: Reference | None, effort: Effort) -> Samples:
    """Seconds to draw an epoch's batches through BatchSampler, without any update.

    The full epoch of infobatch hands out exactly what RandomSampler does: a permutation.
    """
    pruned, full, plain = Ours(size, pruned=True), Ours(size, pruned=False), Plain(size)
    contestants = {
        "RandomSampler": lambda: plain.hand_out(batch_size),
        "infobatch": lambda: pruned.hand_out(batch_size, planned=False),
        "infobatch, full epoch": lambda: full.hand_out(batch_size, planned=False),
        "infobatch, already planned": lambda: pruned.hand_out(batch_size, planned=True),
    }
    if reference is not None:
        theirs = Theirs(reference, size)
        contestants["reference"] = lambda: theirs.hand_out(batch_size)
    return interleave(contestants, effort)


def pauses(size: int, effort: Effort) -> Samples:
    """Seconds of wall time between two epochs: from the last loss of one to the first batch.

    In a pruned run, whose losses have to be taken in and whose epoch has to be planned, and with
    RandomSampler, which draws a permutation.
    """
    ours, plain, batch_size = Ours(size, pruned=True), Plain(size), 4096
    losses = torch.rand(batch_size)

    def infobatch() -> float:
        pruner = ours.rewind()
        epoch = BatchSampler(pruner.sampler, batch_size, drop_last=True)
        last = len(epoch) - 1
        for number, batch in enumerate(epoch):
            if number == last:
                pruner._run.planner.ahead.wait()  # no model has left it the time
                start = wall_clock()
            pruner.update(losses[: len(batch)])
        next(iter(epoch))
        return wall_clock() - start

    def random_sampler() -> float:
        start = wall_clock()
        next(iter(BatchSampler(plain.sampler, batch_size, drop_last=True)))
        return wall_clock() - start

    return interleave({"RandomSampler": random_sampler, "infobatch": infobatch}, effort)
