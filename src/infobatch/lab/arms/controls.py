"""What any saving is compared with: full data, and full data for fewer epochs at the same cost."""

from __future__ import annotations

import math

from infobatch import DataPruner
from infobatch.lab.arms.base import Arm, ArmContext, ArmRun
from infobatch.policies import RS2, FullData


def full(context: ArmContext) -> ArmRun:
    """A pruner that keeps everything: a shuffled epoch, weights of one."""
    pruner = DataPruner(context.dataset_size, context.epochs, FullData(), seed=context.seed)
    return ArmRun(context.epochs, pruner)


def fewer_epochs(context: ArmContext) -> ArmRun:
    """As many passes over the data as the cost pays for, in epochs of equal length.

    Where that is no whole number, each epoch is a little shorter than the data and goes on where
    the one before has stopped: 3.5 passes are 4 epochs of 0.875. One short epoch among whole ones
    would distort the learning rate schedule, which is built for these epochs: compressed, not cut
    off.
    """
    passes = context.told_cost * context.epochs
    epochs = max(1, math.ceil(passes - 1e-9))
    pruner = DataPruner(
        context.dataset_size,
        epochs,
        RS2(),
        delta=1.0,
        warmup_epochs=0,
        seed=context.seed,
        budget=min(1.0, passes / epochs),
    )
    return ArmRun(epochs, pruner)


ARM = (
    Arm("full", "full data every epoch", full, cost="own"),
    Arm(
        "fewer-epochs",
        "full data, for as many epochs as the cost pays for",
        fewer_epochs,
        family="controls",
    ),
)
