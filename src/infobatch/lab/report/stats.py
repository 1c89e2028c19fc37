"""Paired differences between arms: Student's t interval and the non-inferiority verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """The mean of d_i = arm_i - reference_i over n seeds, and its confidence interval.

    The interval is mean ± t(0.975, n-1) * s / sqrt(n), with s the sample standard deviation of
    the d_i (n-1 in the denominator). Pairing removes what a seed does to both arms alike.
    `low` and `high` are None for n = 1, which tells nothing of the spread.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int

    def verdict(self, margin: float) -> str:
        """Non-inferior, inferior or undecided against a margin stated beforehand.

        Non-inferior: the whole interval lies above -margin. Inferior: the whole interval lies
        below it. Otherwise the seeds do not decide it.
        """
        if self.low is None or self.high is None:
            return "undecided (1 seed)"
        if self.low > -margin:
            return "non-inferior"
        if self.high < -margin:
            return "inferior"
        return "undecided"


def paired_difference(arm: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """Compare two arms; entry i of both comes from the same seed."""
    differences = np.asarray(arm, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    pairs = len(differences)
    mean = float(differences.mean())
    if pairs == 1:
        return PairedDifference(mean, None, None, pairs)
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, pairs - 1))
    half = quantile * float(differences.std(ddof=1)) / math.sqrt(pairs)
    return PairedDifference(mean, mean - half, mean + half, pairs)


def sample_std(values: Sequence[float]) -> float | None:
    """Sample standard deviation, with n-1 in the denominator; None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
