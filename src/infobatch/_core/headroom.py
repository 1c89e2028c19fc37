"""Whether choosing samples can pay: how much their gradients differ, and whether that lasts.

Both figures are of every k-th sample, so that they cost nothing with large data sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infobatch._core.scores import FloatArray

Bounds = Callable[[NDArray[np.float64]], NDArray[np.float64]]

NO_HEADROOM = 0.05  # below, choosing samples cannot pay
_OF_BOUNDS, _OF_RANKS = 1 << 16, 1 << 10


def some_of(scores: FloatArray, most: int = _OF_RANKS) -> FloatArray:
    """A copy of every k-th of the scores (N,), so that there are at most so many."""
    some: FloatArray = scores[:: _step(len(scores), most)].copy()
    return some


def nothing_of(count: int) -> FloatArray:
    """What `some_of` so many scores is where they are not known: NaN."""
    return np.full(len(range(0, count, _step(count, _OF_RANKS))), np.nan, dtype=np.float32)


def _step(count: int, most: int) -> int:
    return -(-max(1, count) // most)


@dataclass(frozen=True, eq=False)
class Headroom:
    """Sums from which headroom and rank correlation come; those of several ranks add up.

    Attributes:
        sums: (5,) of bounds on the samples' gradients their number, their sum and that of their
            squares; the number of samples scored twice, and as often their rank correlation.
    """

    sums: NDArray[np.float64]

    @classmethod
    def of(cls, before: FloatArray, now: FloatArray, bounds: Bounds) -> Headroom:
        """That of an epoch with `some_of` the scores before, and all scores (N,) now."""
        known = some_of(now, _OF_BOUNDS).astype(np.float64)
        b = bounds(np.maximum(known[np.isfinite(known)], 0.0))
        now = some_of(now)
        twice = np.isfinite(before) & np.isfinite(now) & (before != now)
        count = int(np.count_nonzero(twice))
        correlation = rank_correlation(before[twice], now[twice]) if count > 2 else 0.0
        count = count if count > 2 else 0
        sums = len(b), b.sum(), np.square(b).sum(), count, count * correlation
        return cls(np.array(sums, dtype=np.float64))

    @property
    def headroom(self) -> float:
        """1 - mean(b)^2 / mean(b^2) of the bounds b, in [0, 1]; NaN without any.

        The part of the gradients' second moment that sampling in proportion to b would remove: how
        much the best choice of samples can gain.
        """
        count, total, squares = self.sums[:3].tolist()
        return max(0.0, 1.0 - total * total / (count * squares)) if squares > 0.0 else math.nan

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of the samples' scores and those before, in [-1, 1]; NaN where none has two.

        Of samples that have been looked at anew. At 0 the scores tell nothing of the next ones.
        """
        count, total = self.sums[3:].tolist()
        return total / count if count else math.nan


def rank_correlation(one: FloatArray, other: FloatArray) -> float:
    """Spearman's, of (K,) and (K,) numbers; 0 where all are equal."""
    ranks = [_ranks(values) for values in (one, other)]
    first, second = (values - values.mean() for values in ranks)
    size = float(np.sqrt(np.square(first).sum() * np.square(second).sum()))
    return float((first * second).sum()) / size if size else 0.0


def _ranks(values: FloatArray) -> NDArray[np.float64]:
    """The place of each number in their order; equal ones have their mean place."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: NDArray[np.float64] = last - (counts - 1) / 2
    return means[inverse]
