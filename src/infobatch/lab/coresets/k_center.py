"""K-Center greedy: samples that cover the feature space.

Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach,
ICLR 2018, arXiv 1708.00489.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from infobatch.lab.coresets.evidence import Coreset, Evidence, squared_distances


def select(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """In each class, add the sample that is farthest from all chosen; Euclidean, in features."""
    features = evidence.features

    def distances(rows: NDArray[np.intp], one: int) -> NDArray[np.float32]:
        return squared_distances(features[rows], features[one : one + 1])[:, 0]

    return farthest_first(evidence, keep, rng, distances)


def farthest_first(
    evidence: Evidence,
    keep: int,
    rng: np.random.Generator,
    distances: Callable[[NDArray[np.intp], int], NDArray[np.float32]],
) -> Coreset:
    """Greedy cover of each class, from a random first sample.

    Args:
        evidence: of the samples.
        keep: how many to choose.
        rng: draws the first of each class.
        distances: (rows (M,), one row) -> distances (M,).
    """
    chosen = []
    for rows, quota in evidence.quotas(keep):
        newest = int(rng.integers(len(rows)))
        nearest = np.full(len(rows), np.inf)
        for _ in range(quota):
            nearest = np.minimum(nearest, distances(rows, int(rows[newest])))
            nearest[newest] = -1.0  # chosen
            newest = int(np.argmax(nearest))
        chosen.append(rows[nearest < 0])
    return Coreset(np.sort(np.concatenate(chosen)).astype(np.int64))
