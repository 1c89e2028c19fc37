"""Herding: samples whose mean stays close to the mean of their class.

Welling, Herding Dynamical Weights to Learn, ICML 2009; as a coreset in DeepCore, 2204.08499.
"""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """In each class, add the sample that brings the mean of the chosen nearest to the class's."""
    chosen = []
    for rows, quota in evidence.quotas(keep):
        x = evidence.features[rows].astype(np.float64)
        mean = x.mean(axis=0)
        half_squares = 0.5 * (x * x).sum(axis=1)
        total = np.zeros_like(mean)
        free = np.ones(len(rows), dtype=bool)
        for count in range(1, quota + 1):
            # ||mean - (total + x) / count||^2, but for what all candidates share
            cost = half_squares / count - x @ (mean - total / count)
            best = int(np.argmin(np.where(free, cost, np.inf)))
            free[best] = False
            total += x[best]
        chosen.append(rows[~free])
    return Coreset(np.sort(np.concatenate(chosen)).astype(np.int64))
