"""Methods that choose a batch from a pool, after a forward pass over all of it, which they pay."""

from __future__ import annotations

from functools import partial

from infobatch import BatchPruner, DataPruner
from infobatch.lab.arms.base import FORWARD_COST, Arm, ArmContext, ArmRun, InBatch
from infobatch.policies import (
    ES,
    BatchPolicy,
    FullData,
    ImportanceSampling,
    SelectiveBackprop,
)


def start(context: ArmContext, *, policy: BatchPolicy, name: str, by_error: bool = False) -> ArmRun:
    """Full epochs, of which a part is trained on; with InfoBatch's warm-up and annealing.

    Refused where the forward passes alone cost more than the run may.
    """
    active = context.pruned()
    keep_ratio = context.part_of_pruned_epochs(active) - FORWARD_COST
    if keep_ratio <= 0.01:
        full = context.epochs - len(active)
        raise context.refuse(name, (full + len(active) * (FORWARD_COST + 0.01)) / context.epochs)
    pruner = DataPruner(context.dataset_size, context.epochs, FullData(), seed=context.seed)
    in_batch = BatchPruner(context.dataset_size, policy, seed=context.seed)
    chosen = InBatch(in_batch, min(1.0, keep_ratio), active, by_error)
    return ArmRun(context.epochs, pruner, in_batch=chosen)


def _arm(name: str, description: str, policy: BatchPolicy, *, by_error: bool = False) -> Arm:
    run = partial(start, policy=policy, name=name, by_error=by_error)
    return Arm(name, description, run, family="in-batch")


ARM = (
    _arm("selective-backprop", "trains on the high losses of each batch", SelectiveBackprop()),
    _arm(
        "importance-sampling",
        "draws from each batch by gradient norm, with inverse weights",
        ImportanceSampling(),
        by_error=True,
    ),
    _arm("es", "ES: draws from each batch by smoothed loss", ES()),
)
