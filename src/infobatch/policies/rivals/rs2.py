"""RS2: repeated random sampling, the control that is hard to beat.

Okanovic et al., Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning,
ICLR 2024, arXiv 2305.18424.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infobatch._core.policy import Memory, Policy, Request, Visits
from infobatch._core.selection import Selection
from infobatch._core.thinning import lowest, rounded
from infobatch._core.validation import check_fraction


@dataclass(frozen=True)
class RS2(Policy):
    """A new random subset each epoch, weight 1, whatever the scores.

    Without replacement an epoch is the next slice of a permutation of the data, and a new
    permutation follows when it is used up: no sample is seen k + 1 times before all have been
    seen k times, so that a run at ratio r is full data for a fraction r of the epochs, in epochs
    of another length. With replacement each epoch's subset is drawn from all samples (no sample
    twice in one epoch).

    Biased: nothing is rescaled, so the gradient of an epoch is smaller; with the subset being
    uniform it is so for all samples alike, which is the same as fewer steps.

    Attributes:
        keep_ratio: fraction of the samples in each epoch, in (0, 1].
        replacement: draw each epoch's subset independently of those before.
    """

    keep_ratio: float = 0.5
    replacement: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_ratio", check_fraction("keep_ratio", self.keep_ratio))

    @property
    def columns(self) -> dict[str, float]:
        """`times`: in how many epochs a sample has been trained on."""
        return {} if self.replacement else {"times": 0.0}

    def remember(self, memory: Memory, visits: Visits) -> None:
        """Count the epochs in which a sample has been trained on."""
        if visits.trained and not self.replacement:
            np.add.at(memory["times"], visits.rows, np.float32(1.0))

    def select(self, request: Request) -> Selection:
        """Select at random among those that have been seen least often."""
        num_samples, keep = len(request), request.keep
        keep = rounded(self.keep_ratio, num_samples) if keep is None else keep
        never = np.zeros(num_samples, np.float32)
        times = never if self.replacement else request.memory["times"]
        return Selection.of(lowest(times, keep, request.rng)[0])
