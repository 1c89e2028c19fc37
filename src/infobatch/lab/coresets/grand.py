"""GraNd: the samples with the largest gradient norm (arXiv 2107.07075)."""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence, highest


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """Keep the highest norms of the last layer's gradient, ||p - y|| * sqrt(||h||^2 + 1).

    The paper takes all layers; the last one alone needs no backward pass per sample.
    """
    inputs = (evidence.features.astype(np.float64) ** 2).sum(axis=1) + 1.0
    return highest(evidence, np.linalg.norm(evidence.errors, axis=1) * np.sqrt(inputs), keep)
