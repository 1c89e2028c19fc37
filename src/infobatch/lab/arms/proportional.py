"""The family around proportional sampling, each of its parts to be set: docs/research-log.md."""

from __future__ import annotations

from typing import cast

from infobatch.lab.arm import WARMUP_EPOCHS, Arm, ArmContext, ArmRun, exact_run
from infobatch.lab.errors import LabError
from infobatch.policies import AgedScores, AnyPolicy, CappedWeights, ProportionalSampling
from infobatch.policies.proportional import Bound
from infobatch.schedule import RatioSchedule

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
    half_life: float = 0.0,
    ema: float = 0.0,
    schedule: str = "constant",
    delta: float = -1.0,
    warmup: float = WARMUP_EPOCHS,
) -> ArmRun:
    """The policy with these settings; a cap or half-life of 0: none; delta -1: the comparison's."""
    try:
        policy: AnyPolicy = ProportionalSampling(
            cast(Bound, bound), power, floor, exponent, ceiling, bool(rescale)
        )
        if cap:
            policy = CappedWeights(policy, cap)
        if half_life:
            policy = AgedScores(policy, half_life)
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
    "what is learned is left out: what InfoBatch does with a budget",
    start,
    family="dynamic",
    settings=start.__kwdefaults__ or {},
)
