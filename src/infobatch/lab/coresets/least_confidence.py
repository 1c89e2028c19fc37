"""Least confidence: the samples whose likeliest class is least likely (DeepCore, 2204.08499)."""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence, highest


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """Keep the highest 1 - max p."""
    return highest(evidence, 1.0 - evidence.probabilities.max(axis=1), keep)
