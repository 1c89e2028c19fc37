"""InfoBatch's multi-level variant: keep ratios by quantile of the score.

They are those of the authors' code (0.25 below the 20th percentile, 0.5 to the 85th, 1 above)
whatever `--prune-ratio` says.
"""

from __future__ import annotations

from infobatch import InfoBatch
from infobatch.lab.arm import Arm, ArmContext, ArmRun
from infobatch.policies import PAPER_QUANTILES


def start(context: ArmContext) -> ArmRun:
    """InfoBatch with the authors' keep ratios and the comparison's delta."""
    pruner = InfoBatch(
        context.dataset_size,
        context.epochs,
        delta=context.delta,
        quantiles=PAPER_QUANTILES,
        seed=context.seed,
    )
    return ArmRun(context.epochs, pruner)


ARM = Arm(
    name="infobatch-quantile",
    description="InfoBatch, keep ratios by score quantile",
    start=start,
)
