"""Full data every epoch: the reference."""

from __future__ import annotations

from infobatch import DataPruner
from infobatch.lab.arm import Arm, ArmContext, ArmRun
from infobatch.policies import FullData


def start(context: ArmContext) -> ArmRun:
    """A pruner that keeps everything: a shuffled epoch, weights of one."""
    pruner = DataPruner(context.dataset_size, context.epochs, FullData(), seed=context.seed)
    return ArmRun(context.epochs, pruner)


ARM = Arm(name="full", description="full data every epoch", start=start, cost="own")
