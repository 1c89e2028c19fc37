"""InfoBatch (Qin et al., 2024, arXiv 2303.04947): mean, quantile, budget, and what can be added."""

from __future__ import annotations

from infobatch import InfoBatch
from infobatch.lab.arms.base import Arm, ArmContext, ArmRun, exact_arm, exact_run
from infobatch.lab.errors import LabError
from infobatch.policies import PAPER_QUANTILES, BudgetThreshold, QuantileThresholds


def mean(context: ArmContext) -> ArmRun:
    """The paper's: the threshold is the mean score; the comparison's prune ratio and delta."""
    pruner = InfoBatch(
        context.dataset_size,
        context.epochs,
        context.prune_ratio,
        delta=context.delta,
        seed=context.seed,
    )
    return ArmRun(context.epochs, pruner)


def quantile(context: ArmContext) -> ArmRun:
    """The authors' keep ratios (0.25 below the 20th percentile, 0.5 to the 85th, 1 above).

    At a cost that is given, all prune ratios are scaled alike to meet it.
    """
    if context.cost is not None:
        return exact_run(context, QuantileThresholds(), "infobatch-quantile")
    pruner = InfoBatch(
        context.dataset_size,
        context.epochs,
        delta=context.delta,
        quantiles=PAPER_QUANTILES,
        seed=context.seed,
    )
    return ArmRun(context.epochs, pruner)


def groups(context: ArmContext) -> ArmRun:
    """The prune ratio is solved for in every epoch and within each class."""
    if context.labels is None:
        raise LabError("infobatch-groups needs a task whose samples belong to classes")
    return exact_run(context, BudgetThreshold(), "infobatch-groups", groups=context.labels)


def batch_level(context: ArmContext) -> ArmRun:
    """BLS (arXiv 2604.04681): only the batch's mean loss is known; scores are running means."""
    return exact_run(context, BudgetThreshold(), "bls", score_ema=0.8, batch_mean=True)


ARM = (
    Arm("infobatch", "InfoBatch, pruning below the mean score", mean, cost="own"),
    Arm("infobatch-quantile", "InfoBatch, keep ratios by score quantile", quantile, cost="either"),
    exact_arm(
        "infobatch-budget",
        "InfoBatch, prune ratio solved for the cost",
        lambda _: BudgetThreshold(),
        family="dynamic",
    ),
    Arm("infobatch-groups", "infobatch-budget within each class", groups, family="extras"),
    Arm("bls", "infobatch-budget where only batch means are known", batch_level, family="dynamic"),
)
