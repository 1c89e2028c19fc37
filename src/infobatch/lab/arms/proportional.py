"""The family around proportional sampling, each of its parts to be set: docs/research-log.md."""

from __future__ import annotations

from typing import cast

from infobatch import DataPruner
from infobatch._core.budget import RatioSchedule
from infobatch.lab.arms.base import WARMUP_EPOCHS, Arm, ArmContext, ArmRun, exact_run
from infobatch.lab.errors import LabError
from infobatch.policies import CappedWeights, Policy, ProportionalSampling
from infobatch.policies.proportional import WITHOUT_BUDGET, Bound

DEFAULTS = ProportionalSampling()


def policy_of(
    *,
    bound: str = DEFAULTS.bound,
    power: float = DEFAULTS.power,
    floor: float = DEFAULTS.floor,
    exponent: float = DEFAULTS.exponent,
    ceiling: float = DEFAULTS.ceiling,
    rescale: float = DEFAULTS.rescale,
    tolerance: float = DEFAULTS.tolerance,
) -> Policy:
    """The policy with these settings."""
    try:
        return ProportionalSampling(
            cast(Bound, bound), power, floor, exponent, ceiling, bool(rescale), tolerance
        )
    except ValueError as error:
        raise LabError(f"proportional: {error}") from error


POLICY = policy_of.__kwdefaults__ or {}


def proportional(
    context: ArmContext,
    *,
    cap: float = 0.0,
    ema: float = 0.0,
    schedule: str = "constant",
    delta: float = -1.0,
    warmup: float = WARMUP_EPOCHS,
    **settings: float | str,
) -> ArmRun:
    """The policy with these settings; a cap of 0: none; delta -1: the comparison's."""
    policy = policy_of(**settings)  # type: ignore[arg-type]
    return exact_run(
        context,
        CappedWeights(policy, cap) if cap else policy,
        "proportional",
        delta=None if delta < 0 else delta,
        warmup_epochs=int(warmup),
        score_ema=ema,
        ratio_schedule=cast(RatioSchedule, schedule),
    )


def adaptive(
    context: ArmContext,
    *,
    ema: float = 0.0,
    delta: float = -1.0,
    warmup: float = WARMUP_EPOCHS,
    **settings: float | str,
) -> ArmRun:
    """The policy with these settings, without a budget; delta -1: the pruner's own."""
    pruner = DataPruner(
        context.dataset_size,
        context.epochs,
        policy_of(**{"floor": WITHOUT_BUDGET.floor, **settings}),  # type: ignore[arg-type]
        delta=None if delta < 0 else delta,
        warmup_epochs=int(warmup),
        score_ema=ema,
        seed=context.seed,
    )
    return ArmRun(context.epochs, pruner)


ARM = (
    Arm(
        "adaptive",
        "leaves out what hardly matters: DataPruner without a budget",
        adaptive,
        cost="own",
        settings={**POLICY, "floor": WITHOUT_BUDGET.floor, **(adaptive.__kwdefaults__ or {})},
    ),
    Arm(
        "proportional",
        "leaves out what is learned: DataPruner with a budget",
        proportional,
        family="dynamic",
        settings={**POLICY, **(proportional.__kwdefaults__ or {})},
    ),
)
