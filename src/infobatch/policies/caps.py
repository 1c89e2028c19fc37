"""A cap on the weights of any policy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from infobatch._core.policy import Request
from infobatch._core.selection import Selection
from infobatch._core.validation import check_at_least
from infobatch.policies.wrapper import Wrapper


@dataclass(frozen=True, eq=False)
class CappedWeights(Wrapper):
    """Let no weight of a policy exceed a bound.

    A large weight lets one sample move the model far. A cap takes that away and makes the policy
    biased: a sample kept with probability p counts p * max_weight < 1 of its due.

    Attributes:
        policy: the policy to ask.
        max_weight: at least 1.
    """

    max_weight: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_weight", check_at_least("max_weight", self.max_weight, 1.0))

    def select(self, request: Request) -> Selection:
        """The policy's selection with its weights cut."""
        selection = self.policy.select(request)
        weights = np.minimum(selection.weights, self.max_weight)
        if np.array_equal(weights, selection.weights):
            return selection
        return replace(selection, weights=weights)
