"""The arms: one file each, and each file defines `ARM`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infobatch.lab.arm import Arm
from infobatch.lab.registry import choose, discover

REFERENCE = "full"
"""The arm that every other is compared with."""
COST = "infobatch"
"""The arm whose realised cost the equal-cost arms spend."""


def all_arms() -> dict[str, Arm]:
    """Every arm by its name, the reference first."""
    arms = discover(sys.modules[__name__], "ARM", Arm)
    return {REFERENCE: arms.pop(REFERENCE), **arms}


def choose_arms(names: Sequence[str]) -> list[Arm]:
    """The named arms in running order, and the `infobatch` arm if one of them needs its cost.

    Raises:
        LabError: a name is unknown.
    """
    arms = all_arms()
    chosen = {name: choose(name, arms, what="arm") for name in names}
    if any(arm.equal_cost for arm in chosen.values()):
        chosen[COST] = arms[COST]
    place = list(arms)
    return sorted(chosen.values(), key=lambda arm: (arm.equal_cost, place.index(arm.name)))
