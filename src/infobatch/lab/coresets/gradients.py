"""Methods that match or follow the gradient of the whole training set."""

from __future__ import annotations

import heapq
import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp_gram

from infobatch.lab.coresets.evidence import Coreset, Evidence, squared_distances

LARGEST_WEIGHT = 10.0
"""Of GradMatch."""
ROUNDS, STEP = 10, 0.1
"""Of GLISTER."""


def craig(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """CRAIG: facility location on gradients in each class; weights are the sizes of clusters.

    Mirzasoleiman, Bilmes and Leskovec, Coresets for Data-efficient Training of Machine Learning
    Models, ICML 2020, arXiv 1906.01827. The gradient is that at the logits, a bound of all others
    up to a constant (section 3.2 there).
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
    return Coreset.weighted(indices, weights)


def facility_location(similarity: NDArray[np.float32], keep: int) -> NDArray[np.int64]:
    """Maximise sum_i max_{j chosen} similarity[i, j]: lazy greedy, (1 - 1/e) of the optimum.

    Takes a matrix (M, M) that is not negative; returns (keep,) columns in the order of choice.
    """
    columns = np.asfortranarray(similarity)
    best = np.zeros(len(columns), dtype=np.float32)
    heap = [(-float(gain), j) for j, gain in enumerate(columns.sum(axis=0, dtype=np.float64))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < keep:
        _, j = heapq.heappop(heap)
        gain = float(np.maximum(columns[:, j] - best, 0.0).sum(dtype=np.float64))
        if heap and gain < -heap[0][0]:  # gains only shrink, so an old one is an upper bound
            heapq.heappush(heap, (-gain, j))
        else:
            chosen.append(j)
            np.maximum(best, columns[:, j], out=best)
    return np.array(chosen, dtype=np.int64)


def grad_match(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """GradMatch: matching pursuit of each class's gradient sum, with non-negative weights.

    Killamsetty et al., GRAD-MATCH: Gradient Matching based Data Subset Selection for Efficient
    Deep Model Training, ICML 2021, arXiv 2103.00123.

    A pursuit can only use as many samples as the gradient has dimensions before it fits. So it
    runs in rounds, each over the samples that are left, until the quota is full; what no round can
    use is filled up at random. Each round stands for the whole gradient, so its weights are
    brought to mean 1, and none may be above 10: pursuits give single samples hundreds of times the
    weight of others, with which no training converges.
    """
    indices, weights = [], []
    for rows, quota in evidence.quotas(keep):
        found, weight = _match(evidence.gradients(rows), quota, rng)
        indices.append(rows[found])
        weights.append(weight)
    return Coreset.weighted(indices, weights)


def _match(
    gradients: NDArray[np.float32], quota: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rounds of orthogonal matching pursuit, each refitted with non-negative least squares."""
    atoms = gradients.astype(np.float64) / (float(np.abs(gradients).max()) or 1.0)
    target = atoms.sum(axis=0)
    free = np.arange(len(atoms))
    found: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float64]] = []
    left = quota
    while left:
        part = atoms[free]
        at_once = int(min(left, len(free), max(1, np.linalg.matrix_rank(part))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it has fitted before it was full
            pursued = orthogonal_mp_gram(part @ part.T, part @ target, n_nonzero_coefs=at_once)
        support = np.flatnonzero(np.atleast_1d(np.asarray(pursued)))
        fitted = nnls(part[support].T, target, maxiter=30 * len(support))[0] if len(support) else []
        positive = np.asarray(fitted) > 1e-9
        if not positive.any():
            break
        taken, fitted = support[positive], np.asarray(fitted)[positive]
        found.append(free[taken])
        weights.append(np.minimum(fitted / fitted.mean(), LARGEST_WEIGHT))
        free = np.delete(free, taken)
        left -= len(taken)
    if left:
        found.append(rng.choice(free, size=left, replace=False))
        weights.append(np.ones(left))
    return np.concatenate(found), np.concatenate(weights)


def glister(evidence: Evidence, keep: int, rng: np.random.Generator) -> Coreset:
    """GLISTER: greedy by the first-order gain in validation loss; the training set validates.

    Killamsetty et al., GLISTER: Generalization based Data Subset Selection for Efficient and
    Robust Learning, AAAI 2021, arXiv 2012.10630.

    The gain of a sample is the product of its gradient, of the last layer, with the validation
    gradient. After each tenth of the choice the validation gradient is taken anew, at where one
    step along the mean gradient of what has been chosen leads. Chosen within each class.
    """
    size, labels = len(evidence), evidence.labels
    inputs = np.concatenate([evidence.features, np.ones((size, 1), np.float32)], axis=1)
    inputs = inputs.astype(np.float64)
    logits = np.log(np.maximum(evidence.probabilities.astype(np.float64), 1e-30))
    onehot = np.zeros_like(logits)
    onehot[np.arange(size), labels] = 1.0
    errors = evidence.errors.astype(np.float64)
    quotas = list(evidence.quotas(keep))
    taken = np.zeros(size, dtype=bool)
    moved = np.zeros((logits.shape[1], inputs.shape[1]))  # how far the layer has come
    for number in range(1, ROUNDS + 1):
        shifted = logits + inputs @ moved.T
        p = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        validation = (p - onehot).T @ inputs / size
        gains = ((errors @ validation) * inputs).sum(axis=1)
        gains[taken] = -np.inf
        for rows, quota in quotas:
            wanted = quota * number // ROUNDS - int(taken[rows].sum())
            taken[rows[np.argsort(-gains[rows], kind="stable")[: max(wanted, 0)]]] = True
        if taken.any():
            moved = -STEP * (errors[taken].T @ inputs[taken]) / int(taken.sum())
    return Coreset(np.flatnonzero(taken).astype(np.int64))
