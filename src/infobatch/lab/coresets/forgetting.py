"""Forgetting: the samples that were learned and lost again most often.

Toneva et al., An Empirical Study of Example Forgetting, ICLR 2019, arXiv 1812.05159.
"""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence, highest


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """Keep the most forgetting events; a sample never classified correctly counts as most."""
    correct = evidence.correct
    events = (correct[:-1] & ~correct[1:]).sum(axis=0).astype(np.float64)
    events[~correct.any(axis=0)] = len(correct)
    ties = rng.random(len(events)) * 0.5  # many have equally many: in random order
    return highest(evidence, events + ties, keep)
