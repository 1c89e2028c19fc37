"""Margin: the samples between two classes (DeepCore, 2204.08499)."""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence, highest


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """Keep the smallest difference between the two highest probabilities."""
    two = np.sort(evidence.probabilities.astype(np.float64), axis=1)[:, -2:]
    return highest(evidence, two[:, 0] - two[:, -1], keep)
