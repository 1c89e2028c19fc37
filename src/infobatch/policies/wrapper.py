"""What policies around another policy share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import (
    AnyPolicy,
    ExactPolicy,
    Memory,
    MemoryPolicy,
    Selection,
    is_exact,
    is_native,
    reads_probability,
    selection_of,
)
from infobatch._core.scores import FloatArray


@dataclass(frozen=True, eq=False)
class Wrapper:
    """A `MemoryPolicy` that asks another policy, of any kind, and changes its answer.

    Attributes:
        policy: the policy that is asked.
    """

    policy: AnyPolicy

    @property
    def columns(self) -> Mapping[str, float]:
        """Those of the policy inside."""
        return self.policy.columns if isinstance(self.policy, MemoryPolicy) else {}

    @property
    def is_native(self) -> bool:
        """As the policy inside."""
        return is_native(self.policy)

    @property
    def is_exact(self) -> bool:
        """As the policy inside."""
        return is_exact(self.policy)

    @property
    def reads_probability(self) -> bool:
        """As the policy inside."""
        return reads_probability(self.policy)

    def min_keep(self, num_samples: int) -> int:
        """As the policy inside."""
        inside = self.policy
        return (
            inside.min_keep(num_samples) if isinstance(inside, (ExactPolicy, MemoryPolicy)) else 1
        )

    def remember(
        self,
        memory: Memory,
        rows: NDArray[np.integer[Any]],
        scores: FloatArray,
        batches: list[int],
        *,
        trained: bool,
    ) -> None:
        """Hand on."""
        if isinstance(self.policy, MemoryPolicy):
            self.policy.remember(memory, rows, scores, batches, trained=trained)

    def select_from(
        self,
        memory: Memory,
        scores: FloatArray,
        keep: int | None,
        epoch: int,
        rng: np.random.Generator,
    ) -> Selection:
        """The answer of the policy inside."""
        return selection_of(self.policy, memory, scores, keep, epoch, rng)
