"""The other dynamic methods, as published, but for how many samples they keep.

Each is told how many, so that all cost the same; what that changes is in its method card. None
anneals unless its paper does. All but RS2 start with one full epoch, which gives them scores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from infobatch.lab.arm import WARMUP_EPOCHS, Arm, ArmContext, ArmRun, exact_run
from infobatch.policies import (
    IES,
    RS2,
    UCB,
    CappedWeights,
    EpsilonGreedy,
    Kakurenbo,
    OrderDP,
    Policy,
    RePB,
    SeTa,
)

_LARGEST_STEP = 2.0  # of KAKURENBO: its learning-rate rule where it hides more than half


def start(
    context: ArmContext,
    *,
    policy: Callable[[ArmContext], Policy],
    name: str,
    warmup_epochs: int,
    refresh: bool,
) -> ArmRun:
    """A policy without annealing."""
    return exact_run(
        context, policy(context), name, delta=1.0, warmup_epochs=warmup_epochs, refresh=refresh
    )


def _seta(context: ArmContext) -> Policy:
    return SeTa(random_from=context.pruned().stop)


def _period(context: ArmContext) -> int:
    """Epochs between two choices: 10 in runs of 200, as the authors of InfoBatch ran them."""
    return max(1, round(context.epochs / 20))


def _arm(
    name: str,
    description: str,
    policy: Callable[[ArmContext], Policy],
    *,
    warmup_epochs: int = WARMUP_EPOCHS,
    refresh: bool = False,
) -> Arm:
    run = partial(start, policy=policy, name=name, warmup_epochs=warmup_epochs, refresh=refresh)
    return Arm(name, description, run, family="dynamic")


ARM = (
    _arm(
        "rs2",
        "RS2: slices of one permutation after the other",
        lambda _: RS2(),
        warmup_epochs=0,
    ),
    _arm(
        "rs2-replacement",
        "RS2: a new random subset each epoch",
        lambda _: RS2(replacement=True),
        warmup_epochs=0,
    ),
    _arm(
        "ucb",
        "the highest upper bounds of the loss",
        lambda context: UCB(every=_period(context)),
    ),
    _arm(
        "epsilon-greedy",
        "the highest losses, and some at random",
        lambda context: EpsilonGreedy(every=_period(context)),
    ),
    _arm(
        "kakurenbo",
        "hides the lowest losses; what is hidden is passed forward",
        lambda _: CappedWeights(Kakurenbo(), _LARGEST_STEP),
        refresh=True,
    ),
    _arm("seta", "SeTa: a window of difficulty that slides", _seta),
    _arm("orderdp", "the highest losses of a random pool", lambda _: OrderDP()),
    _arm("repb", "RePB: prunes below the mean of the batch", lambda _: RePB()),
    _arm(
        "ies",
        "leaves out where the loss has stopped moving; what is left out is passed forward",
        lambda _: IES(),
        refresh=True,
    ),
)
