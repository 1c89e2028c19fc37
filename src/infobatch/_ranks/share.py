"""Share: what one rank trains on of an epoch plan, padding included."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infobatch._core.plan import EpochPlan, IndexArray


@dataclass(frozen=True, eq=False)
class Share:
    """What one rank trains on of an epoch plan, from some plan position on.

    The plan is the same on all W ranks, and rank r takes positions first + r, first + r + W, ...
    Or each rank has a plan of the samples that it owns, and takes all of it. Either way every
    rank gets equally many samples: one that has fewer trains on samples of the plan a second
    time, with weight 0, and their losses are not recorded: padding. A step is the mean over the
    samples that are not padding, as in one process: see `divisor`.

    Attributes:
        plan: the plan.
        first: plan position of this share's first sample.
        stride: W, or 1 for a plan of the rank's own.
        counts: (W,) samples of each rank that are not padding.
        rank: 0 to W - 1.
        before: how many samples a rank has had of this epoch before this share; alike on all ranks.
    """

    plan: EpochPlan
    first: int
    stride: int
    counts: NDArray[np.int64]
    rank: int
    before: float = 0.0

    @classmethod
    def of_common_plan(cls, plan: EpochPlan, start: int, rank: int, world_size: int) -> Share:
        """The share of a rank where all ranks have the same plan."""
        left = len(plan) - start
        counts = (left - np.arange(world_size) + world_size - 1) // world_size
        counts = np.maximum(counts, 0)
        return cls(plan, start + rank, world_size, counts, rank, start / world_size)

    @classmethod
    def of_own_plan(
        cls, plan: EpochPlan, start: int, rank: int, counts: NDArray[np.int64], before: float = 0.0
    ) -> Share:
        """The share of a rank where each has a plan of its own."""
        return cls(plan, start, 1, counts, rank, before)

    def __len__(self) -> int:
        return self._length

    @cached_property
    def _length(self) -> int:
        return int(self.counts.max())

    @cached_property
    def _unpadded(self) -> int:
        return int(self.counts.min())  # up to here no rank has padding

    @cached_property
    def own(self) -> int:
        """How many samples of this share are not padding."""
        return int(self.counts[self.rank])

    @cached_property
    def is_one_of_several(self) -> bool:
        """Whether there are other ranks."""
        return len(self.counts) > 1

    def position(self, index: int) -> int:
        """Plan position up to which all ranks have come after `index` samples each."""
        base = self.first if self.stride == 1 else self.first - self.rank
        return min(base + index * self.stride, len(self.plan))

    def rows(self, start: int, stop: int) -> IndexArray:
        """Rows of the score table of this share's samples start to stop, padding included."""
        counted = self.counted_rows(start, stop)
        padding = stop - start - len(counted)
        if padding == 0:
            return counted
        again = self.first + np.arange(stop - padding, stop) * self.stride
        return np.concatenate([counted, self.plan.order[again % len(self.plan)]])

    def counted_rows(self, start: int, stop: int) -> IndexArray:
        """The same without padding; a view."""
        stop = max(start, min(stop, self.own))
        first = self.first + start * self.stride
        return self.plan.order[first : first + (stop - start) * self.stride : self.stride]

    def counts_of_padding(self) -> Counter[int]:
        """Of each row that is padding of this share: how often the share has it besides."""
        padding = self.rows(self.own, len(self)).tolist()
        if not padding:
            return Counter()
        own = self.counted_rows(0, self.own)
        times = Counter(own[np.isin(own, padding)].tolist())
        return Counter({row: times[row] for row in padding})

    def ids(self, start: int, stop: int) -> IndexArray:
        """The data set's numbers of this share's samples start to stop, padding included."""
        return self.plan.samples.ids(self.rows(start, stop))

    def weights(
        self, start: int, stop: int, dtype: type[np.floating[Any]] = np.float64
    ) -> NDArray[np.floating[Any]]:
        """The weights of this share's samples start to stop, 0 for padding; a copy."""
        weights = self.plan.selection.weights_of(self.counted_rows(start, stop), dtype)
        padding = stop - start - len(weights)
        return np.concatenate([weights, np.zeros(padding, dtype)]) if padding else weights

    def divisor(self, start: int, stop: int) -> float | None:
        """What the sum of a step's weighted losses is divided by; None: its length.

        The mean over ranks of (sum of weight * loss) / divisor is then the mean over all samples
        of the step that are not padding.
        """
        if stop <= self._unpadded:
            return None
        counted = np.clip(self.counts - start, 0, stop - start).sum()
        return float(counted) / len(self.counts)
