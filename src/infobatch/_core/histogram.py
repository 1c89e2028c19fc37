"""A histogram of scores that adds up over parts of a data set, and quantiles read off it."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from infobatch._core.scores import FloatArray

_BIN_BITS = 16  # sign, exponent and the first 7 bits of the significand of a float32
NUM_BINS = 1 << _BIN_BITS


def histogram(scores: FloatArray) -> NDArray[np.float64]:
    """Counts (2**16,) of the finite scores, in bins that add up over parts of a data set.

    A bin holds the float32 numbers that share their upper 16 bits, so its width is at most
    2**-7 of its values, whatever their range, which need not be known beforehand.
    """
    counts = np.zeros(NUM_BINS)
    for start in range(0, len(scores), 1 << 20):  # in pieces: the keys would take 8 bytes a score
        part = scores[start : start + (1 << 20)]
        counts += np.bincount(bins_of(part[np.isfinite(part)]), minlength=NUM_BINS)
    return counts


def bins_of(scores: FloatArray) -> NDArray[np.uint16]:
    """The bin (N,) of each of these finite scores, as `histogram` counts them."""
    bins: NDArray[np.uint16] = (_sortable(scores) >> np.uint32(32 - _BIN_BITS)).astype(np.uint16)
    return bins


@functools.cache
def bin_middles() -> NDArray[np.float64]:
    """The middle (2**16,) of each bin, read-only; NaN for those that no finite score is in."""
    starts = np.arange(NUM_BINS, dtype=np.uint32) << np.uint32(32 - _BIN_BITS)
    middles = _unsortable(starts | np.uint32(1 << (31 - _BIN_BITS)))
    middles.flags.writeable = False
    return middles


def bin_end(number: int) -> float:
    """The number that all scores of a bin lie below."""
    start = np.array([(number + 1) << (32 - _BIN_BITS)], dtype=np.uint32)
    return float(_unsortable(start)[0])


def histogram_quantiles(counts: NDArray[np.float64], fractions: list[float]) -> list[float]:
    """Quantiles of the scores that a histogram was made of; NaN if there is none.

    Interpolated within a bin as if its scores were spread evenly over it. The value is within
    one bin of the exact quantile, which is a relative error of at most 2**-7.

    Args:
        counts: (2**16,) as `histogram` returns them, or a sum of such.
        fractions: each in [0, 1].
    """
    total = counts.sum()
    if not total:
        return [float("nan")] * len(fractions)
    upto = np.cumsum(counts)
    found = []
    for fraction in fractions:
        place = fraction * (total - 1)
        number = int(np.searchsorted(upto, place, side="right"))
        inside = (place - (upto[number] - counts[number]) + 0.5) / counts[number]
        low, high = bin_end(number - 1), bin_end(number)
        found.append(low + min(inside, 1.0) * (high - low))
    return found


def _sortable(scores: FloatArray) -> NDArray[np.uint32]:
    """Integers in the same order as these finite numbers."""
    bits = np.ascontiguousarray(scores).view(np.uint32)
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))


def _unsortable(keys: NDArray[np.uint32]) -> NDArray[np.float64]:
    """The numbers that these integers of `_sortable` stand for, the largest finite ones beyond."""
    bits = np.where(keys >> np.uint32(31), keys ^ np.uint32(1 << 31), ~keys)
    largest = np.finfo(np.float32).max
    with np.errstate(invalid="ignore"):  # keys that no number has
        numbers: NDArray[np.float64] = bits.view(np.float32).clip(-largest, largest).astype(float)
    return numbers
