"""Entropy: the samples whose predicted distribution is widest (DeepCore, 2204.08499)."""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence, highest


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """Keep the highest -sum p log p."""
    p = evidence.probabilities.astype(np.float64)
    return highest(evidence, -(p * np.log(np.maximum(p, 1e-30))).sum(axis=1), keep)
