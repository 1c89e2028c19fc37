"""UCB: the samples with the highest upper confidence bound of their loss (arXiv 2111.12621)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import Memory
from infobatch._core.thinning import descending, lowest
from infobatch._core.validation import check_at_least
from infobatch.policies.rivals.hardest import HardestSamples


@dataclass(frozen=True)
class UCB(HardestSamples):
    """Keep the samples with the highest mean + c * sqrt(variance) of their loss.

    Attributes:
        c: how much a loss that moves counts, at least 0.
    """

    c: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "c", check_at_least("c", self.c, 0.0))

    def choose(self, memory: Memory, keep: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """The highest bounds; samples without a loss come before all."""
        bound = memory["mean"] + np.float32(self.c) * np.sqrt(memory["variance"])
        return lowest(descending(bound), keep, rng)[0]
