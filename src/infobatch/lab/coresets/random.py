"""Random: the baseline of all static pruning."""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """A uniform draw within each class."""
    chosen = [rng.choice(rows, size=quota, replace=False) for rows, quota in evidence.quotas(keep)]
    return Coreset(np.sort(np.concatenate(chosen)).astype(np.int64))
