"""Epsilon-greedy: mostly the hardest samples, and some at random (arXiv 2111.12621)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import Memory
from infobatch._core.thinning import descending, lowest
from infobatch._core.validation import check_fraction
from infobatch.policies.rivals.hardest import HardestSamples


@dataclass(frozen=True)
class EpsilonGreedy(HardestSamples):
    """Of k samples, (1 - epsilon) k are those with the highest mean loss, the rest random others.

    Attributes:
        epsilon: in [0, 1].
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "epsilon", check_fraction("epsilon", self.epsilon))

    def choose(self, memory: Memory, keep: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """The highest means, then a uniform draw from what is left."""
        explored = int(self.epsilon * keep + 0.5)
        kept, _ = lowest(descending(memory["mean"]), keep - explored, rng)
        others = np.flatnonzero(~kept)
        kept[rng.choice(others, size=explored, replace=False, shuffle=False)] = True
        return kept
