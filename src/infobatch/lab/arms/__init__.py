"""The arms: each file defines `ARM`, one of them or a tuple of a family."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infobatch.lab.arm import Arm
from infobatch.lab.errors import LabError
from infobatch.lab.registry import discover

REFERENCE = "full"
"""The arm that every other is compared with."""
COST = "infobatch"
"""The arm whose realised cost the others spend where no cost is given."""
FEWER_EPOCHS = "fewer-epochs"
"""The line to beat."""
DEFAULT = (REFERENCE, FEWER_EPOCHS, COST, "infobatch-quantile", "random")
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


def find_arm(name: str) -> Arm:
    """The arm of that name, with the settings that are written behind it: `name+setting=value`.

    Raises:
        LabError: there is no such arm, or it has no such settings.
    """
    base, *words = name.split("+")
    arms = all_arms()
    if base not in arms:
        raise LabError(
            f"unknown arm {name!r}; choose from: {', '.join(arms)}; or one of the families "
            f"{', '.join(families())}"
        )
    return arms[base].with_settings(words) if words else arms[base]


def choose_arms(names: Sequence[str], *, costs: Sequence[float] = ()) -> list[Arm]:
    """The named arms in running order, and the `infobatch` arm if others need its cost.

    Args:
        names: of arms or families; see `find_arm`.
        costs: as given by `--cost`; with them no arm needs another's.

    Raises:
        LabError: a name is unknown.
    """
    groups, place = families(), list(all_arms())
    chosen = {arm: find_arm(arm) for name in names for arm in groups.get(name, [name])}
    if not costs and any(arm.cost == "told" for arm in chosen.values()):
        chosen[COST] = find_arm(COST)
    return sorted(
        chosen.values(), key=lambda arm: (arm.cost == "told", place.index(arm.name.split("+")[0]))
    )
