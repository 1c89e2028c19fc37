"""Methods that cover or represent each class, by distances of features or of outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from infobatch.lab.coresets.evidence import Coreset, Evidence, squared_distances
from infobatch.policies.groups import shares

BINS = 10
"""Of DQ."""


def herding(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """In each class, add the sample that brings the mean of the chosen nearest to the class's.

    Welling, Herding Dynamical Weights to Learn, ICML 2009.
    """
    chosen = []
    for rows, quota in evidence.quotas(keep):
        x = evidence.features[rows].astype(np.float64)
        mean = x.mean(axis=0)
        half_squares = 0.5 * (x * x).sum(axis=1)
        total = np.zeros_like(mean)
        free = np.ones(len(rows), dtype=bool)
        for count in range(1, quota + 1):
            # ||mean - (total + x) / count||^2, but for what all candidates share
            cost = half_squares / count - x @ (mean - total / count)
            best = int(np.argmin(np.where(free, cost, np.inf)))
            free[best] = False
            total += x[best]
        chosen.append(rows[~free])
    return Coreset.of(chosen)


def k_center(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """K-Center greedy: in each class, add the sample farthest from all chosen, in features.

    Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach,
    ICLR 2018, arXiv 1708.00489.
    """
    features = evidence.features

    def distances(rows: NDArray[np.intp], one: int) -> NDArray[np.float32]:
        return squared_distances(features[rows], features[one : one + 1])[:, 0]

    return _farthest_first(evidence, keep, rng, distances)


def contextual_diversity(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """K-Center greedy with the symmetric Kullback-Leibler divergence of the softmax outputs.

    Agarwal et al., Contextual Diversity for Active Learning, ECCV 2020, arXiv 2008.05723.
    """
    p = evidence.probabilities.astype(np.float64) + 1e-12
    log_p = np.log(p)

    def divergences(rows: NDArray[np.intp], one: int) -> NDArray[np.float32]:
        # sum (p - q) (log p - log q), which is KL(p, q) + KL(q, p)
        difference = (p[rows] - p[one]) * (log_p[rows] - log_p[one])
        sums: NDArray[np.float32] = np.maximum(difference.sum(axis=1), 0.0, dtype=np.float32)
        return sums

    return _farthest_first(evidence, keep, rng, divergences)


def _farthest_first(
    evidence: Evidence,
    keep: int,
    rng: np.random.Generator,
    distances: Callable[[NDArray[np.intp], int], NDArray[np.float32]],
) -> Coreset:
    """Greedy cover of each class, from a random first sample; (rows (M,), one row) -> (M,)."""
    chosen = []
    for rows, quota in evidence.quotas(keep):
        newest = int(rng.integers(len(rows)))
        nearest = np.full(len(rows), np.inf)
        for _ in range(quota):
            nearest = np.minimum(nearest, distances(rows, int(rows[newest])))
            nearest[newest] = -1.0  # chosen
            newest = int(np.argmax(nearest))
        chosen.append(rows[nearest < 0])
    return Coreset.of(chosen)


def dq(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """DQ, dataset quantization: bins of each class by graph cut gain, and a draw from all alike.

    The first bins hold what is representative of the class, the last what is left, so a draw
    from each is more diverse than either end. Zhou et al., Dataset Quantization, ICCV 2023, arXiv
    2308.10524; patches are not dropped, as the paper does besides.
    """
    chosen = []
    for rows, quota in evidence.quotas(keep):
        x = evidence.features[rows]
        distance = squared_distances(x, x)
        ranking = graph_cut(distance.max() - distance, len(rows))
        bins = np.array_split(rows[ranking], min(BINS, quota))
        parts = shares(quota, np.array([len(part) for part in bins]))
        for part, count in zip(bins, parts.tolist(), strict=True):
            chosen.append(rng.choice(part, size=count, replace=False))
    return Coreset.of(chosen)


def graph_cut(similarity: NDArray[np.float32], keep: int) -> NDArray[np.int64]:
    """Maximise sum of similarities to what is not chosen, minus those among the chosen; greedy.

    Takes a symmetric matrix (M, M); returns (keep,) columns in the order of choice.
    """
    gains = similarity.sum(axis=0, dtype=np.float64)
    free = np.ones(len(similarity), dtype=bool)
    chosen = np.empty(keep, dtype=np.int64)
    for place in range(keep):
        best = int(np.argmax(np.where(free, gains, -np.inf)))
        chosen[place], free[best] = best, False
        gains -= 2.0 * similarity[:, best]
    return chosen
