"""Planning an epoch, against the least that numpy can do it with."""

from __future__ import annotations

import numpy as np
from contestants import PRUNE_RATIO, Ours, Theirs
from reference import Reference
from timing import Effort, Samples, interleave, timed

AHEAD = "infobatch, order made beforehand"


def planning(size: int, reference: Reference | None, effort: Effort) -> Samples:
    """Seconds to plan a pruned epoch of `size` samples: the order, and the weight of each.

    "numpy floor" draws one random mask and one permutation, and does nothing with them.
    """
    rng = np.random.default_rng(0)
    ours = Ours(size, pruned=True)

    def floor() -> tuple[object, object]:
        return rng.random(size) < PRUNE_RATIO, rng.permutation(size)

    contestants = {
        "numpy floor": lambda: timed(floor),
        "infobatch": ours.plan,
        AHEAD: lambda: ours.plan(ahead=True),
    }
    if reference is not None:
        contestants["reference"] = Theirs(reference, size).plan
    return interleave(contestants, effort)
