"""The family around proportional sampling, each of its parts to be set: docs/research-log.md."""

from __future__ import annotations

from typing import cast

from infobatch._core.budget import RatioSchedule
from infobatch.lab.arms.base import WARMUP_EPOCHS, Arm, ArmContext, ArmRun, exact_run
from infobatch.lab.errors import LabError
from infobatch.policies import CappedWeights, Policy, ProportionalSampling
from infobatch.policies.proportional import Bound

DEFAULTS = ProportionalSampling()


def start(
    context: ArmContext,
    *,
    bound: str = DEFAULTS.bound,
    power: float = DEFAULTS.power,
    floor: float = DEFAULTS.floor,
    exponent: float = DEFAULTS.exponent,
    ceiling: float = DEFAULTS.ceiling,
    rescale: float = DEFAULTS.rescale,
    cap: float = 0.0,
    ema: float = 0.0,
    schedule: str = "constant",
    delta: float = -1.0,
    warmup: float = WARMUP_EPOCHS,
) -> ArmRun:
    """The policy with these settings; a cap of 0: none; delta -1: the comparison's."""
    try:
        policy: Policy = ProportionalSampling(
            cast(Bound, bound), power, floor, exponent, ceiling, bool(rescale)
        )
        if cap:
            policy = CappedWeights(policy, cap)
    except ValueError as error:
        raise LabError(f"proportional: {error}") from error
    return exact_run(
        context,
        policy,
        "proportional",
        delta=None if delta < 0 else delta,
        warmup_epochs=int(warmup),
        score_ema=ema,
        ratio_schedule=cast(RatioSchedule, schedule),
    )


ARM = Arm(
    "proportional",
    "leaves out what is learned: DataPruner with a budget",
    start,
    family="dynamic",
    settings=start.__kwdefaults__ or {},
)
