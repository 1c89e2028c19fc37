"""EL2N: the samples with the largest error at the output.

Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021, arXiv 2107.07075.
"""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence, highest


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """Keep the highest ||softmax - onehot||_2."""
    return highest(evidence, np.linalg.norm(evidence.errors, axis=1), keep)
