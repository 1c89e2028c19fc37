"""InfoBatch as the paper has it: the threshold is the mean score (Qin et al., 2024, 2303.04947)."""

from __future__ import annotations

from infobatch import InfoBatch
from infobatch.lab.arm import Arm, ArmContext, ArmRun


def start(context: ArmContext) -> ArmRun:
    """InfoBatch with the comparison's prune ratio and delta."""
    pruner = InfoBatch(
        context.dataset_size,
        context.epochs,
        context.prune_ratio,
        context.delta,
        seed=context.seed,
    )
    return ArmRun(context.epochs, pruner)


ARM = Arm(name="infobatch", description="InfoBatch, pruning below the mean score", start=start)
