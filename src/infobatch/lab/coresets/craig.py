"""CRAIG: samples whose gradients stand for those of all, with weights.

Mirzasoleiman, Bilmes and Leskovec, Coresets for Data-efficient Training of Machine Learning Models,
ICML 2020, arXiv 1906.01827.
"""

from __future__ import annotations

import numpy as np

from infobatch.lab.coresets.evidence import Coreset, Evidence, squared_distances
from infobatch.lab.coresets.submodular import facility_location


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """Facility location on gradients within each class; a weight is the size of one's cluster.

    The gradient is that at the logits, a bound of all others up to a constant (section 3.2 there).
    """
    errors = evidence.errors
    indices, weights = [], []
    for rows, quota in evidence.quotas(keep):
        distance = np.sqrt(squared_distances(errors[rows], errors[rows]))
        chosen = facility_location(distance.max() - distance, quota)
        nearest = chosen[np.argmin(distance[:, chosen], axis=1)]
        nearest[chosen] = chosen  # of equal gradients each stands for itself
        sizes = np.bincount(nearest, minlength=len(rows))[chosen]
        indices.append(rows[chosen])
        weights.append(sizes.astype(np.float64))
    weight = np.concatenate(weights)
    return Coreset(np.concatenate(indices).astype(np.int64), weight / weight.mean())
