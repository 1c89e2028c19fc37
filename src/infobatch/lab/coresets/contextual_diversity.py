"""Contextual diversity (CD): samples whose predicted distributions differ.

Agarwal et al., Contextual Diversity for Active Learning, ECCV 2020, arXiv 2008.05723.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infobatch.lab.coresets.evidence import Coreset, Evidence
from infobatch.lab.coresets.k_center import farthest_first


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """K-Center greedy with the symmetric Kullback-Leibler divergence of the softmax outputs."""
    p = evidence.probabilities.astype(np.float64) + 1e-12
    log_p = np.log(p)

    def divergences(rows: NDArray[np.intp], one: int) -> NDArray[np.float32]:
        # sum (p - q) (log p - log q), which is KL(p, q) + KL(q, p)
        difference = (p[rows] - p[one]) * (log_p[rows] - log_p[one])
        sums: NDArray[np.float32] = np.maximum(difference.sum(axis=1), 0.0, dtype=np.float32)
        return sums

    return farthest_first(evidence, keep, rng, divergences)
