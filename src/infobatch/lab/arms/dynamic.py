"""The other dynamic methods, as published, but for how many samples they keep.

Each is told how many, so that all cost the same; what that changes is in its method card. None
anneals unless its paper does. All but RS2 start with one full epoch, which gives them scores.
"""

from __future__ import annotations

from functools import partial

from infobatch.lab.arms.base import ArmContext, exact_arm
from infobatch.policies import (
    IES,
    RS2,
    UCB,
    CappedWeights,
    EpsilonGreedy,
    Kakurenbo,
    OrderDP,
    RePB,
    SeTa,
)

_LARGEST_STEP = 2.0  # of KAKURENBO: its learning-rate rule where it hides more than half


def _period(context: ArmContext) -> int:
    """Epochs between two choices: 10 in runs of 200, as the authors of InfoBatch ran them."""
    return max(1, round(context.epochs / 20))


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
    _arm(
        "ies",
        "leaves out where the loss has stopped moving; what is left out is passed forward",
        lambda _: IES(),
        refresh=True,
    ),
)
