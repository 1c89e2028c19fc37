"""Full data for fewer epochs at InfoBatch's cost: the control that any saving has to beat.

The learning rate schedule is built for these epochs, so that it is compressed, not cut off.
"""

from __future__ import annotations

from infobatch import DataPruner
from infobatch.lab.arm import Arm, ArmContext, ArmRun
from infobatch.policies import FullData


def start(context: ArmContext) -> ArmRun:
    """Full data for the number of epochs nearest to InfoBatch's cost, at least one."""
    epochs = max(1, round(context.equal_cost_samples / context.dataset_size))
    pruner = DataPruner(context.dataset_size, epochs, FullData(), seed=context.seed)
    return ArmRun(epochs, pruner)


ARM = Arm(
    name="fewer-epochs",
    description="full data, as many epochs as cost what InfoBatch did",
    start=start,
    equal_cost=True,
)
