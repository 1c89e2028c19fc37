"""ScoreTable: the last score of every sample; and sums, quantiles and comparisons of scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

_BLOCK = 1 << 15  # scores that stay in the cache


class ScoreTable:
    """The score of every sample: its loss when it was last trained on.

    A sample that an epoch leaves out keeps its old score (Qin et al. 2024, arXiv 2303.04947,
    section 3.2). With `ema` = a > 0 the score is the running mean a * score + (1 - a) * loss.

    Args:
        num_samples: size N of the data set.
        ema: a in [0, 1); 0 keeps the last loss alone.

    Attributes:
        values: (N,) float32. NaN: never seen. A non-finite loss is stored as it came, so that
            its sample counts as not yet known, is kept, and starts afresh at its next loss.
    """

    def __init__(self, num_samples: int, *, ema: float = 0.0) -> None:
        self.ema = ema
        self.values: FloatArray = np.full(num_samples, np.nan, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def has_any(self) -> bool:
        """Whether any sample has been seen."""
        return not bool(np.isnan(self.values).all())

    def record(self, indices: NDArray[np.integer], scores: FloatArray) -> None:
        """Take in the newest scores of some samples, in the order in which they were trained on.

        Args:
            indices: (M,) sample indices; may repeat, then each occurrence counts in its turn.
            scores: (M,) float32, may be non-finite.
        """
        indices = indices.astype(np.intp, copy=False)  # much the fastest to index with
        if self.ema == 0.0:
            self.values[indices] = scores  # the last of repeated indices wins
            return
        for piece in occurrences(indices):
            now, new = indices[piece], scores[piece]
            old = self.values[now]
            with np.errstate(invalid="ignore"):  # inf - inf, which is not usable
                mixed = np.float32(self.ema) * old + np.float32(1.0 - self.ema) * new
            usable = np.isfinite(old) & np.isfinite(new)
            self.values[now] = np.where(usable, mixed, new)


def occurrences(rows: NDArray[np.integer]) -> Iterator[NDArray[np.intp]]:
    """Positions in `rows`, such that no row comes twice in one piece and order is kept.

    Where no row repeats, the one piece is everything: what nearly always happens.
    """
    left = np.arange(len(rows))
    while len(left):
        _, first = np.unique(rows[left], return_index=True)
        if len(first) == len(left):
            yield left
            return
        first.sort()
        yield left[first]
        later = np.ones(len(left), dtype=bool)
        later[first] = False
        left = left[later]


def finite_sum(scores: FloatArray) -> tuple[float, float]:
    """Sum, in float64, and number of the finite scores.

    Float64 matters: a float32 mean of equal values often lies above them, which would put all
    of them below the mean. The sum of n equal float32 values is exact in float64 up to
    n = 2**29, and numpy sums on one thread in a fixed order, so the mean is reproducible.
    """
    with np.errstate(invalid="ignore"):  # inf - inf; seen to below
        total = float(scores.sum(dtype=np.float64))
    if np.isfinite(total):
        return total, float(len(scores))
    finite = scores[np.isfinite(scores)]
    return float(finite.sum(dtype=np.float64)), float(len(finite))


def finite_quantiles(scores: FloatArray, fractions: list[float]) -> list[float]:
    """Quantiles of the finite scores, linearly interpolated in float64; NaN if there is none.

    Args:
        scores: (N,) float32.
        fractions: each in [0, 1].
    """
    finite = scores[np.isfinite(scores)]
    if len(finite) == 0 or not fractions:
        return [float("nan")] * len(fractions)
    places = [fraction * (len(finite) - 1) for fraction in fractions]
    lower = [int(place) for place in places]
    upper = [min(low + 1, len(finite) - 1) for low in lower]
    finite.partition(sorted({*lower, *upper}))
    return [
        float(finite[low]) + (place - low) * (float(finite[high]) - float(finite[low]))
        for place, low, high in zip(places, lower, upper, strict=True)
    ]


def below(scores: FloatArray, threshold: float) -> NDArray[np.bool_]:
    """Mask (N,) of the finite scores strictly below a float64 threshold.

    Compared in float32 without rounding error: for a float32 score s and any threshold t,
    s < t holds exactly when s < u, with u the smallest float32 that is not below t.
    """
    with np.errstate(over="ignore"):  # beyond the largest float32 the bound is infinity
        bound = np.float32(threshold)
        if float(bound) < threshold:
            bound = np.nextafter(bound, np.float32(np.inf))
    mask = np.empty(len(scores), dtype=bool)
    for start in range(0, len(scores), _BLOCK):  # in pieces that stay in the cache
        part = scores[start : start + _BLOCK]
        np.less(part, bound, out=mask[start : start + _BLOCK])  # False for NaN
        mask[start : start + _BLOCK] &= part > -np.inf
    return mask
