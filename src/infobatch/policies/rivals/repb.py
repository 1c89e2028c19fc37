"""RePB: prune below the mean of the sample's own batch (ICLR 2026)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infobatch._core.policy import Memory, Policy, Request, Visits
from infobatch._core.selection import Selection
from infobatch._core.thinning import lowest
from infobatch._core.validation import check_fraction


@dataclass(frozen=True)
class RePB(Policy):
    """Compare a loss with the mean of its batch, and leave out what lies below it at random.

    A sample whose last loss was below the mean of the batch that it came in is dropped with
    probability rho, and taken again in a later epoch with probability 1 - rho; so in each epoch
    it is kept with probability 1 - rho. A kept sample weighs epochs / times: how many epochs
    there were, this one included, over in how many of them it was selected.

    With a given number to keep, rho is solved for; where the samples below their mean are too
    few, those least above it follow.

    The weights are those of a realised frequency and not of a probability: a sample's total
    weight over the run tends to the number of epochs, but a single epoch is not unbiased.

    Attributes:
        drop_probability: rho in [0, 1).
    """

    drop_probability: float = 0.5

    def __post_init__(self) -> None:
        rho = check_fraction("drop_probability", self.drop_probability, below_one=True)
        object.__setattr__(self, "drop_probability", rho)

    @property
    def columns(self) -> dict[str, float]:
        """`above`: last loss minus the mean of its batch; `times` selected."""
        return {"above": float("nan"), "times": 0.0}

    def remember(self, memory: Memory, visits: Visits) -> None:
        """Compare each score with the mean of the finite ones of its batch."""
        rows, scores, batches, trained = visits
        starts = np.cumsum([0, *batches[:-1]])
        finite = np.isfinite(scores)
        sums = np.add.reduceat(np.where(finite, scores, 0.0).astype(np.float64), starts)
        means = sums / np.maximum(np.add.reduceat(finite.astype(np.int64), starts), 1)
        memory["above"][rows] = scores - np.repeat(means, batches).astype(np.float32)
        if trained:
            np.add.at(memory["times"], rows, np.float32(1.0))

    def select(self, request: Request) -> Selection:
        """Drop among those below their window's mean."""
        memory, rng, num_samples = request.memory, request.rng, len(request)
        above = memory["above"]
        below = above < 0  # False where nothing is known
        if request.keep is None:
            dropped = below & (rng.random(num_samples) < self.drop_probability)
            if dropped.all():
                dropped[int(rng.integers(num_samples))] = False
        else:
            order = np.where(below, np.float32(-1.0), np.where(np.isfinite(above), above, np.inf))
            dropped, _ = lowest(order, num_samples - request.keep, rng)
        weights = np.where(dropped, 0.0, (request.epoch + 1) / (memory["times"] + 1.0))
        return Selection(weights)
