"""Random*: a fresh random subset every epoch, at InfoBatch's cost (Qin et al., 2024, Table 1).

With InfoBatch's own warm-up, rescale weights and annealing: what is left between the two is
whether the scores choose better than chance.
"""

from __future__ import annotations

from infobatch import DataPruner
from infobatch.lab.arm import Arm, ArmContext, ArmRun
from infobatch.policies import RandomSubset
from infobatch.schedule import pruned_epochs

WARMUP_EPOCHS = 1


def start(context: ArmContext) -> ArmRun:
    """A fresh random subset every pruned epoch, of the size that meets InfoBatch's cost."""
    policy = RandomSubset(prune_ratio=_equal_cost_ratio(context), rescale=True)
    pruner = DataPruner(
        context.dataset_size,
        context.epochs,
        policy,
        delta=context.delta,
        warmup_epochs=WARMUP_EPOCHS,
        seed=context.seed,
    )
    return ArmRun(context.epochs, pruner)


def _equal_cost_ratio(context: ArmContext) -> float:
    """The prune ratio that leaves out as many sample passes as InfoBatch did, spread evenly.

    InfoBatch leaves out less than all of every pruned epoch, so the ratio is below 1.
    """
    pruned = pruned_epochs(context.epochs, context.delta, WARMUP_EPOCHS)
    left_out = context.full_samples - context.equal_cost_samples
    return left_out / (len(pruned) * context.dataset_size) if left_out else 0.0


ARM = Arm(
    name="random",
    description="random subset every epoch, rescaled and annealed, at InfoBatch's cost",
    start=start,
    equal_cost=True,
)
