"""IES: leave out samples whose loss has stopped moving.

Yuan et al., Instance-dependent Early Stopping, ICLR 2025, arXiv 2502.07547.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infobatch._core.policy import Memory, Policy, Request, Visits
from infobatch._core.selection import Selection
from infobatch._core.thinning import ascending, lowest
from infobatch._core.validation import check_at_least


@dataclass(frozen=True)
class IES(Policy):
    """Leave a sample out while the second difference of its loss is small.

    With losses l(t) of successive looks at a sample, d(t) = l(t) - 2 l(t-1) + l(t-2). A sample
    is left out while the mean of |d| over the last three is below the tolerance. It can come
    back, because what is left out is to be passed forward after the epoch:
    `pruner.rescore(hidden, losses)` with `hidden = pruner.plan.pruned` from before the epoch.

    With a given number to keep, the flattest are left out, whatever the tolerance; a sample that
    has not been looked at five times has no mean yet and is left out last.

    Biased, and not rescaled.

    Attributes:
        tolerance: at least 0. 1e-3 in the paper.
    """

    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "tolerance", check_at_least("tolerance", self.tolerance, 0.0))

    @property
    def columns(self) -> dict[str, float]:
        """The last two losses, and the last three absolute second differences."""
        names = ("loss", "loss_before", "change", "change_before", "change_before_that")
        return dict.fromkeys(names, float("nan"))

    def remember(self, memory: Memory, visits: Visits) -> None:
        """Shift the losses and their differences by one look."""
        for now, loss in visits.each_once():
            last, before = memory["loss"][now], memory["loss_before"][now]
            memory["change_before_that"][now] = memory["change_before"][now]
            memory["change_before"][now] = memory["change"][now]
            with np.errstate(invalid="ignore"):
                memory["change"][now] = np.abs(loss - 2 * last + before)
            memory["loss_before"][now] = last
            memory["loss"][now] = loss

    def select(self, request: Request) -> Selection:
        """Leave out the flat ones, but keep at least one."""
        memory, keep, num_samples = request.memory, request.keep, len(request)
        changes = (memory["change"], memory["change_before"], memory["change_before_that"])
        with np.errstate(invalid="ignore"):
            flatness = ascending(sum(changes, np.float32(0.0)) / np.float32(3.0))
        drop = num_samples - keep if keep is not None else None
        if drop is None:
            drop = min(int(np.count_nonzero(flatness < self.tolerance)), num_samples - 1)
        dropped, _ = lowest(flatness, drop, request.rng)
        return Selection.of(~dropped)
