"""What policies around another policy share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import Memory, Policy, Request, Visits
from infobatch._core.selection import Selection


@dataclass(frozen=True, eq=False)
class Wrapper(Policy):
    """Asks another policy and changes its answer; in all else it is as that policy is.

    Attributes:
        policy: the policy that is asked.
    """

    policy: Policy

    def select(self, request: Request) -> Selection:
        """The answer of the policy inside."""
        return self.policy.select(request)

    @property
    def takes_budget(self) -> bool:
        """As the policy inside."""
        return self.policy.takes_budget

    @property
    def needs_budget(self) -> bool:
        """As the policy inside."""
        return self.policy.needs_budget

    @property
    def reads_probability(self) -> bool:
        """As the policy inside."""
        return self.policy.reads_probability

    def bounds(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """As the policy inside."""
        return self.policy.bounds(scores)

    @property
    def columns(self) -> Mapping[str, float]:
        """Those of the policy inside."""
        return self.policy.columns

    def min_keep(self, num_samples: int) -> int:
        """As the policy inside."""
        return self.policy.min_keep(num_samples)

    def remember(self, memory: Memory, visits: Visits) -> None:
        """As the policy inside."""
        self.policy.remember(memory, visits)
