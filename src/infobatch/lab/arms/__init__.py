"""The arms: each file but `base` defines `ARM`, one of them or a tuple of a family."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infobatch.lab.arms.base import Arm
from infobatch.lab.errors import LabError
from infobatch.lab.registry import discover

REFERENCE = "full"
"""The arm that every other is compared with."""
COST = "infobatch"
"""The arm whose realised cost the others match where no cost is given."""
FEWER_EPOCHS = "fewer-epochs"
"""The line to beat."""
DEFAULT = (REFERENCE, FEWER_EPOCHS, COST, "infobatch-quantile", "proportional", "random")
"""What a comparison runs if nothing else is asked for."""


def all_arms() -> dict[str, Arm]:
    """Every arm by its name, the reference first."""
    arms = discover(sys.modules[__name__], "ARM", Arm)
    return {REFERENCE: arms.pop(REFERENCE), **arms}


def families() -> dict[str, list[str]]:
    """Names of arms by the name that stands for several of them; `all` is every one."""
    arms = all_arms()
    names = sorted({arm.family for arm in arms.values() if arm.family})
    members = {name: [arm.name for arm in arms.values() if arm.family == name] for name in names}
    return {**members, "all": list(arms)}


def base_name(name: str) -> str:
    """The name of an arm without the settings behind it: that under which `all_arms` has it."""
    return name.partition("+")[0]


def expand(names: Sequence[str]) -> list[str]:
    """The names with those of arms in place of families'."""
    groups = families()
    return [arm for name in names for arm in groups.get(name, [name])]


def choose_arms(names: Sequence[str], *, costs: Sequence[float] = ()) -> list[Arm]:
    """The named arms in running order, and the `infobatch` arm if others need its cost.

    Names are of arms or families; an arm's settings may stand behind its name, as in
    `name+setting=value`. With costs, as given by `--cost`, no arm needs another's.
    """
    arms = all_arms()
    chosen: dict[str, Arm] = {}
    for name in expand(names):
        base, *words = name.split("+")
        if base not in arms:
            raise LabError(
                f"unknown arm {name!r}; choose from: {', '.join(arms)}; or one of the families "
                f"{', '.join(families())}"
            )
        chosen[name] = arms[base].with_settings(words) if words else arms[base]
    if not costs and any(arm.cost == "told" for arm in chosen.values()):
        chosen[COST] = arms[COST]
    place = list(arms)
    return sorted(
        chosen.values(), key=lambda arm: (arm.cost == "told", place.index(base_name(arm.name)))
    )
