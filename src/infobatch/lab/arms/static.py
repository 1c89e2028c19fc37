"""Static pruning: a proxy run, a coreset by what it has shown, and the whole run on that."""

from __future__ import annotations

from functools import partial

from infobatch import DataPruner
from infobatch.lab.arms.base import FORWARD_COST, Arm, ArmContext, ArmRun, Proxy
from infobatch.lab.coresets import METHODS, Coreset
from infobatch.policies import FullData

PROXY_PART = 0.1
"""Epochs of the proxy run over those of the full run."""


def start(context: ArmContext, *, method: str, name: str) -> ArmRun:
    """The proxy's epochs and its scoring pass come off the cost; the rest pays for the coreset.

    Refused where the proxy alone costs more than the run may.
    """
    epochs = 0 if method == "random" else max(1, round(PROXY_PART * context.epochs))
    spent = epochs + (FORWARD_COST if epochs else 0.0)
    part = context.told_cost - spent / context.epochs
    if part < 0.02:
        raise context.refuse(name, spent / context.epochs + 0.02)
    keep = min(context.dataset_size, round(part * context.dataset_size))

    def pruner(coreset: Coreset) -> DataPruner:
        return DataPruner(
            context.dataset_size,
            context.epochs,
            coreset.policy,
            warmup_epochs=0,
            delta=1.0,
            seed=context.seed,
        )

    stand_in = DataPruner(context.dataset_size, max(1, epochs), FullData(), seed=context.seed)
    return ArmRun(context.epochs, stand_in, proxy=Proxy(epochs, method, keep, pruner))


ARM = tuple(
    Arm(
        f"static-{method}",
        f"a coreset chosen once: {method}",
        partial(start, method=method, name=f"static-{method}"),
        family="static",
    )
    for method in METHODS
)
