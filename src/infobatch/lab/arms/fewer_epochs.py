"""Full data for fewer epochs at the same cost: the control that any saving has to beat.

The learning rate schedule is built for these epochs, so that it is compressed, not cut off.
"""

from __future__ import annotations

import math

from infobatch import DataPruner
from infobatch.lab.arm import Arm, ArmContext, ArmRun
from infobatch.policies import RS2


def start(context: ArmContext) -> ArmRun:
    """As many passes over the data as the cost pays for, in epochs of equal length.

    Where that is no whole number, each epoch is a little shorter than the data and goes on where
    the one before has stopped: 3.5 passes are 4 epochs of 0.875. One short epoch among whole ones
    would be as large a part of the schedule as any other, and so distort it.
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


ARM = Arm(
    name="fewer-epochs",
    description="full data, for as many epochs as the cost pays for",
    start=start,
    family="controls",
)
