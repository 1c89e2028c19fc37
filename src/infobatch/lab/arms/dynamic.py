"""The other dynamic methods, as published, but for how many samples they keep.

Each is told how many, so that all cost the same; what that changes is in its method card. None
anneals unless its paper does. All but RS2 start with one full epoch, which gives them scores.
"""

from __future__ import annotations

from functools import partial

from infobatch import DataPruner
from infobatch.lab.arms.base import WARMUP_EPOCHS, Arm, ArmContext, ArmRun, exact_arm, exact_run
from infobatch.policies import (
    IES,
    RS2,
    UCB,
    AlignPrune,
    BudgetThreshold,
    CappedWeights,
    DataDropout,
    EpsilonGreedy,
    Kakurenbo,
    OrderDP,
    RandomSubset,
    RePB,
    SeTa,
)

_LARGEST_STEP = 2.0  # of KAKURENBO: its learning-rate rule where it hides more than half


def _period(context: ArmContext) -> int:
    """Epochs between two choices: 10 in runs of 200, as the authors of InfoBatch ran them."""
    return max(1, round(context.epochs / 20))


def data_dropout(context: ArmContext, *, at_random: bool) -> ArmRun:
    """The last epoch is full; what each epoch leaves out is passed forward, and paid for."""
    pruner = DataPruner(
        context.dataset_size,
        context.epochs,
        DataDropout(at_random=at_random),
        delta=(context.epochs - 1) / context.epochs,
        warmup_epochs=WARMUP_EPOCHS,
        seed=context.seed,
    )
    return ArmRun(context.epochs, pruner, refresh=True)


dbpd = partial(data_dropout, at_random=False)
smrd = partial(data_dropout, at_random=True)


def srd(context: ArmContext) -> ArmRun:
    """gamma**t of the data in epoch t, gamma such that the run costs what it should."""
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        gamma = (low + high) / 2
        cost = sum(gamma**epoch for epoch in range(context.epochs)) / context.epochs
        low, high = (gamma, high) if cost < context.told_cost else (low, gamma)
    return exact_run(
        context,
        RandomSubset(rescale=False),
        "srd",
        delta=1.0,
        warmup_epochs=0,
        ratio_schedule=lambda u: 1.0 - high ** int(u * context.epochs),
    )


def pods(context: ArmContext) -> ArmRun:
    """Phases of a tenth of the run, in turns with three times and a half of what is saved."""

    def phase(u: float) -> float:
        return 1.5 if int(10 * u) % 2 else 0.5

    return exact_run(context, BudgetThreshold(), "pods", ratio_schedule=phase)


_arm = partial(exact_arm, family="dynamic", delta=1.0)

ARM = (
    _arm("rs2", "RS2: slices of one permutation after the other", lambda _: RS2(), warmup_epochs=0),
    _arm(
        "rs2-replacement",
        "RS2: a new random subset each epoch",
        lambda _: RS2(replacement=True),
        warmup_epochs=0,
    ),
    _arm("ucb", "the highest upper bounds of the loss", lambda run: UCB(every=_period(run))),
    _arm(
        "epsilon-greedy",
        "the highest losses, and some at random",
        lambda run: EpsilonGreedy(every=_period(run)),
    ),
    _arm(
        "kakurenbo",
        "hides the lowest losses; what is hidden is passed forward",
        lambda _: CappedWeights(Kakurenbo(), _LARGEST_STEP),
        refresh=True,
    ),
    _arm(
        "seta",
        "SeTa: a window of difficulty that slides",
        lambda run: SeTa(random_from=run.pruned().stop),
    ),
    _arm("orderdp", "the highest losses of a random pool", lambda _: OrderDP()),
    _arm("repb", "RePB: prunes below the mean of the batch", lambda _: RePB()),
    _arm("align-prune", "InfoBatch by how losses go with those of others", lambda _: AlignPrune()),
    Arm("dbpd", "only what the model is not sure of; all is passed forward", dbpd, cost="own"),
    Arm("smrd", "as many samples as dbpd, at random", smrd, cost="own"),
    Arm(
        "srd", "a random part of the data, smaller by a factor in each epoch", srd, family="dynamic"
    ),
    Arm("pods", "infobatch-budget, in turns much and little of it", pods, family="dynamic"),
    _arm(
        "ies",
        "leaves out where the loss has stopped moving; what is left out is passed forward",
        lambda _: IES(),
        refresh=True,
    ),
)
