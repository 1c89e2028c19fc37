"""Full data: what everything is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import Policy, Request
from infobatch._core.scores import FloatArray
from infobatch._core.selection import Selection


@dataclass(frozen=True)
class FullData(Policy):
    """Keep every sample in every epoch, weight 1: plain shuffled training."""

    takes_budget = False

    def select(self, request: Request) -> Selection:
        """Select all samples."""
        return Selection.full(len(request))

    def summarise(self, scores: FloatArray) -> NDArray[np.float64]:
        """It looks at no scores."""
        return np.empty(0)
