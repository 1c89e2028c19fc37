"""Full data for fewer epochs at the same cost: the control that any saving has to beat.

The learning rate schedule is built for these epochs, so that it is compressed, not cut off.
"""

from __future__ import annotations

import math

from infobatch import DataPruner
from infobatch.lab.arm import Arm, ArmContext, ArmRun
from infobatch.policies import RandomSubset


def start(context: ArmContext) -> ArmRun:
    """Full data for as many epochs as the cost pays for; the first is short by what is left over.

    It is the first because every later one then has all samples, the last among them.
    """
    paid = context.told_cost * context.epochs
    epochs = max(1, math.ceil(paid - 1e-9))
    pruner = DataPruner(
        context.dataset_size,
        epochs,
        RandomSubset(rescale=False),
        delta=1 / epochs,
        warmup_epochs=0,
        seed=context.seed,
        budget=min(1.0, paid / epochs),
    )
    return ArmRun(epochs, pruner)


ARM = Arm(
    name="fewer-epochs",
    description="full data, for as many epochs as the cost pays for",
    start=start,
    family="controls",
)
